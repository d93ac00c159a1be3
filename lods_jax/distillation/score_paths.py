"""The way of a score from latents to pixels.

A score g is a direction of the latents z = E(x) of a render x, and a scene needs a direction of the render. E and D being encoder
and decoder, and J their Jacobians, there are three:

  encoder  J_E(x)^T g, the chain rule: which change of the pixels moves the latents along g the fastest. What score distillation
           through a latent prior does in every published system. Whatever the encoder happens to be sensitive to comes along:
           texture noise (Pan et al. 2024, "Pixel-wise Gradient Clipping", arXiv 2310.12474, who clip it pixel by pixel), and a
           tint of what should be white.
  decoder  J_D(z) g, a push-forward: how the picture changes when the latents go along g. One `jax.jvp`, a pass of the decoder.
  reconstruction
           x - D(z0) with z0 = z - (sigma / alpha) r, where r is the residual and g = w(t) r: the render minus the picture that it
           is on the way to. Under SDS z0 is the prior's estimate of the clean latents, and this is the loss of images of HiFA
           (Zhu et al. 2024) and of MVDream. It is D along a step of its true length, so that the decoder's bend counts
           too; and it pulls at what the autoencoder cannot hold, x - D(z), such as grain.

They are one direction if the autoencoder is linear with orthonormal rows (E = W, D = W^T) and holds the render. Where it is not,
they differ in length too, so that whatever is mixed is brought to the root mean square of the encoder's direction, view by view:
regularizers, learning rates and thresholds of refinement mean the same on each way.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lods_jax.core.math import safe_norm
from lods_jax.core.noise_schedule import NoiseSchedule, divisor, per_example, score_weight
from lods_jax.core.types import Prior

Share = Callable[[Array], Array | float]  # step -> the decoder's share of the direction, in [0, 1]


class ScorePath(NamedTuple):
    """Which share of a score comes through the decoder; the rest comes through the encoder.

    Attributes:
        geometry: for all of a scene but its colours; None is the encoder alone for the whole scene, and the decoder is not asked.
        colors: for the leaves that `Scene.colors` names.
        reconstructs: whether the decoder's share is a reconstruction; else it is a push-forward.
        pixel_clip: what the encoder says of a pixel is cut to this many times the root mean square of its view, direction kept
            (after Pan et al. 2024, whose bound is one number for all views and steps); 0 cuts nothing.
    """

    geometry: Share | None = None
    colors: Share | None = None
    reconstructs: bool = False
    pixel_clip: float = 0.0


ENCODER = ScorePath()


def blend(share: Share, reconstructs: bool = False, pixel_clip: float = 0.0) -> ScorePath:
    """One direction for the whole scene: the encoder's at share 0, the decoder's at 1, and both between.

    Args:
        share: step -> the decoder's share, which may change in the course of a run.
        reconstructs: as of `ScorePath`.
        pixel_clip: as of `ScorePath`.

    Returns:
        The path.
    """
    return ScorePath(share, share, reconstructs, pixel_clip)


def split(reconstructs: bool = False, pixel_clip: float = 0.0) -> ScorePath:
    """The encoder's direction for the geometry, the decoder's for the colours.

    Args:
        reconstructs: as of `ScorePath`.
        pixel_clip: as of `ScorePath`.

    Returns:
        The path.
    """
    return ScorePath(lambda step: 0.0, lambda step: 1.0, reconstructs, pixel_clip)


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
    pushed = sliced(lambda z, score: jax.jvp(decode, (z,), (score,))[1], slicing)(z, score)
    _, back = resizing(rgb, pushed.shape)
    return back(pushed)


def reconstruction(
    prior: Prior,
    weights: Any,
    z: Float[Array, "b m n c"],
    step: Float[Array, "b m n c"],
    rgb: Float[Array, "b h w 3"],
    slicing: bool = False,
) -> Float[Array, "b h w 3"]:
    """x - D(z - step): from what the latents are on the way to, to the renders.

    Args:
        prior: whose `decode` makes the picture.
        weights: its frozen parameters.
        z: latents of the renders.
        step: from the estimate of the clean latents to z: the residual times sigma / alpha, `score_to_step` times the score.
        rgb: the renders x. Where the autoencoder sees them at a size of its own, the difference is taken there.
        slicing: as of `push_forward`.

    Returns:
        The direction, against which a scene moves.
    """
    target = sliced(lambda z: prior.decode(weights, z), slicing)(z - step)
    resize, back = resizing(rgb, target.shape)
    return back(resize(rgb) - target)


def through_decoder(
    path: ScorePath,
    priors: Sequence[tuple[Prior, Any]],
    latents: Sequence[Float[Array, "b m n c"]],
    scores: Sequence[Float[Array, "b m n c"]],
    to_step: Float[Array, "b"],
    rgb: Float[Array, "b h w 3"],
    slicing: bool = False,
) -> Float[Array, "b h w 3"]:
    """What all scores of a step together mean as a change of the renders.

    A reconstruction is that of the first prior, at the length of the push-forward whose place it takes: an auxiliary prior has a
    weight, and one of 0 must not pull at the renders.

    Args:
        path: whether there is a reconstruction.
        priors: each prior with its frozen parameters.
        latents: of the renders, for each prior.
        scores: of the latents, for each prior.
        to_step: `score_to_step` of the first prior's score.
        rgb: the renders.
        slicing: as of `push_forward`.

    Returns:
        The direction of the renders.
    """
    asked = list(zip(priors, latents, scores, strict=True))
    parts = [push_forward(*who, z, g, rgb, slicing) for who, z, g in asked[path.reconstructs :]]
    if path.reconstructs:
        who, z, g = asked[0]
        step = per_example(to_step, g)
        parts.append(reconstruction(*who, z, step * g, rgb, slicing) / step)
    return reduce(jnp.add, parts)


def score_to_step(
    schedule: NoiseSchedule, t: Int[Array, "b"], weight: Callable[..., Float[Array, "b"]] = score_weight
) -> Float[Array, "b"]:
    """sigma_t / (alpha_t w(t)): a score times this is z minus the estimate of the clean latents.

    Args:
        schedule: of the prior.
        t: timesteps of the score [b], 0 to 999.
        weight: w(t) of the score.

    Returns:
        Factors [b]. Where nothing is left of the signal, no estimate follows from the noise, and alpha counts as 1; so does w(t)
            where there is no noise.
    """
    alpha, sigma = (jnp.sqrt(jnp.asarray(table)[t]) for table in (schedule.alpha_bar, schedule.sigma2))
    return sigma / divisor(alpha) / divisor(weight(schedule, t))


def sliced(f: Callable[..., Array], slicing: bool) -> Callable[..., Array]:
    """f of a batch, or with `slicing` of one view after the other."""
    one = lambda view: f(*(x[None] for x in view))[0]  # noqa: E731
    return (lambda *batch: jax.lax.map(one, batch)) if slicing else f


def resizing(rgb: Float[Array, "b h w 3"], shape: tuple[int, ...]) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """The resize of renders `rgb` to the `shape` that an autoencoder sees, and its transpose; the identity where they agree."""
    if shape == rgb.shape:
        return (lambda x: x), (lambda x: x)
    resize = lambda x: jax.image.resize(x, shape, "bilinear", antialias=False)  # noqa: E731
    return resize, lambda x: jax.linear_transpose(resize, rgb)(x)[0]


def mixed(encoder: Float[Array, "b h w c"], decoder: Float[Array, "b h w c"], share: Array | float) -> Float[Array, "b h w c"]:
    """Both directions of each view together, at the root mean square of the encoder's.

    Args:
        encoder: J_E^T g.
        decoder: J_D g or the reconstruction, of any length.
        share: of the decoder's, in [0, 1].

    Returns:
        The direction of the renders.
    """
    return like(encoder, (1 - share) * encoder + share * like(encoder, decoder))


def clipped(x: Float[Array, "b h w c"], bound: float) -> Float[Array, "b h w c"]:
    """x with no pixel longer than `bound` times the root mean square of its view's pixels, and every direction kept."""
    length = safe_norm(x, keepdims=True)
    most = bound * jnp.sqrt(jnp.mean(length**2, (1, 2), keepdims=True))
    return x * jnp.where(length > most, most / jnp.where(length > most, length, 1.0), 1.0)


def like(reference: Float[Array, "b h w c"], x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """x with the root mean square of `reference` in each view, 0 where x is 0."""
    rms = lambda x: jnp.sqrt(jnp.mean(x**2, (1, 2, 3), keepdims=True))  # noqa: E731
    length = rms(x)
    return x * jnp.where(length > 0, rms(reference) / jnp.where(length > 0, length, 1.0), 0.0)


def pull_into_scene(
    path: ScorePath,
    step: Array,
    pullback: Callable[[Float[Array, "b h w c"]], tuple[Any, Any]],
    encoder: Float[Array, "b h w c"],
    decoder: Callable[[], Float[Array, "b h w c"]],
    colors: tuple[str, ...],
) -> tuple[Any, Any]:
    """The gradients of theta and of the projected means; the latter count as geometry, and Gaussians are refined by them.

    Args:
        path: the decoder's shares.
        step: number of the step, which shares may depend on.
        pullback: direction of the renders -> (gradient of theta, gradient of `means2d_probe`), regularizers included.
        encoder: J_E^T g.
        decoder: () -> `through_decoder`.
        colors: names of theta's leaves that take `path.colors`.

    Returns:
        The gradient of theta, and that of `means2d_probe`.
    """
    if path.pixel_clip > 0:
        encoder = clipped(encoder, path.pixel_clip)
    if path.geometry is None or path.colors is None:
        return pullback(encoder)
    pushed = decoder()
    g_theta, means2d_grad = pullback(mixed(encoder, pushed, path.geometry(step)))
    if path.colors is path.geometry:
        return g_theta, means2d_grad
    of_colors, _ = pullback(mixed(encoder, pushed, path.colors(step)))
    return g_theta | {name: of_colors[name] for name in colors if name in g_theta}, means2d_grad
