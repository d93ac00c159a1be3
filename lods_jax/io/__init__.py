"""Files that people open: images, and later videos, splats, meshes and pages."""
