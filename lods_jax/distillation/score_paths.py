"""The way of a score from latents to pixels.

A score g is a direction of the latents z = E(x) of a render x, and a scene needs a direction of the render. E and D being encoder
and decoder, and J their Jacobians, there are two:

  encoder  J_E(x)^T g, the chain rule: which change of the pixels moves the latents along g the fastest. What score distillation
           through a latent prior does in every published system. Whatever the encoder happens to be sensitive to comes along:
           texture noise (Pan et al. 2024, "Pixel-wise Gradient Clipping", arXiv 2310.12474, who clip it pixel by pixel), and a
           tint of what should be white.
  decoder  J_D(z) g, a push-forward: how the picture changes when the latents go along g. One `jax.jvp`, a pass of the decoder.

They are one direction if the autoencoder is linear with orthonormal rows (E = W, D = W^T). Where it is not, they differ in length
too, so that whatever is mixed is brought to the root mean square of the encoder's direction, view by view: regularizers, learning
rates and thresholds of refinement mean the same on each way.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lods_jax.core.types import Prior

Share = Callable[[Array], Array | float]  # step -> the decoder's share of the direction, in [0, 1]


class ScorePath(NamedTuple):
    """Which share of a score comes through the decoder; the rest comes through the encoder.

    Attributes:
        geometry: for all of a scene but its colours.
        colors: for the leaves that `Scene.colors` names.
    """

    geometry: Share
    colors: Share


def blend(share: Share) -> ScorePath:
    """One direction for the whole scene: the encoder's at share 0, the decoder's at 1, and both between.

    Args:
        share: step -> the decoder's share, which may change in the course of a run.

    Returns:
        The path.
    """
    return ScorePath(share, share)


def split() -> ScorePath:
    """The encoder's direction for the geometry, the decoder's for the colours."""
    return ScorePath(lambda step: 0.0, lambda step: 1.0)


def push_forward(
    prior: Prior,
    weights: Any,
    z: Float[Array, "b m n c"],
    score: Float[Array, "b m n c"],
    rgb: Float[Array, "b h w 3"],
    slicing: bool = False,
) -> Float[Array, "b h w 3"]:
    """J_D(z) g as a direction of the renders.

    Where the autoencoder sees the renders at a size of its own, what it says of that size comes back through the transpose of the
    resize.

    Args:
        prior: whose `decode` is pushed through.
        weights: its frozen parameters.
        z: latents of the renders.
        score: the direction g of the latents.
        rgb: the renders, for their size alone.
        slicing: whether views are decoded one after the other, which holds the activations of one at a time.

    Returns:
        By how much each value of the renders changes along g, to first order.
    """
    decode = lambda z: prior.decode(weights, z)  # noqa: E731
    one = lambda view: jax.jvp(decode, (view[0][None],), (view[1][None],))[1][0]  # noqa: E731
    pushed = jax.lax.map(one, (z, score)) if slicing else jax.jvp(decode, (z,), (score,))[1]
    if pushed.shape == rgb.shape:
        return pushed
    resize = lambda x: jax.image.resize(x, pushed.shape, "bilinear", antialias=False)  # noqa: E731
    (back,) = jax.linear_transpose(resize, rgb)(pushed)
    return back


def mixed(encoder: Float[Array, "b h w c"], decoder: Float[Array, "b h w c"], share: Array | float) -> Float[Array, "b h w c"]:
    """Both directions of each view together, at the root mean square of the encoder's.

    Args:
        encoder: J_E^T g.
        decoder: J_D g, of any length.
        share: of the decoder's, in [0, 1].

    Returns:
        The direction of the renders.
    """
    return like(encoder, (1 - share) * encoder + share * like(encoder, decoder))


def like(reference: Float[Array, "b h w c"], x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """x with the root mean square of `reference` in each view, 0 where x is 0."""
    rms = lambda x: jnp.sqrt(jnp.mean(x**2, (1, 2, 3), keepdims=True))  # noqa: E731
    length = rms(x)
    return x * jnp.where(length > 0, rms(reference) / jnp.where(length > 0, length, 1.0), 0.0)


def pull_into_scene(
    path: ScorePath | None,
    step: Array,
    pullback: Callable[[Float[Array, "b h w c"]], tuple[Any, Any]],
    encoder: Float[Array, "b h w c"],
    through_decoder: Callable[[], Float[Array, "b h w c"]],
    colors: tuple[str, ...],
) -> tuple[Any, Any]:
    """The gradients of theta and of the projected means; the latter count as geometry, and Gaussians are refined by them.

    Args:
        path: the decoder's shares; None is the encoder alone, and the decoder is not asked.
        step: number of the step, which shares may depend on.
        pullback: direction of the renders -> (gradient of theta, gradient of `means2d_probe`), regularizers included.
        encoder: J_E^T g.
        through_decoder: () -> J_D g.
        colors: names of theta's leaves that take `path.colors`.

    Returns:
        The gradient of theta, and that of `means2d_probe`.
    """
    if path is None:
        return pullback(encoder)
    decoder = through_decoder()
    g_theta, means2d_grad = pullback(mixed(encoder, decoder, path.geometry(step)))
    if path.colors is path.geometry:
        return g_theta, means2d_grad
    of_colors, _ = pullback(mixed(encoder, decoder, path.colors(step)))
    return g_theta | {name: of_colors[name] for name in colors if name in g_theta}, means2d_grad
