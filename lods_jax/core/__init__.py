"""What everything else stands on: types, arithmetic, cameras, the noise schedule, images and files."""
