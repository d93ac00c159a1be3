"""The safe forms equal the plain ones where those are defined, and have finite gradients everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lods_jax.core.math import normalize, safe_norm

X = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
LENGTH = np.linalg.norm(X, axis=-1, keepdims=True)
# Squared, the first three are 0 in float32; 1e19 would be infinite.
LENGTHS = np.array([0, 1e-38, 1e-30, 1e-19, 1e-6, 1, 1e6, 1e18], np.float32)


def test_the_safe_norm_is_the_euclidean_length():
    np.testing.assert_allclose(safe_norm(jnp.asarray(X), keepdims=True), LENGTH, rtol=1e-6)
    np.testing.assert_allclose(safe_norm(jnp.asarray(X)), LENGTH[:, 0], rtol=1e-6)


def test_the_gradient_of_the_length_is_the_direction():
    gradient = jax.jit(jax.grad(lambda x: safe_norm(x).sum()))(X)
    np.testing.assert_allclose(gradient, X / LENGTH, rtol=1e-5)


def test_at_zero_the_length_and_its_gradient_are_zero():
    value, gradient = jax.jit(jax.value_and_grad(safe_norm))(np.zeros(3, np.float32))
    np.testing.assert_array_equal([value, *gradient], 0)


def test_normalize_keeps_the_direction_and_makes_the_length_one():
    unit = np.asarray(normalize(jnp.asarray(X)))
    np.testing.assert_allclose(np.linalg.norm(unit, axis=-1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(unit * LENGTH, X, rtol=1e-5)


def test_normalizing_zero_gives_zero():
    np.testing.assert_array_equal(normalize(jnp.zeros((2, 3))), 0)


def test_a_normalized_vector_does_not_change_with_its_length():
    """So the gradient has no part along the vector."""
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(normalize(x) @ jnp.arange(3.0))))(X)
    np.testing.assert_allclose(np.sum(gradient * X, -1), 0.0, atol=1e-5)


@pytest.mark.parametrize("function", [safe_norm, normalize])
def test_values_and_derivatives_are_finite_at_every_length(function):
    """All vectors in one array: a NaN of one must not reach the others either."""
    x = LENGTHS[:, None] * np.float32([[0.6, 0.0, -0.8]])
    assert np.all(np.isfinite(function(jnp.asarray(x))))
    assert np.all(np.isfinite(jax.jit(jax.jacrev(function))(x)))
