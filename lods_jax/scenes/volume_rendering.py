"""Volume rendering along rays (Max 1995; Mildenhall et al. 2020, eq. 3): densities on intervals -> weights, and what they sum up.

Arrays are [s n], n rays in s intervals front to back: a scan over rows is the fastest running sum on a CPU.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def before(x: Float[Array, "s n"]) -> Float[Array, "s n"]:
    """Row i is the sum of the rows before it."""
    return jax.lax.scan(lambda total, row: (total + row, total), jnp.zeros_like(x[0]), x)[1]


def absorb(density: Float[Array, "s n"], length: Float[Array, "..."] | float) -> tuple[Float[Array, "s n"], Float[Array, "n"]]:
    """The share of light that each interval stops, and the share that passes all of them; together they are 1.

    Args:
      density: absorption per world unit, at least 0. length: of the intervals, world units, broadcast against density.
    """
    thickness = density * length
    return jnp.exp(-before(thickness)) * -jnp.expm1(-thickness), jnp.exp(-jnp.sum(thickness, 0))


def moments(
    weights: Float[Array, "s n"], at: Float[Array, "s n"]
) -> tuple[Float[Array, "n"], Float[Array, "n"], Float[Array, "n"]]:
    """Opacity, mean and variance of `at` under the weights; the last two are 0 where nothing is seen."""
    opacity = jnp.sum(weights, 0)
    safe = jnp.maximum(opacity, 1e-6)
    mean = jnp.sum(weights * at, 0) / safe
    return opacity, mean, jnp.sum(weights * (at - mean[None]) ** 2, 0) / safe


def distortion(weights: Float[Array, "s n"], at: Float[Array, "s n"], length: Float[Array, ""] | float) -> Float[Array, "n"]:
    """How far the light of a ray is spread out, world units (Barron et al. 2022, eq. 15): sum_ij w_i w_j |t_i - t_j| +
    sum_i w_i^2 length / 3, in linear time."""
    spread = weights * (at * before(weights) - before(weights * at))
    return 2 * jnp.sum(spread, 0) + jnp.sum(weights**2, 0) * length / 3
