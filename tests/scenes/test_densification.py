"""Laws of refinement on a handful of Gaussians whose statistics are set by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.ndimage

from lods_jax.core.cameras import turntable
from lods_jax.distillation.train_step import init_state
from lods_jax.scenes.densification import CELL, SHRINK, DensifyStrategy, connected_pieces, densify, relocate, share
from lods_jax.scenes.gaussians import gaussians

TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
SCENE = gaussians(height=8, width=8, intersections=64, capacity=8, count=5)
step = jax.jit(partial(densify, tx=TX), static_argnames="strategy")
FEW = DensifyStrategy(fraction=0.4)  # two of five


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
    after = step(jax.random.key(1), state, strategy=DensifyStrategy(grow_grad2d=1e9))
    jax.tree.map(np.testing.assert_array_equal, (after.theta, after.opt_theta), (state.theta, state.opt_theta))
    np.testing.assert_array_equal(after.aux["alive"], state.aux["alive"])
    assert float(after.aux["grad"].sum() + after.aux["seen"].sum() + after.aux["radius"].sum()) == 0


def test_the_largest_gradients_multiply_into_free_slots(state):
    """The size 0.035 is below this split size: two clones, of slots 4 and 3, in slots 5 and 6."""
    after = step(jax.random.key(1), state, strategy=FEW._replace(grow_scale3d=1.0))
    np.testing.assert_array_equal(after.aux["alive"], np.arange(8) < 7)
    for name, x in after.theta.items():
        np.testing.assert_array_equal(x[:5], state.theta[name][:5])
        np.testing.assert_array_equal(x[5:7], state.theta[name][jnp.array([4, 3])])
    np.testing.assert_array_equal(moments(after), [1, 2, 3, 4, 5, 0, 0, 8])


def test_a_split_replaces_its_parent_by_two_smaller_ones(state):
    after = step(jax.random.key(1), state, strategy=FEW._replace(grow_scale3d=0.01))
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
    after = step(jax.random.key(1), state.replace(theta=theta), strategy=DensifyStrategy(grow_grad2d=1e9))
    np.testing.assert_array_equal(after.aux["alive"], [False, True, True, True, False, False, False, False])


def test_a_full_scene_stays_full(state):
    full = state.replace(aux=state.aux | {"alive": jnp.ones(8, bool)})
    after = step(jax.random.key(1), full, strategy=DensifyStrategy(fraction=1.0))
    jax.tree.map(np.testing.assert_array_equal, after.theta, full.theta)
    assert bool(after.aux["alive"].all())


def test_room_for_one_goes_to_the_first(state):
    crowded = state.replace(aux=state.aux | {"alive": jnp.arange(8) < 7})
    after = step(jax.random.key(1), crowded, strategy=DensifyStrategy(fraction=1.0, grow_scale3d=1.0))
    np.testing.assert_array_equal(after.theta["means"][7], crowded.theta["means"][6])


def test_the_same_key_gives_the_same_scene(state):
    once, again = (step(jax.random.key(1), state, strategy=FEW) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, once.theta, again.theta)


def test_long_gaussians_split_along_their_length(state):
    """A needle along its own z, turned to lie along world x: halves move along x only."""
    theta = state.theta | {
        "quats": jnp.tile(jnp.array([2**-0.5, 0, 2**-0.5, 0]), (8, 1)),
        "log_scales": jnp.tile(jnp.log(jnp.array([1e-6, 1e-6, 0.1])), (8, 1)),
    }
    after = step(jax.random.key(1), state.replace(theta=theta), strategy=FEW)
    moved = np.abs(np.asarray(after.theta["means"][3:5] - theta["means"][3:5]))
    assert (moved[:, 0] > 1e-3).all()
    np.testing.assert_allclose(moved[:, 1:], 0, atol=1e-4)


# --- relocation -------------------------------------------------------------------------------------------------------------
move = jax.jit(partial(relocate, tx=TX), static_argnames=("dead", "growth", "prune_pieces"))


def with_opacity(state, *opacity):
    o = jnp.asarray(opacity)
    return state.replace(theta=state.theta | {"opacity_logits": jnp.log(o) - jnp.log1p(-o)})


def test_where_nobody_is_dead_and_nothing_grows_relocation_changes_nothing(state):
    after = move(jax.random.key(1), state, growth=0.0)
    jax.tree.map(np.testing.assert_array_equal, (after.theta, after.opt_theta), (state.theta, state.opt_theta))
    np.testing.assert_array_equal(after.aux["alive"], state.aux["alive"])


def test_the_dead_move_to_the_living_and_start_without_momentum(state):
    """Slots 1 and 3 are dead and slot 0 is the only place with an opacity to speak of."""
    state = with_opacity(state, 0.9, 1e-3, 6e-3, 1e-3, 6e-3, 0.1, 0.1, 0.1)
    after = move(jax.random.key(0), state, growth=0.0)
    np.testing.assert_array_equal(after.aux["alive"], state.aux["alive"])
    for slot in (1, 3):
        np.testing.assert_array_equal(after.theta["means"][slot], state.theta["means"][0])
    np.testing.assert_array_equal(moments(after), [0, 0, 3, 0, 5, 6, 7, 8])
    opacity = jax.nn.sigmoid(after.theta["opacity_logits"])
    np.testing.assert_allclose(opacity[jnp.array([0, 1, 3])], 1 - 0.1 ** (1 / 3), rtol=1e-4)


def test_growth_stops_at_the_cap(state):
    counts = []
    for i in range(6):
        state = move(jax.random.key(i), state, growth=0.2)
        counts.append(int(state.aux["alive"].sum()))
    assert counts == [6, 8, 8, 8, 8, 8]  # a fifth of 5 and of 6, rounded up; capacity 8


def test_a_scene_of_the_dead_stays_as_it_is(state):
    state = with_opacity(state, *[1e-4] * 8)
    after = move(jax.random.key(1), state)
    jax.tree.map(np.testing.assert_array_equal, after.theta, state.theta)


@pytest.mark.parametrize("n", [1, 2, 3, 10, 51])
@pytest.mark.parametrize("opacity", [0.01, 0.3, 0.9, 0.999])
def test_those_who_share_a_place_stop_as_much_light_as_one_did(n, opacity):
    """At the centre, and in the integral along a line: the two conditions that eq. 9 of the paper solves, by quadrature."""
    new, factor = share(jnp.array([opacity]), jnp.array([n]))
    x = np.linspace(-12, 12, 4001)
    one = opacity * np.exp(-0.5 * x**2)
    together = 1 - (1 - float(new[0]) * np.exp(-0.5 * (x / float(factor[0])) ** 2)) ** n
    np.testing.assert_allclose(together.max(), opacity, rtol=1e-4)
    np.testing.assert_allclose(together.sum(), one.sum(), rtol=2e-3)


def test_relocation_leaves_the_picture_as_it_is():
    """Twenty dead of sixty move; what is left of a difference is the shape of the falling edges."""
    options = {"height": 32, "width": 32, "intersections": 480, "capacity": 60, "count": 60, "size": 0.15}
    scene = gaussians(**options, background=lambda key: jnp.ones(3))
    state = init_state(scene, {}, TX, optax.identity(), jax.random.key(2))
    rng, dead = np.random.default_rng(0), np.arange(60) < 20
    state = with_opacity(state, *np.where(dead, 1e-4, rng.uniform(0.2, 0.9, 60)))
    state = state.replace(theta=state.theta | {"sh": jnp.asarray(rng.normal(size=(60, 1, 3)), jnp.float32)})
    after = move(jax.random.key(3), state, growth=0.0)
    keys, means2d_probe = jax.random.split(jax.random.key(0), 1), scene.means2d_probe(state.aux, 1)
    look = jax.jit(lambda theta: scene.render(theta, state.aux, turntable(1), keys, means2d_probe).rgb)
    error = lambda theta: float(jnp.abs(look(theta) - look(state.theta)).mean())  # noqa: E731
    copied = jax.nn.sigmoid(state.theta["opacity_logits"]).at[:20].set(0.5)
    careless = state.theta | {"means": after.theta["means"], "opacity_logits": jnp.log(copied) - jnp.log1p(-copied)}
    assert error(after.theta) < 0.01
    assert error(after.theta) < 0.2 * error(careless)


# --- pieces -----------------------------------------------------------------------------------------------------------
def test_pieces_are_those_of_an_independent_labelling():
    """A hundred random points in few cells: the mass of each piece as scipy.ndimage labels it."""
    rng = np.random.default_rng(0)
    means = rng.uniform(-0.6, 0.6, (400, 3)).astype(np.float32)
    mass = rng.uniform(0.5, 1.0, 400).astype(np.float32)
    mass[::7] = 0
    cells = np.floor(means / np.float32(CELL)).astype(int) + 16
    held = np.zeros((32, 32, 32))
    np.add.at(held, tuple(cells.T), mass)
    labels, n = scipy.ndimage.label(held > 0.01 * held.max(), np.ones((3, 3, 3)))
    assert n > 5
    total = np.append(0, scipy.ndimage.sum_labels(held, labels, np.arange(1, n + 1)))
    np.testing.assert_allclose(jax.jit(connected_pieces)(means, mass), total[labels[tuple(cells.T)]], rtol=1e-5)


def test_a_piece_in_the_air_is_pruned_and_the_object_is_not(state):
    """Three Gaussians at the origin, two of half their opacity far away."""
    means = state.theta["means"].at[:5].set(jnp.array([[0.0, 0, 0]] * 3 + [[0.7, 0, 0]] * 2))
    state = state.replace(theta=state.theta | {"means": means})
    for share_of_largest, left in ((0.0, 5), (0.5, 5), (0.7, 3)):
        strategy = DensifyStrategy(grow_grad2d=1e9, prune_pieces=share_of_largest)
        assert int(step(jax.random.key(1), state, strategy=strategy).aux["alive"].sum()) == left


def test_what_hangs_in_the_air_moves_into_the_object(state):
    """The same five: nobody is lost, and all are at the origin."""
    means = state.theta["means"].at[:5].set(jnp.array([[0.0, 0, 0]] * 3 + [[0.7, 0, 0]] * 2))
    state = state.replace(theta=state.theta | {"means": means})
    for share_of_largest, away in ((0.0, 2), (0.5, 2), (0.7, 0)):
        after = move(jax.random.key(1), state, growth=0.0, prune_pieces=share_of_largest)
        assert int(after.aux["alive"].sum()) == 5
        assert int((after.theta["means"][:5, 0] > 0.5).sum()) == away
