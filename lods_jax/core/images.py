"""Image files, read and written, and image grids."""

import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError
from scipy import ndimage

from lods_jax.core.files import open_regular, replacing

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM")  # Pillow knows others, some of which start programs
MAX_PIXELS = 64_000_000  # of a file that is read
MAX_BYTES = 192 << 20  # of its pixels, decoded
MAX_EDGE = 2048  # of what is kept of it
BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}  # of a pixel in Pillow's memory; 4 of other modes
GAP = 0.05  # of the median depth: where nothing is nearer than this, 0 is no depth
WHITES = (255, 65_535, 4_294_967_295)


def to_uint8(rgb: np.ndarray) -> np.ndarray:
    """Colours as bytes, from an rgb array in [0, 1]; bytes stay as they are.

    Examples:
        >>> to_uint8(np.array([0.0, 0.5, 1.0])).tolist()
        [0, 128, 255]
    """
    rgb = np.asarray(rgb)
    return rgb if rgb.dtype == np.uint8 else (255 * np.clip(rgb, 0, 1) + 0.5).astype(np.uint8)


_TO_LMS = np.array([[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
                    [0.0883024619, 0.2817188376, 0.6299787005]], np.float32)  # fmt: skip
_TO_OKLAB = np.array([[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
                      [0.0259040371, 0.7827717662, -0.8086757660]], np.float32)  # fmt: skip


def oklab(rgb: Float[np.ndarray, "*b 3"]) -> Float[np.ndarray, "*b 3"]:
    """Colours in Oklab (Ottosson, "A perceptual color space for image processing", 2020): lightness in [0, 1], and chroma a, b.

    Args:
        rgb: sRGB in [0, 1] [... 3]; what lies outside is clipped.

    Returns:
        [... 3]; Euclidean distances are alike to the eye, 0.02 is just noticeable.
    """
    rgb = np.clip(np.asarray(rgb, np.float32), 0, 1)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ _TO_LMS.T) @ _TO_OKLAB.T


def grid(images: np.ndarray, columns: int) -> np.ndarray:
    """Arranges images in rows; the last row is filled with white.

    Args:
        images: [n h w 3], bytes or colours in [0, 1].
        columns: images per row.

    Returns:
        One image of bytes [rows*h columns*w 3].
    """
    images = to_uint8(images)
    n, h, w, c = images.shape
    rows = -(-n // columns)
    full = np.full((rows * columns, h, w, c), 255, np.uint8)
    full[:n] = images
    return full.reshape(rows, columns, h, w, c).swapaxes(1, 2).reshape(rows * h, columns * w, c)


WRITTEN_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}  # of pictures that are written, by suffix
LONGEST_EDGE = {".jpg": 65500, ".jpeg": 65500, ".webp": 16383}  # pixels


def write_image(path: str | Path, rgb: np.ndarray, scale: int = 1) -> Path:
    """Writes an image in the format of the name's suffix: PNG, JPEG or WebP; a name without one is a PNG.

    Args:
        path: of the file.
        rgb: [h w 3], bytes or colours in [0, 1].
        scale: whole factor of enlargement, by nearest neighbour.

    Returns:
        The path.
    """
    image = Image.fromarray(to_uint8(rgb))
    large = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    with replacing(path) as partial:
        large.save(partial, WRITTEN_FORMATS.get(Path(path).suffix.lower(), "PNG"), quality=95, lossless=True)
    return Path(path)


def png_bytes(rgb: UInt8[np.ndarray, "h w c"]) -> bytes:
    """An image as the bytes of a PNG file.

    Args:
        rgb: [h w 3] or [h w 4].

    Returns:
        What a file of it holds.
    """
    file = BytesIO()
    Image.fromarray(rgb).save(file, "PNG")
    return file.getvalue()


def write_png(path: str | Path, rgb: np.ndarray, scale: int = 1) -> Path:
    """Writes an image as a PNG. A kill never leaves half a file.

    Args:
        path: of the file.
        rgb: [h w 3], or [h w 4] with alpha; bytes or colours in [0, 1].
        scale: whole factor of enlargement, by nearest neighbour.

    Returns:
        The path.
    """
    image = Image.fromarray(to_uint8(rgb))
    with replacing(path) as partial:
        image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(partial, "PNG")
    return Path(path)


def write_tiff(path: str | Path, values: Float[np.ndarray, "h w"]) -> Path:
    """Writes numbers of any range as a TIFF of float32, without rounding. A kill never leaves half a file.

    Args:
        path: of the file.
        values: [h w].

    Returns:
        The path.
    """
    with replacing(path) as partial:
        Image.fromarray(values.astype(np.float32)).save(partial, "TIFF")
    return Path(path)


def read_rgba(path: str | Path) -> Float[np.ndarray, "h w 4"]:
    """Reads an image file; of an animation the first frame.

    Args:
        path: a file of one of `FORMATS`, whatever its suffix.

    Returns:
        RGBA [h w 4] in [0, 1], upright, opaque if the file has no alpha, at most `MAX_EDGE` wide and high. Greys that are no
            bytes are divided by `white_level`; pixels that are not finite are transparent.

    Raises:
        ValueError: the file is no image, is damaged, or is too large, which is found before its pixels are read; one line.
    """
    image = load_small(path)
    if image.mode == "RGBA":
        rgba = np.array(image, np.float32)
        rgba /= 255
        return rgba
    grey = np.asarray(image, np.float32)
    finite = np.isfinite(grey)
    grey = np.clip(np.where(finite, grey, 0) / white_level(grey, image.info["whole"]), 0, 1).astype(np.float32)
    return np.stack([grey, grey, grey, finite], -1).astype(np.float32)


def white_of_file(path: str | Path) -> int | None:
    """The number that `read_rgba` divides the greys of a file by.

    Args:
        path: of an image file.

    Returns:
        The white level; None for a file of bytes.

    Raises:
        ValueError: as `read_rgba` does.
    """
    image = load_small(path)
    return None if image.mode == "RGBA" else white_level(np.asarray(image), image.info["whole"])


def read_depth(path: str | Path) -> Float[np.ndarray, "h w"]:
    """Reads one number per pixel, in the units of the file.

    Args:
        path: a grey image: bytes, integers of 16 or 32 bits (millimetres, say) or floats (metres).

    Returns:
        [h w], upright, at most `MAX_EDGE` wide and high. Pixels that were not measured, being not finite or the zeros of a depth
            camera, take the value of their nearest neighbour.

    Raises:
        ValueError: the image is coloured or has no finite number, or as `read_rgba` does; one line.
    """
    image = load_small(path)
    depth = np.asarray(image, np.float32)
    if image.mode == "RGBA":
        if np.ptp(depth[..., :3], -1).max() > 3:  # what JPEG makes of grey is not quite grey
            raise ValueError(f"{path} is coloured: depths must be a grey image, of floats or integers at best")
        depth = depth[..., 0]
    measured = np.isfinite(depth)
    positive = depth[measured & (depth > 0)]
    if image.mode == "F" and len(positive) and positive.min() > GAP * np.median(positive):
        measured &= depth != 0
    if not measured.any():
        raise ValueError(f"{path} holds no finite depth")
    return depth[tuple(ndimage.distance_transform_edt(~measured, return_distances=False, return_indices=True))]


def white_level(values: np.ndarray, whole: bool) -> int:
    """The value of white in a file that does not state it: the smallest of 1, 255, 65,535 and 2^32 - 1 that holds all values.

    Args:
        values: of pixels; those that are not finite or exceed 2^32 - 1 are ignored.
        whole: whether they are whole numbers. Others may exceed 1 a little, up to 2, and white is still 1.

    Returns:
        The white level.
    """
    top = np.max(values, initial=0, where=values <= WHITES[-1])
    return 1 if top <= (1 if whole else 2) else next(white for white in WHITES if top <= white)


def load_small(path: str | Path) -> Image.Image:
    """Reads the first frame of an image file, upright, reduced in strips to `MAX_EDGE`.

    It needs memory for the pixels as the file stores them, and not for RGBA.

    Args:
        path: of the file.

    Returns:
        An image of mode RGBA, or F for greys that are no bytes. info["whole"] tells whether these are whole numbers.

    Raises:
        ValueError: the file is no image, is damaged or is too large; one line.
    """
    with open_regular(path) as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow's own bound, which is larger than ours
        try:
            with Image.open(stream, formats=FORMATS) as file:
                check_size(file)
                mode = "F" if file.mode.startswith(("F", "I")) else "RGBA"
                small = reduced(file, mode, -(-max(file.size) // MAX_EDGE))
                small.info = {"exif": orientation(file).tobytes(), "whole": file.mode[0] == "I"}
                return ImageOps.exif_transpose(small)
        except Exception as error:  # Pillow raises a dozen unrelated types for a damaged file
            unknown = isinstance(error, UnidentifiedImageError)
            reason = f"it is none of {', '.join(FORMATS)}" if unknown else " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"cannot read {path} as an image: {reason}") from None


def check_size(file: ImageFile.ImageFile) -> None:
    """Checks the number of pixels of an opened file. A JPEG is set to decode itself at half, a quarter or an eighth.

    Args:
        file: opened by Pillow, not yet decoded.

    Raises:
        ValueError: there are too many pixels, or they take too much memory.
    """
    width, height = file.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels are more than {MAX_PIXELS:,}")
    file.draft(None, (MAX_EDGE, MAX_EDGE))
    copies = 2 if file.format in ("WEBP", "AVIF") else 1  # whose decoders keep one of their own
    if (size := copies * file.width * file.height * BYTES.get(file.mode, 4)) > MAX_BYTES:
        raise ValueError(f"{width} x {height} pixels take {size >> 20} MiB, more than {MAX_BYTES >> 20}: make it smaller")


def reduced(file: Image.Image, mode: str, factor: int) -> Image.Image:
    """The image in another mode, each pixel the mean of factor x factor.

    Args:
        file: opened by Pillow.
        mode: of the result, "RGBA" or "F".
        factor: of the reduction.

    Returns:
        The smaller image.
    """
    if factor == 1:
        return file.convert(mode)
    small = Image.new(mode, (-(-file.width // factor), -(-file.height // factor)))
    rows = factor * max(1, 256 // factor)
    for top in range(0, file.height, rows):
        strip = file.crop((0, top, file.width, min(top + rows, file.height))).convert(mode)
        small.paste(strip.reduce(factor), (0, top // factor))
    return small


def orientation(file: Image.Image) -> Image.Exif:
    """The EXIF entry of a file that says which way is up, and no other entry.

    Args:
        file: opened by Pillow.

    Returns:
        EXIF data with one entry; empty if the file's are damaged.
    """
    exif = Image.Exif()
    try:
        exif[ExifTags.Base.Orientation] = file.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged notes spoil no image
        exif.clear()
    return exif
