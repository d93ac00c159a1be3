"""What spoils a render: the damages that distilled objects suffer from, applied to true renders at any strength.

A damage is a function (key, rgb, mask, u) -> rgb of one image [h w 3] in [0, 1], the object's mask [h w 1] and a strength u in
[0, 1]; u = 0 leaves the image as it is. They work in the middle of a render, at any image size: lengths are shares of the edge.
What is wrong with the object itself (a mug without its handle) is rendered instead: `objects.DEFECTS`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

Image = Float[Array, "h w 3"]
Mask = Float[Array, "h w 1"]
Scalar = Float[Array, ""]


def object_mask(rgb: Float[Array | np.ndarray, "*b h w 3"]) -> Float[Array, "*b h w 1"]:
    """1 where an rgb image [... h w 3] differs from its upper left corner, which shows the even background."""
    return (jnp.abs(rgb - rgb[..., :1, :1, :]).max(-1, keepdims=True) > 0.02).astype(rgb.dtype)


def error(bad: Float[Array | np.ndarray, "*b h w 3"], true: Float[Array | np.ndarray, "*b h w 3"]) -> Float[Array, "*b"]:
    """Mean absolute difference of colours, summed over the image and divided by the object's area, at least a tenth of the image.

    Args:
        bad: [... h w 3].
        true: [... h w 3].

    Returns:
        [...].
    """
    area = jnp.maximum(object_mask(true).mean((-1, -2, -3)), 0.1)
    return jnp.abs(bad - true).mean((-1, -2, -3)) / area


def blur(rgb: Image, sigma: Scalar) -> Image:
    """Gaussian blur, its kernel renormalised at the border.

    Args:
        rgb: [h w 3].
        sigma: share of the edge; 0 is the identity.

    Returns:
        [h w 3].
    """
    n = len(rgb)
    distance = jnp.abs(jnp.arange(n)[:, None] - jnp.arange(n)[None]) / n
    kernel = jnp.exp(-0.5 * (distance / jnp.maximum(sigma, 1e-4)) ** 2)
    kernel = kernel / kernel.sum(1, keepdims=True)
    return jnp.einsum("ij,jkc,lk->ilc", kernel, rgb, kernel)


def splats(
    below: Image,
    centre: Float[Array, "n 2"],
    scale: Float[Array, "n 2"],
    angle: Float[Array, "n"],
    color: Float[Array, "n 3"],
    opacity: Float[Array, "n"],
) -> Image:
    """Soft ellipses drawn over an image, back to front.

    Args:
        below: the image [h w 3].
        centre: (x, y) [n 2], as shares of the edge.
        scale: along both axes [n 2], as shares of the edge.
        angle: [n] radians.
        color: [n 3].
        opacity: [n].

    Returns:
        [h w 3].
    """
    n = len(below)
    y, x = jnp.meshgrid((jnp.arange(n) + 0.5) / n, (jnp.arange(n) + 0.5) / n, indexing="ij")

    def add(image, splat):
        centre, scale, angle, color, opacity = splat
        dx, dy, c, s = x - centre[0], y - centre[1], jnp.cos(angle), jnp.sin(angle)
        along, across = (c * dx + s * dy) / scale[0], (c * dy - s * dx) / scale[1]
        alpha = opacity * jnp.exp(-0.5 * (along**2 + across**2))[..., None]
        return image * (1 - alpha) + alpha * color[None, None], None

    return jax.lax.scan(add, below, (centre, scale, angle, color, opacity))[0]


def colors_of(key: Key[Array, ""], rgb: Image, mask: Mask, n: int) -> Float[Array, "n 3"]:
    """Colours of the object, each from a random pixel of it.

    Args:
        key: consumed.
        rgb: [h w 3].
        mask: of the object [h w 1].
        n: number of colours.

    Returns:
        [n 3].
    """
    logits = jnp.where(mask.ravel() > 0, 0.0, -1e3)
    return rgb.reshape(-1, 3)[jax.random.categorical(key, logits, shape=(n,))]


def smooth_noise(key: Key[Array, ""], size: int, cells: int, channels: int) -> Float[Array, "h w c"]:
    """A random field of about unit variance that varies over 1 / cells of the edge.

    Args:
        key: consumed.
        size: edge, pixels.
        cells: per edge.
        channels: of the field.

    Returns:
        [size size channels].
    """
    coarse = jax.random.normal(key, (cells, cells, channels))
    return jax.image.resize(coarse, (size, size, channels), "cubic")


def _splinters(key, rgb, mask, u):
    """Thin needles of the object's colours that stick out of it."""
    n, k = 48, jax.random.split(key, 6)
    centre = 0.5 + 0.17 * jax.random.normal(k[0], (n, 2))
    scale = jnp.stack([jax.random.uniform(k[1], (n,), minval=0.03, maxval=0.12), jnp.full(n, 0.006)], 1)
    drawn = (jnp.arange(n) < jnp.ceil(n * u)).astype(rgb.dtype) * jax.random.uniform(k[2], (n,), minval=0.5)
    color = colors_of(k[3], rgb, mask, n) + 0.15 * jax.random.normal(k[4], (n, 3))
    return splats(rgb, centre, scale, jax.random.uniform(k[5], (n,), maxval=jnp.pi), jnp.clip(color, 0, 1), drawn)


def _floaters(key, rgb, mask, u):
    """Soft specks in the air around the object."""
    n, k = 40, jax.random.split(key, 5)
    direction = jax.random.normal(k[0], (n, 2))
    direction = direction / jnp.linalg.norm(direction, axis=1, keepdims=True)
    centre = 0.5 + direction * jax.random.uniform(k[1], (n, 1), minval=0.2, maxval=0.48)
    scale = jax.random.uniform(k[2], (n, 2), minval=0.006, maxval=0.035)
    drawn = (jnp.arange(n) < jnp.ceil(n * u)).astype(rgb.dtype) * jax.random.uniform(k[3], (n,), minval=0.3)
    return splats(rgb, centre, scale, jnp.zeros(n), colors_of(k[4], rgb, mask, n), drawn)


def _melt(key, rgb, mask, u):
    """The image bent by a smooth random field, up to an eighth of the edge."""
    n = len(rgb)
    shift = 0.06 * u * n * smooth_noise(key, n, 6, 2)
    y, x = jnp.meshgrid(jnp.arange(n), jnp.arange(n), indexing="ij")
    at = jnp.stack([y, x]) + jnp.moveaxis(shift, -1, 0)
    return jnp.stack([jax.scipy.ndimage.map_coordinates(rgb[..., c], list(at), 1, mode="nearest") for c in range(3)], -1)


def _speckles(key, rgb, mask, u):
    """Grain on the object, of one pixel and of two, each colour by itself."""
    n, (k_fine, k_coarse) = len(rgb), jax.random.split(key)
    coarse = jax.random.normal(k_coarse, (n // 2, n // 2, 3)).repeat(2, 0).repeat(2, 1)
    return jnp.clip(rgb + 0.35 * u * mask * (jax.random.normal(k_fine, rgb.shape) + coarse), 0, 1)


def _tint(key, rgb, mask, u):
    """A cast of colour on white and grey parts, in patches."""
    k_hue, k_where = jax.random.split(key)
    cast = jax.random.normal(k_hue, (3,))
    cast = cast - cast.mean()
    cast = cast / jnp.maximum(jnp.abs(cast).max(), 1e-3)
    grey = (rgb.max(-1, keepdims=True) - rgb.min(-1, keepdims=True) < 0.12).astype(rgb.dtype) * mask
    where = jnp.clip(0.7 + 0.5 * smooth_noise(k_where, len(rgb), 4, 1), 0, 1)
    return jnp.clip(rgb + 0.5 * u * grey * where * cast[None, None], 0, 1)


def _holes(key, rgb, mask, u):
    """Pieces of the object that are not there."""
    field = smooth_noise(key, len(rgb), 8, 1)
    gone = jax.nn.sigmoid(40 * (field - (1.6 - 2.0 * u))) * (u > 0)
    return rgb * (1 - gone) + gone * rgb[:1, :1]


def _smear(key, rgb, mask, u):
    """Blur, in the end until no part is left: the blob painter's view of the object."""
    return blur(rgb, 0.07 * u**1.5)


def _burn(key, rgb, mask, u):
    """Too much contrast: colours at the ends of their range."""
    return jnp.clip(0.5 + (1 + 7 * u**2) * (rgb - 0.5), 0, 1)


def _noise(key, rgb, mask, u):
    """Half-noised, as a sampler that stopped too early leaves it."""
    keep = 1 - 0.85 * u**2
    return jnp.clip(0.5 + jnp.sqrt(keep) * (rgb - 0.5) + 0.5 * jnp.sqrt(1 - keep) * jax.random.normal(key, rgb.shape), 0, 1)


def _doubled(key, rgb, mask, u):
    """A second, shifted image of the object behind the first: a face on two sides, a half-transparent front."""
    shift = jax.random.randint(key, (2,), -len(rgb) // 5, len(rgb) // 5 + 1)
    other, there = jnp.roll(rgb, shift, (0, 1)), jnp.roll(mask, shift, (0, 1))
    return rgb * (1 - 0.7 * u * there) + 0.7 * u * there * other


DAMAGES: dict[str, Callable[[Key[Array, ""], Image, Mask, Scalar], Image]] = {
    "splinters": _splinters,
    "floaters": _floaters,
    "melted": _melt,
    "speckled": _speckles,
    "tinted": _tint,
    "holes": _holes,
    "smeared": _smear,
    "burnt": _burn,
    "noised": _noise,
    "doubled": _doubled,
}


def damage(name: str, key: Key[Array, "b"], rgb: Float[Array, "b h w 3"], u: Float[Array, "b"]) -> Float[Array, "b h w 3"]:
    """Spoils a batch of renders.

    Args:
        name: of DAMAGES.
        key: one per image.
        rgb: [b h w 3] in [0, 1].
        u: strengths [b] in [0, 1].

    Returns:
        [b h w 3] in [0, 1].
    """
    return jax.vmap(DAMAGES[name])(key, rgb, object_mask(rgb), u)


def nothing(name: str, key: Key[Array, ""], size: int) -> Image:
    """An image without an object, as of a 3D run that found no shape, on white or grey.

    Args:
        name: "blob", a few soft ellipses, or "specks", many small ones.
        key: consumed; colours are alike or each its own, with equal odds.
        size: edge, pixels.

    Returns:
        [size size 3].
    """
    n, low, high = {"blob": (5, 0.05, 0.22), "specks": (80, 0.008, 0.04)}[name]
    k = jax.random.split(key, 6)
    color = jax.random.uniform(k[2], (n, 3)) * jax.random.bernoulli(k[3]) + jax.random.uniform(k[4], (1, 3))
    below = jnp.where(jax.random.bernoulli(k[5]), 1.0, 0.6) * jnp.ones((size, size, 3))
    scale = jax.random.uniform(k[1], (n, 2), minval=low, maxval=high)
    centre = 0.5 + 0.18 * jax.random.normal(k[0], (n, 2))
    return splats(below, centre, scale, jnp.zeros(n), jnp.clip(color, 0, 1), jnp.ones(n))


NOTHING = ("blob", "specks")
