"""The objectives that are classifier-free guidance at random noise, on which others stand. Notation as in `objectives`."""

import math

import jax.numpy as jnp

from lods_jax.core.noise_schedule import per_example
from lods_jax.core.types import Objective, Query
from lods_jax.distillation.reconstruction import guided_reconstruction


def sds(s: float = 100.0, scale: float | None = None, x0_rescale: float | None = None) -> Objective:
    """Score distillation sampling: scale (s e[y] + (1 - s) e[null] - noise).

    DreamFusion (Poole et al. 2023, eq. 3) with classifier-free guidance.

    Args:
        s: guidance scale, at least 1. DreamFusion uses 100.
        scale: factor of the residual; None for 1 / s, which puts it on the scale of LODS.
        x0_rescale: None for the residual of noises. A share in [0, 1] for the x0-reconstruction form of MVDream (Shi et al.
            2024), (sigma / alpha) (e_guided - noise), with guidance rescaled by that share: see `reconstruction`.

    Returns:
        An objective that learns nothing.

    Raises:
        ValueError: s is below 1 or NaN, or `x0_rescale` is out of range.

    Examples:
        >>> sds(s=2.0, scale=1.0).residual({"y": 3.0, "null": 1.0}, 1.0, 0)
        4.0
    """
    scale = 1 / at_least(s, 1.0) if scale is None else scale
    made = Objective(
        {"y": Query("prompt"), "null": Query("null")},
        residual=lambda e, noise, t: scale * (s * e["y"] + (1 - s) * e["null"] - noise),
    )
    return made if x0_rescale is None else made._replace(x0_residual=guided_reconstruction(s, scale, x0_rescale, "null"))


def csd() -> Objective:
    """Classifier score distillation: e[y] - e[null], the guidance alone.

    Yu et al. 2024, eq. 7. LODS at s = inf is the same before its unconditional branch has learned anything.

    Returns:
        An objective that learns nothing.

    Examples:
        >>> csd().residual({"y": 3.0, "null": 1.0}, 5.0, 0)
        2.0
    """
    return Objective({"y": Query("prompt"), "null": Query("null")}, residual=lambda e, noise, t: e["y"] - e["null"])


def nfsd(s: float = 7.5, scale: float | None = None) -> Objective:
    """Noise-free score distillation: scale (domain + s (e[y] - e[empty])), without the random noise.

    Katzir et al. 2024, section 4. The domain term is e[empty] below t = 200, where it holds little noise, and e[empty] - e[null]
    above, with the negative prompt as null. Below t = 200 a perfect denoiser therefore does exert a force. Without a negative
    prompt the residual above t = 200 is that of CSD.

    Args:
        s: guidance scale, at least 1.
        scale: factor of the residual; None for 1 / s.

    Returns:
        An objective that learns nothing.

    Raises:
        ValueError: s is below 1 or NaN.
    """
    scale = 1 / at_least(s, 1.0) if scale is None else scale

    def residual(e, noise, t):
        domain = e["empty"] - per_example(jnp.where(t < 200, 0.0, 1.0), noise) * e["null"]
        return scale * (domain + s * (e["y"] - e["empty"]))

    return Objective({"y": Query("prompt"), "empty": Query("empty"), "null": Query("null")}, residual)


def at_least(s: float, least: float) -> float:
    """The guidance scale, if it is valid.

    Args:
        s: guidance scale.
        least: the smallest that is allowed.

    Returns:
        s.

    Raises:
        ValueError: s is below `least` or NaN.
    """
    if math.isnan(s) or s < least:
        raise ValueError(f"guidance needs s >= {least:g}, got {s}")
    return s
