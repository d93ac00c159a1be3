"""Rotated coefficients give the colours of the unrotated ones, along rotated directions; and rotations are a group."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from lods_jax.scenes.gaussian_rasterizer import spherical_harmonics
from lods_jax.scenes.spherical_harmonics import Y00, real_harmonics, rotate_harmonics, rotation_of_harmonics

TURNS = [Rotation.random(random_state=i).as_matrix() for i in range(3)]
DIRECTIONS = np.random.default_rng(0).normal(size=(100, 3))
DIRECTIONS /= np.linalg.norm(DIRECTIONS, axis=1, keepdims=True)


def test_the_basis_is_that_of_the_rasterizer():
    np.testing.assert_allclose(
        real_harmonics(DIRECTIONS, 3), spherical_harmonics(jnp.asarray(DIRECTIONS, jnp.float32)), atol=1e-6
    )
    np.testing.assert_allclose(real_harmonics(DIRECTIONS, 0), Y00, atol=1e-15)


@pytest.mark.parametrize("degree", range(4))
@pytest.mark.parametrize("turn", TURNS)
def test_the_harmonics_of_a_rotated_direction_are_the_matrix_times_those_of_the_direction(turn, degree):
    """To the rounding of float64, in every degree: Wigner's matrices are exact."""
    rotated = real_harmonics(DIRECTIONS @ turn, degree)  # rows: turn^T d
    matrix = rotation_of_harmonics(turn, degree)
    np.testing.assert_allclose(rotated, real_harmonics(DIRECTIONS, degree) @ matrix.T, atol=1e-13)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(len(matrix)), atol=1e-13)


def test_degrees_do_not_mix():
    matrix = rotation_of_harmonics(TURNS[0], 3)
    degree = np.repeat(range(4), [1, 3, 5, 7])
    assert np.abs(matrix[degree[:, None] != degree]).max() < 1e-13


def test_two_rotations_are_the_rotation_by_both():
    a, b = TURNS[:2]
    one, other = rotation_of_harmonics(a, 3), rotation_of_harmonics(b, 3)
    np.testing.assert_allclose(rotation_of_harmonics(a @ b, 3), other @ one, atol=1e-13)  # Y(b^T a^T d) = D_b D_a Y(d)


@pytest.mark.parametrize("k", [1, 4, 9, 16])
def test_what_was_seen_along_a_direction_is_seen_along_the_rotated_one(k):
    sh, turn = np.random.default_rng(1).normal(size=(7, k, 3)).astype(np.float32), TURNS[2]
    degree = int(np.sqrt(k)) - 1
    before = np.einsum("dk,nkc->ndc", real_harmonics(DIRECTIONS, degree), sh)
    after = np.einsum("dk,nkc->ndc", real_harmonics(DIRECTIONS @ turn.T, degree), rotate_harmonics(sh, turn))
    np.testing.assert_allclose(after, before, atol=2e-6)
    np.testing.assert_allclose(rotate_harmonics(rotate_harmonics(sh, turn), turn.T), sh, atol=2e-6)
