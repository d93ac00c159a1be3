"""The foundation of all other packages: types, arithmetic, cameras, the noise schedule, images and files."""
