"""Rotations as quaternions wxyz, of any length but 0 unless it says otherwise."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lods_jax.core.math import normalize


def rotate(quats: Float[Array, "n 4"], v: Float[Array, "n 3"]) -> Float[Array, "n 3"]:
    """Vectors turned by quaternions.

    Args:
        quats: [n 4].
        v: [n 3].

    Returns:
        [n 3].
    """
    quats = quats / jnp.linalg.norm(quats, axis=-1, keepdims=True)
    w, u = quats[:, :1], quats[:, 1:]
    return v + 2 * jnp.cross(u, jnp.cross(u, v) + w * v)


def rotation_matrix(quats: Float[Array, "n 4"]) -> Float[Array, "n 3 3"]:
    """Quaternions as matrices.

    Args:
        quats: [n 4].

    Returns:
        [n 3 3].
    """
    w, x, y, z = normalize(quats).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return jnp.stack([jnp.stack(row, -1) for row in rows], -2)


def multiply(by: Float[np.ndarray, "4"], quats: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
    """Hamilton products by * quats, on the host: the same orientations in a turned frame.

    Args:
        by: [4].
        quats: [n 4].

    Returns:
        [n 4], float32.
    """
    aw, ax, ay, az = by
    w, x, y, z = quats.T
    product = [aw * w - ax * x - ay * y - az * z, aw * x + ax * w + ay * z - az * y]
    product += [aw * y - ax * z + ay * w + az * x, aw * z + ax * y - ay * x + az * w]
    return np.stack(product, 1).astype(np.float32)


def covariance(quats: Float[Array, "n 4"], scales: Float[Array, "n 3"]) -> Float[Array, "n 3 3"]:
    """Covariances R S S^T R^T of Gaussians (Kerbl et al. 2023, eq. 6).

    Args:
        quats: [n 4].
        scales: standard deviations [n 3].

    Returns:
        [n 3 3].
    """
    rotation = rotation_matrix(quats)
    return jnp.einsum("nij,nj,nkj->nik", rotation, scales**2, rotation)
