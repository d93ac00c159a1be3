"""A key follows from (seed, step, view, name) and from nothing else, and no two of them are alike."""

import jax
import jax.numpy as jnp
import numpy as np

from lods_jax.core.random import split_named, step_key, view_keys

SEED = jax.random.key(0)


def bits(keys) -> np.ndarray:
    """The raw words of keys, one row a key."""
    return np.asarray(jax.random.key_data(keys)).reshape(-1, 2)


def test_keys_have_the_names_that_were_asked_for_in_that_order():
    keys = split_named(SEED, "camera render score")
    assert keys._fields == ("camera", "render", "score")
    assert keys.render is keys[1]


def test_no_two_names_share_a_key_and_none_has_their_parents():
    keys = bits(jnp.stack([SEED, *split_named(SEED, "camera render score fit")]))
    assert len(np.unique(keys, axis=0)) == 5


def test_no_two_seeds_steps_or_views_share_a_key():
    keys = [view_keys(jax.random.key(seed), step, jnp.arange(8)) for seed in range(3) for step in range(4)]
    assert len(np.unique(bits(jnp.concatenate(keys)), axis=0)) == 3 * 4 * 8


def test_view_keys_do_not_depend_on_how_views_are_split():
    views = jnp.arange(8)
    parts = [view_keys(SEED, 5, views[part]) for part in (slice(0, 3), slice(3, 8))]
    np.testing.assert_array_equal(bits(jnp.concatenate(parts)), bits(view_keys(SEED, 5, views)))


def test_a_step_that_is_traced_has_the_key_of_the_same_step_in_python():
    traced = jax.jit(step_key)(SEED, jnp.asarray(7))
    np.testing.assert_array_equal(bits(traced), bits(step_key(SEED, 7)))
