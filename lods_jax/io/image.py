"""Image files, cut-outs and image grids."""

from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageOps
from scipy import ndimage

from lods_jax.io.files import replacing

MOST_PIXELS = 64_000_000  # of a file that is read
PLAIN = 0.06  # deviation of the colours along the border of a plain background


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
    """Writes [h w 3], or [h w 4] with alpha, as a PNG, `scale` times enlarged. A kill never leaves half a file."""
    image = Image.fromarray(to_uint8(rgb))
    with replacing(path) as partial:
        image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(partial, "PNG")
    return Path(path)


def read_rgba(path: str | Path) -> Float[np.ndarray, "h w 4"]:
    """An image file in [0, 1], upright, opaque where it has no alpha; of an animation the first frame.

    Raises ValueError, in one line, for what is no image, and for one of more than MOST_PIXELS, before its pixels are read.
    """
    try:
        with Image.open(path) as file:
            width, height = file.size
            if width * height > MOST_PIXELS:
                raise ValueError(f"{width} x {height} pixels are more than {MOST_PIXELS:,}")
            image = ImageOps.exif_transpose(file)
            sixteen = image.mode.startswith("I")
            pixels = np.asarray(image.convert("I" if sixteen else "RGBA"), np.float32)
    except Exception as error:  # Pillow raises a dozen unrelated types for a damaged file
        raise ValueError(f"cannot read {path} as an image: {' '.join(str(error).split())}") from None
    if sixteen:  # grey of 16 bits, as depths are
        return np.concatenate([np.repeat(pixels[..., None] / 65535, 3, -1), np.ones((*pixels.shape, 1), np.float32)], -1)
    return pixels / 255


def cut_out(rgba: Float[np.ndarray, "h w 4"]) -> Float[np.ndarray, "h w 4"]:
    """The image with an alpha: its own, or 0 where a plain background reaches in from the border.

    Raises ValueError for a background that is not plain, and where nothing is left of the object.
    """
    if min(rgba.shape[:2]) < 8:
        raise ValueError(f"a picture must have at least 8 x 8 pixels, got {rgba.shape[1]} x {rgba.shape[0]}")
    if rgba[..., 3].min() > 0.98:
        border = np.concatenate([rgba[0], rgba[-1], rgba[:, 0], rgba[:, -1]])[:, :3]
        color = np.median(border, 0)
        if np.sqrt(np.mean(np.min([np.sum((border - color) ** 2, -1), np.full(len(border), 0.25)], 0))) > PLAIN:
            raise ValueError("the picture has neither an alpha nor a plain background: cut the object out and save it as RGBA")
        near = np.sqrt(np.sum((rgba[..., :3] - color) ** 2, -1)) < 1.5 * PLAIN
        labels, _ = ndimage.label(near)
        outside = np.isin(labels, np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))) & near
        rgba = np.concatenate([rgba[..., :3], 1.0 - outside[..., None].astype(np.float32)], -1)
    if np.mean(rgba[..., 3]) < 1e-3:
        raise ValueError("the picture shows nothing: all of it is transparent, or of the colour of its background")
    return rgba


def framed(rgba: Float[np.ndarray, "h w 4"], size: int, share: float | None = None) -> Float[np.ndarray, "size size 4"]:
    """A square of the image, size pixels wide: its centre, or the object in the middle at `share` of the edge."""
    h, w = rgba.shape[:2]
    top, left, edge = (h - min(h, w)) / 2, (w - min(h, w)) / 2, float(min(h, w))
    if share is not None:
        rows, columns = (np.flatnonzero(np.any(rgba[..., 3] > 0.1, axis)) for axis in (1, 0))
        edge = max(np.ptp(rows), np.ptp(columns), 1) / share
        top, left = (rows[0] + rows[-1] - edge) / 2, (columns[0] + columns[-1] - edge) / 2
    flat = np.concatenate([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], -1)
    box = (left, top, left + edge, top + edge)
    shrink = Image.Resampling.BOX if edge > size else Image.Resampling.BILINEAR
    margin = int(edge)  # transform and resize read no pixels beyond an image
    flat = np.pad(flat, ((margin, margin), (margin, margin), (0, 0)))
    box = tuple(x + margin for x in box)
    planes = [np.asarray(Image.fromarray(plane).resize((size, size), shrink, box)) for plane in np.moveaxis(flat, -1, 0)]
    flat = np.clip(np.stack(planes, -1), 0, 1)
    return np.concatenate([flat[..., :3] / np.maximum(flat[..., 3:], 1e-6), flat[..., 3:]], -1).clip(0, 1)
