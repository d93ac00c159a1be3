"""Quaternions turn vectors as their matrices do, and a product turns by one after the other."""

import jax
import jax.numpy as jnp
import numpy as np

from lods_jax.core.quaternions import covariance, multiply, rotate, rotation_matrix

QUATS = 3 * jax.random.normal(jax.random.key(0), (50, 4))
VECTORS = jax.random.normal(jax.random.key(1), (50, 3))


def test_a_vector_turns_as_under_the_matrix():
    np.testing.assert_allclose(rotate(QUATS, VECTORS), np.einsum("nij,nj->ni", rotation_matrix(QUATS), VECTORS), atol=1e-5)


def test_matrices_are_rotations():
    matrices = np.asarray(rotation_matrix(QUATS))
    np.testing.assert_allclose(matrices @ matrices.swapaxes(1, 2), np.tile(np.eye(3), (50, 1, 1)), atol=1e-5)
    np.testing.assert_allclose(np.linalg.det(matrices), 1, atol=1e-5)


def test_a_product_turns_by_the_second_and_then_by_the_first():
    by = np.array([0.5, 0.5, -0.5, 0.5], np.float32)
    both = multiply(by, np.asarray(QUATS))
    first = np.asarray(rotation_matrix(jnp.asarray(by[None])))[0]
    np.testing.assert_allclose(rotation_matrix(jnp.asarray(both)), first[None] @ rotation_matrix(QUATS), atol=1e-5)


def test_a_covariance_has_the_scales_along_its_axes():
    scales = jnp.abs(VECTORS) + 0.1
    variances = np.linalg.eigvalsh(covariance(QUATS, scales))
    np.testing.assert_allclose(variances, np.sort(scales**2, 1), rtol=1e-3)
