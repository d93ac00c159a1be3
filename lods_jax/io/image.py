"""PNG files and image grids."""

from pathlib import Path

import numpy as np
from PIL import Image

from lods_jax.io.files import replacing


def to_uint8(rgb: np.ndarray) -> np.ndarray:
    """Colours in [0, 1] as bytes; bytes stay as they are."""
    rgb = np.asarray(rgb)
    return rgb if rgb.dtype == np.uint8 else (255 * np.clip(rgb, 0, 1) + 0.5).astype(np.uint8)


def grid(images: np.ndarray, columns: int) -> np.ndarray:
    """[n h w 3] -> one image, row by row, as bytes; the last row is filled with white."""
    images = to_uint8(images)
    n, h, w, c = images.shape
    rows = -(-n // columns)
    full = np.full((rows * columns, h, w, c), 255, np.uint8)
    full[:n] = images
    return full.reshape(rows, columns, h, w, c).swapaxes(1, 2).reshape(rows * h, columns * w, c)


def write_png(path: str | Path, rgb: np.ndarray, scale: int = 1) -> Path:
    """Writes [h w 3] as a PNG, `scale` times enlarged without smoothing. A kill never leaves half a file."""
    image = Image.fromarray(to_uint8(rgb))
    with replacing(path) as partial:
        image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(partial, "PNG")
    return Path(path)
