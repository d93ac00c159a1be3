"""Volume rendering along rays (Max 1995; Mildenhall et al. 2020, eq. 3): from densities on intervals to weights and their sums.

Arrays are [s n], n rays in s intervals front to back: a scan over rows is the fastest running sum on a CPU.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def before(x: Float[Array, "s n"]) -> Float[Array, "s n"]:
    """Running sums that exclude the own row: row i is the sum of the rows of x [s n] before it.

    Examples:
        >>> before(jnp.array([[1.0], [2.0], [3.0]])).ravel().tolist()
        [0.0, 1.0, 3.0]
    """
    return jax.lax.scan(lambda total, row: (total + row, total), jnp.zeros_like(x[0]), x)[1]


def absorb(density: Float[Array, "s n"], length: Float[Array, "..."] | float) -> tuple[Float[Array, "s n"], Float[Array, "n"]]:
    """The share of light that each interval absorbs, and the share that passes all of them; together they are 1.

    Args:
        density: absorption per world unit [s n], at least 0.
        length: of the intervals, world units; broadcasts against density.

    Returns:
        [s n] and [n].
    """
    thickness = density * length
    return jnp.exp(-before(thickness)) * -jnp.expm1(-thickness), jnp.exp(-jnp.sum(thickness, 0))


def moments(
    weights: Float[Array, "s n"], at: Float[Array, "s n"]
) -> tuple[Float[Array, "n"], Float[Array, "n"], Float[Array, "n"]]:
    """Opacity, mean and variance under the weights of a ray.

    Args:
        weights: [s n].
        at: position of each interval [s n], world units.

    Returns:
        Opacity, mean and variance, each [n]; the last two are 0 where the opacity is 0.
    """
    opacity = jnp.sum(weights, 0)
    safe = jnp.maximum(opacity, 1e-6)
    mean = jnp.sum(weights * at, 0) / safe
    return opacity, mean, jnp.sum(weights * (at - mean[None]) ** 2, 0) / safe


def distortion(weights: Float[Array, "s n"], at: Float[Array, "s n"], length: Float[Array, ""] | float) -> Float[Array, "n"]:
    """How far the weights of a ray are spread along it, in linear time (Barron et al. 2022, eq. 15).

    sum_ij w_i w_j |t_i - t_j| + sum_i w_i^2 length / 3.

    Args:
        weights: [s n].
        at: position of each interval [s n], world units.
        length: of the intervals, world units.

    Returns:
        [n] world units.
    """
    spread = weights * (at * before(weights) - before(weights * at))
    return 2 * jnp.sum(spread, 0) + jnp.sum(weights**2, 0) * length / 3
