"""Image files, cut-outs and image grids."""

from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageOps
from scipy import ndimage

from lods_jax.core.files import replacing

MOST_PIXELS = 64_000_000  # of a file that is read
MOST_EDGE = 2048  # of what is kept of it
SEEN = 0.1  # alpha from which a pixel belongs to the object
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
    """An image file in [0, 1], upright, opaque where it has no alpha, at most MOST_EDGE wide; of an animation the first frame.

    Raises ValueError, in one line, for what is no image, and for one of more than MOST_PIXELS, before its pixels are read.
    """
    try:
        with Image.open(path) as file:
            width, height = file.size
            if width * height > MOST_PIXELS:
                raise ValueError(f"{width} x {height} pixels are more than {MOST_PIXELS:,}")
            image = ImageOps.exif_transpose(file)
            sixteen = image.mode.startswith("I")
            image = image.convert("F" if sixteen else "RGBA")
            image.thumbnail((MOST_EDGE, MOST_EDGE))
            pixels = np.asarray(image, np.float32)
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
    if np.mean(rgba[..., 3] > SEEN) < 1e-3:
        raise ValueError("the picture shows nothing: all of it is transparent, or of the colour of its background")
    return rgba


def framed(rgba: Float[np.ndarray, "h w 4"], size: int, share: float | None = None) -> Float[np.ndarray, "size size 4"]:
    """A square of the image, size pixels wide: its centre, or the object in the middle at `share` of the edge."""
    h, w = rgba.shape[:2]
    top, left, edge = (h - min(h, w)) / 2, (w - min(h, w)) / 2, float(min(h, w))
    if share is not None:
        rows, columns = (np.flatnonzero(np.any(rgba[..., 3] > SEEN, axis)) for axis in (1, 0))
        edge = (max(np.ptp(rows), np.ptp(columns)) + 1) / share
        top, left = (rows[0] + rows[-1] + 1 - edge) / 2, (columns[0] + columns[-1] + 1 - edge) / 2
    # Whole pixels around the square, transparent beyond the image: a resize reads no further.
    (first, last), (begin, end) = ((int(np.floor(x)), int(np.ceil(x + edge))) for x in (top, left))
    flat = np.concatenate([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], -1)[max(first, 0) : last, max(begin, 0) : end]
    flat = np.pad(flat, ((max(-first, 0), max(last - h, 0)), (max(-begin, 0), max(end - w, 0)), (0, 0)))
    box = (left - begin, top - first, left - begin + edge, top - first + edge)
    shrink = Image.Resampling.BOX if edge > size else Image.Resampling.BILINEAR
    planes = [np.asarray(Image.fromarray(plane).resize((size, size), shrink, box)) for plane in np.moveaxis(flat, -1, 0)]
    return unmultiplied(np.clip(np.stack(planes, -1), 0, 1))


def unmultiplied(flat: Float[np.ndarray, "*b 4"]) -> Float[np.ndarray, "*b 4"]:
    """RGBA whose colours carry no alpha, of one whose colours do; black where it is transparent."""
    return np.concatenate([flat[..., :3] / np.maximum(flat[..., 3:], 1e-6), flat[..., 3:]], -1).clip(0, 1)
