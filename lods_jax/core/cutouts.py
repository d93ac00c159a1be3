"""Cut-outs: which pixels of an image are the object, and a square frame around them.

No single pixel decides: an alpha is trusted where enough of the image is transparent, its haze is taken off, and parts that are
small beside the largest are dust.
"""

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image
from scipy import ndimage

SEEN = 0.2  # of the highest alpha: from there on a pixel belongs to the object
PLAIN = 0.06  # deviation of the colours along the border of a plain background
MATTE = 0.02  # share of an image that an alpha makes transparent, if it is a matte
FEW = 0.001  # the same where the background is not plain: then alpha is all there is to go by
DUST = 0.05  # of the largest part: smaller parts are no part of the object
TOUCHING = 2  # pixels: the soft edge of a part


def cut_out(rgba: Float[np.ndarray, "h w 4"]) -> Float[np.ndarray, "h w 4"]:
    """Finds the object of an image, by its alpha if that is a matte, else by a plain background that reaches in from the border.

    Args:
        rgba: [h w 4] in [0, 1], colours not multiplied by alpha.

    Returns:
        The image [h w 4] with the alpha of the object alone.

    Raises:
        ValueError: the image has fewer than 8 x 8 pixels, neither an alpha nor a plain background, or shows nothing.
    """
    if min(rgba.shape[:2]) < 8:
        raise ValueError(f"an image must have at least 8 x 8 pixels, got {rgba.shape[1]} x {rgba.shape[0]}")
    alpha = rgba[..., 3]
    transparent = np.mean(alpha < 0.5 * alpha.max())
    if transparent >= MATTE:
        alpha = without_haze(alpha)
    else:
        filled, color, plain = on_border_color(rgba)
        if plain:
            rgba, alpha = filled, 1.0 - outside(filled, color).astype(np.float32)
        elif transparent < FEW:
            raise ValueError("the image has neither an alpha nor a plain background: cut the object out and save it as RGBA")
    alpha = without_dust(alpha)
    if np.mean(is_seen(alpha)) < 1e-3:
        raise ValueError("the image shows nothing: all of it is transparent, or of the colour of its background")
    return np.concatenate([rgba[..., :3], alpha[..., None]], -1)


def is_seen(alpha: Float[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The pixels that belong to an object, which may be translucent all over, and not to its haze or its shadow.

    Args:
        alpha: [h w] in [0, 1].

    Returns:
        A mask [h w].
    """
    return alpha > SEEN * max(alpha.max(), 0.1)


def without_haze(alpha: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Removes a faint alpha that the whole background has, estimated along the border.

    The haze is the alpha that three quarters of the background pixels on the border stay below.

    Args:
        alpha: [h w] in [0, 1].

    Returns:
        Alpha [h w], stretched so that the haze is 0 and 1 stays 1.
    """
    border = border_of(alpha)
    behind = border[border < 0.5 * alpha.max()]
    haze = np.quantile(behind, 0.75) if 4 * len(behind) > len(border) else 0.0
    return np.clip((alpha - haze) / (1 - haze), 0, 1).astype(np.float32) if haze > 0 else alpha


def without_dust(alpha: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Sets alpha to 0 in connected parts that are much smaller than the largest one.

    Args:
        alpha: [h w] in [0, 1].

    Returns:
        Alpha [h w] of the parts that weigh at least `DUST` of the heaviest, with their soft edges. A part weighs its pixels after
            an erosion, so that a line one or two pixels wide weighs nothing.
    """
    own, square = is_seen(alpha), np.ones((3, 3))
    parts, n = ndimage.label(own, square)
    inner = ndimage.binary_erosion(own, square)
    weight = ndimage.sum_labels(inner if inner.any() else own, parts, np.arange(n + 1))
    weight[0] = 0  # what belongs to no part
    kept = (weight >= DUST * weight.max())[parts] & own
    return np.where(ndimage.binary_dilation(kept, square, TOUCHING), alpha, 0).astype(np.float32)


def on_border_color(rgba: Float[np.ndarray, "h w 4"]) -> tuple[Float[np.ndarray, "h w 4"], Float[np.ndarray, "3"], bool]:
    """Composites an image on the median colour of its border.

    Args:
        rgba: [h w 4] in [0, 1].

    Returns:
        The opaque image [h w 4], the colour [3], and whether the border is of one colour.
    """
    border = border_of(rgba)
    color = np.median(border[border[:, 3] >= 0.5 * border[:, 3].max(), :3], 0)
    rgb = rgba[..., :3] * rgba[..., 3:] + (1 - rgba[..., 3:]) * color if rgba[..., 3].max() > 0 else rgba[..., :3]
    error = np.minimum(np.sum((border_of(rgb) - color) ** 2, -1), 0.25)  # an object may touch the border
    return np.concatenate([rgb, np.ones_like(rgb[..., :1])], -1), color, bool(np.sqrt(np.mean(error)) <= PLAIN)


def outside(rgba: Float[np.ndarray, "h w 4"], color: Float[np.ndarray, "3"]) -> Bool[np.ndarray, "h w"]:
    """The pixels that have the colour of the background and are connected to the border.

    Args:
        rgba: [h w 4] in [0, 1].
        color: of the background [3].

    Returns:
        A mask [h w].
    """
    near = np.sqrt(np.sum((rgba[..., :3] - color) ** 2, -1)) < 1.5 * PLAIN
    labels, _ = ndimage.label(near)
    return np.isin(labels, np.unique(border_of(labels))) & near


def border_of(image: np.ndarray) -> np.ndarray:
    """The outermost pixels [n ...] of an image [h w ...]; those of the corners twice."""
    return np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])


# --- frames -----------------------------------------------------------------------------------------------------------------
def framed(rgba: Float[np.ndarray, "h w 4"], size: int, share: float | None = None) -> Float[np.ndarray, "size size 4"]:
    """A square image with the object in the middle.

    Args:
        rgba: [h w 4] in [0, 1], colours not multiplied by alpha.
        size: edge of the result, pixels.
        share: part of the edge that the object fills; None for the centre square of the image as it is.

    Returns:
        [size size 4] in [0, 1].
    """
    h, w = rgba.shape[:2]
    top, left, edge = (h - min(h, w)) / 2, (w - min(h, w)) / 2, float(min(h, w))
    if share is not None:
        rows, columns = (np.flatnonzero(np.any(is_seen(rgba[..., 3]), axis)) for axis in (1, 0))
        edge = (max(np.ptp(rows), np.ptp(columns)) + 1) / share
        top, left = (rows[0] + rows[-1] + 1 - edge) / 2, (columns[0] + columns[-1] + 1 - edge) / 2
    flat = np.concatenate([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], -1)
    return unmultiplied(np.clip(square(flat, top, left, edge, size), 0, 1))


def centre(image: Float[np.ndarray, "h w"], size: int) -> Float[np.ndarray, "size size"]:
    """The centre square of a map of numbers, such as depths, by nearest neighbour: a mean across an edge would mean nothing.

    Args:
        image: [h w].
        size: edge of the result, pixels.

    Returns:
        [size size].
    """
    h, w = image.shape
    left, top, edge = (w - min(h, w)) / 2, (h - min(h, w)) / 2, min(h, w)
    box = (left, top, left + edge, top + edge)
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.NEAREST, box))


def square(
    image: Float[np.ndarray, "h w c"], top: float, left: float, edge: float, size: int
) -> Float[np.ndarray, "size size c"]:
    """A square part of an image, resampled; 0 outside the image.

    Args:
        image: [h w c].
        top: upper edge of the square, pixels; may be negative.
        left: left edge of the square, pixels; may be negative.
        edge: size of the square, pixels of the image.
        size: edge of the result, pixels.

    Returns:
        [size size c].
    """
    # Whole pixels around the square: a resize reads no further.
    h, w = image.shape[:2]
    (first, last), (begin, end) = ((int(np.floor(x)), int(np.ceil(x + edge))) for x in (top, left))
    part = image[max(first, 0) : last, max(begin, 0) : end]
    part = np.pad(part, ((max(-first, 0), max(last - h, 0)), (max(-begin, 0), max(end - w, 0)), (0, 0)))
    box = (left - begin, top - first, left - begin + edge, top - first + edge)
    shrink = Image.Resampling.BOX if edge > size else Image.Resampling.BILINEAR
    planes = [np.asarray(Image.fromarray(plane).resize((size, size), shrink, box)) for plane in np.moveaxis(part, -1, 0)]
    return np.stack(planes, -1)


def unmultiplied(flat: Float[np.ndarray, "*b 4"]) -> Float[np.ndarray, "*b 4"]:
    """Divides colours by alpha, the inverse of multiplying it in.

    Args:
        flat: RGBA [... 4] in [0, 1] whose colours are multiplied by alpha.

    Returns:
        RGBA [... 4]; black where it is transparent.
    """
    return np.concatenate([flat[..., :3] / np.maximum(flat[..., 3:], 1e-6), flat[..., 3:]], -1).clip(0, 1)


def over(rgba: Float[np.ndarray, "h w 4"], background: float) -> Float[np.ndarray, "h w 3"]:
    """The image composited on an even background.

    Args:
        rgba: [h w 4] in [0, 1], colours not multiplied by alpha.
        background: grey in [0, 1].

    Returns:
        [h w 3].
    """
    return rgba[..., :3] * rgba[..., 3:] + (1 - rgba[..., 3:]) * np.float32(background)
