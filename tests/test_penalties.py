import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lods_jax.penalties import PENALTIES, opaque, sparsity, weighted, z_variance
from lods_jax.types import Render


def render(opacity, **extras):
    one = jnp.full((2, 4, 4, 1), opacity)
    return Render(jnp.zeros((2, 4, 4, 3)), one, one, {k: jnp.full((2, 4, 4, 1), v) for k, v in extras.items()})


def test_sparsity_wants_empty_space():
    assert sparsity(render(0.0))[0] < sparsity(render(0.5))[0] < sparsity(render(1.0))[0]


def test_opaque_wants_all_or_nothing():
    np.testing.assert_allclose(opaque(render(0.5)), np.log(2), rtol=1e-6)
    assert opaque(render(0.01))[0] < opaque(render(0.3))[0] > 0
    np.testing.assert_allclose(opaque(render(0.2)), opaque(render(0.8)), rtol=1e-5)


def test_z_variance_of_an_empty_view_is_zero_with_a_finite_gradient():
    cost = lambda v: z_variance(render(0.0, z_var=v)).sum()  # noqa: E731
    assert cost(1.0) == 0.0
    assert jnp.isfinite(jax.grad(cost)(1.0))


def test_z_variance_is_the_mean_over_what_is_seen():
    np.testing.assert_allclose(z_variance(render(1.0, z_var=0.3)), 0.3, rtol=1e-6)


def test_weights_follow_their_schedule():
    costs = weighted({"sparsity": lambda step: jnp.where(step < 10, 0.0, 2.0)})
    assert costs(render(1.0), jnp.array(0))["sparsity"][0] == 0.0
    np.testing.assert_allclose(costs(render(1.0), jnp.array(10))["sparsity"], 2 * sparsity(render(1.0)), rtol=1e-6)


def test_an_unknown_penalty_is_refused():
    with pytest.raises(ValueError, match=r"unknown penalty haze; there are .*sparsity"):
        weighted({"haze": lambda step: 1.0})
    assert set(PENALTIES) == {"sparsity", "opaque", "z_variance", "distortion", "orientation"}
