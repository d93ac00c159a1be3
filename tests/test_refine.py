"""Laws of refinement on a handful of Gaussians whose statistics are set by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lods_jax.refine import SHRINK, Rules, refine
from lods_jax.scenes.gaussians import gaussians
from lods_jax.train import init_state

TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
SCENE = gaussians(height=8, width=8, intersections=64, capacity=8, count=5)
step = jax.jit(partial(refine, tx=TX), static_argnames="rules")
FEW = Rules(fraction=0.4)  # two of five


@pytest.fixture
def state():
    """Five alive of eight; gradients 1 to 5 per view; every moment of the optimizer is its slot's number."""
    state = init_state(SCENE, {}, TX, optax.identity(), jax.random.key(0))
    counted = optax.tree_utils.tree_map_params(
        TX, lambda m: m + jnp.arange(1.0, 9.0).reshape(8, *[1] * (m.ndim - 1)), state.opt_theta
    )
    aux = state.aux | {"grad": 2 * jnp.arange(1.0, 9.0), "seen": jnp.full(8, 2.0)}
    return state.replace(aux=aux, opt_theta=counted)


def moments(state):
    """Adam's first moments of the means, one number a slot."""
    return np.asarray(state.opt_theta[1][0].mu["means"][:, 0])


def test_nothing_wanted_changes_nothing_but_the_statistics(state):
    after = step(jax.random.key(1), state, rules=Rules(threshold=1e9))
    jax.tree.map(np.testing.assert_array_equal, (after.theta, after.opt_theta), (state.theta, state.opt_theta))
    np.testing.assert_array_equal(after.aux["alive"], state.aux["alive"])
    assert float(after.aux["grad"].sum() + after.aux["seen"].sum() + after.aux["radius"].sum()) == 0


def test_the_largest_gradients_multiply_into_free_slots(state):
    """The size 0.035 is below this split size: two clones, of slots 4 and 3, in slots 5 and 6."""
    after = step(jax.random.key(1), state, rules=FEW._replace(split_size=1.0))
    np.testing.assert_array_equal(after.aux["alive"], np.arange(8) < 7)
    for name, x in after.theta.items():
        np.testing.assert_array_equal(x[:5], state.theta[name][:5])
        np.testing.assert_array_equal(x[5:7], state.theta[name][jnp.array([4, 3])])
    np.testing.assert_array_equal(moments(after), [1, 2, 3, 4, 5, 0, 0, 8])


def test_a_split_replaces_its_parent_by_two_smaller_ones(state):
    after = step(jax.random.key(1), state, rules=FEW._replace(split_size=0.01))
    halves = np.array([3, 4, 5, 6])
    shrunk = np.exp(after.theta["log_scales"][halves, 0])
    np.testing.assert_allclose(shrunk, 0.035 / SHRINK, rtol=1e-5)
    parents = np.asarray(state.theta["means"])[[3, 4, 4, 3]]
    distance = np.linalg.norm(np.asarray(after.theta["means"])[halves] - parents, axis=1)
    assert (distance > 0).all()
    assert (distance < 5 * 0.035).all()
    np.testing.assert_array_equal(moments(after), [1, 2, 3, 0, 0, 0, 0, 8])


def test_faint_and_huge_ones_go_and_make_room(state):
    theta = state.theta | {
        "opacity_logits": state.theta["opacity_logits"].at[0].set(-9.0),
        "log_scales": state.theta["log_scales"].at[4, 1].set(0.0),
    }
    after = step(jax.random.key(1), state.replace(theta=theta), rules=Rules(threshold=1e9))
    np.testing.assert_array_equal(after.aux["alive"], [False, True, True, True, False, False, False, False])


def test_a_full_scene_stays_full(state):
    full = state.replace(aux=state.aux | {"alive": jnp.ones(8, bool)})
    after = step(jax.random.key(1), full, rules=Rules(fraction=1.0))
    jax.tree.map(np.testing.assert_array_equal, after.theta, full.theta)
    assert bool(after.aux["alive"].all())


def test_room_for_one_goes_to_the_first(state):
    crowded = state.replace(aux=state.aux | {"alive": jnp.arange(8) < 7})
    after = step(jax.random.key(1), crowded, rules=Rules(fraction=1.0, split_size=1.0))
    np.testing.assert_array_equal(after.theta["means"][7], crowded.theta["means"][6])


def test_the_same_key_gives_the_same_scene(state):
    once, again = (step(jax.random.key(1), state, rules=FEW) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, once.theta, again.theta)


def test_long_gaussians_split_along_their_length(state):
    """A needle along its own z, turned to lie along world x: halves move along x only."""
    theta = state.theta | {
        "quats": jnp.tile(jnp.array([2**-0.5, 0, 2**-0.5, 0]), (8, 1)),
        "log_scales": jnp.tile(jnp.log(jnp.array([1e-6, 1e-6, 0.1])), (8, 1)),
    }
    after = step(jax.random.key(1), state.replace(theta=theta), rules=FEW)
    moved = np.abs(np.asarray(after.theta["means"][3:5] - theta["means"][3:5]))
    assert (moved[:, 0] > 1e-3).all()
    np.testing.assert_allclose(moved[:, 1:], 0, atol=1e-4)
