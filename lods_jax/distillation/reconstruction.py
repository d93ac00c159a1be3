"""The x0-reconstruction form of guided objectives, with rescaled guidance (Shi et al. 2024, "MVDream", section 3.2 and appendix).

Its loss is half the squared distance of the latents z to the clean latents x0 that the guided prediction means, so its score is
z - x0 = (sigma / alpha) (e_guided - noise): another weight than w(t), which grows with the noise. Guidance makes the spread of x0
too large (Lin et al. 2024, "Common diffusion noise schedules and sample steps are flawed", section 3.4): a share of x0 is
brought back to the standard deviation of what the prompt alone means, which is taken over all views of a group.
"""

import math
from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from lods_jax.core.noise_schedule import per_example


def guided_reconstruction(
    s: float, scale: float, rescale: float, unconditional: str
) -> Callable[[Mapping[str, Float[Array, "b h w c"]], Float[Array, "b h w c"], int], Float[Array, "b h w c"]]:
    """An `Objective.x0_residual`: scale (z - x0), x0 being the rescaled guided estimate of the clean latents.

    Args:
        s: guidance scale, finite.
        scale: factor of the residual.
        rescale: share of x0 that has the standard deviation of the prompt's estimate, in [0, 1].
        unconditional: name of the query that guidance leads away from; the prompt's is "y".

    Returns:
        ({query: x0}, z, views of a group) -> the score.

    Raises:
        ValueError: s is not finite, or `rescale` is out of range.
    """
    if not math.isfinite(s):
        raise ValueError(f"x0_rescale needs a finite guidance scale, got {s}")
    if not 0 <= rescale <= 1:
        raise ValueError(f"x0_rescale must lie in 0..1, got {rescale}")

    def residual(x0, z, views):
        guided = s * x0["y"] + (1 - s) * x0[unconditional]
        return scale * (z - rescaled(guided, x0["y"], rescale, views))

    return residual


def rescaled(
    guided: Float[Array, "b h w c"], prompted: Float[Array, "b h w c"], share: float, views: int = 1
) -> Float[Array, "b h w c"]:
    """Guided latents of which a share has the standard deviation of the prompt's.

    Args:
        guided: estimates of the clean latents under guidance.
        prompted: those of the prompt alone.
        share: 0 is `guided` itself; at 1 each group has the standard deviation of its prompt's.
        views: number of views in a group, over all of which the deviation is taken.

    Returns:
        Like `guided`.
    """
    deviation = lambda x: jnp.std(x.reshape(len(x) // views, -1), axis=1) + 1e-8  # noqa: E731
    factor = share * deviation(prompted) / deviation(guided) + (1 - share)
    return per_example(jnp.repeat(factor, views), guided) * guided
