"""Particles do not see each other: several scenes as one are, bit for bit, the scenes one by one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lods_jax.core.cameras import turntable
from lods_jax.scenes.ensemble import ensemble, merged, shared_out
from lods_jax.scenes.gaussians import gaussians

ONE = gaussians(height=16, width=16, intersections=512, capacity=32, count=32, size=0.2, background=lambda key: jnp.ones(3))
N, B = 2, 6
TWO = ensemble(ONE, N)
CAMERA, KEYS = turntable(B), jax.random.split(jax.random.key(1), B)


def of(tree, i):
    return jax.tree.map(lambda x: x[i], tree)


def test_views_are_shared_out_and_merged_in_their_order():
    views = np.arange(B)
    np.testing.assert_array_equal(shared_out(views, N), [[0, 2, 4], [1, 3, 5]])
    np.testing.assert_array_equal(merged(shared_out(views, N)), views)


def shown_and_pulled(scene, theta, aux, camera, keys, means2d_probe, times=1):
    """The render, the gradient of all that it shows, and the statistics after it, in which the probe's counts so many times."""
    render, pullback = jax.vjp(
        lambda theta, means2d_probe: scene.render(theta, aux, camera, keys, means2d_probe), theta, means2d_probe
    )
    g_theta, means2d_grad = pullback(jax.tree.map(ones, render))
    return render, g_theta, scene.update_stats(aux, jax.tree.map(lambda g: times * g, means2d_grad), render)


def ones(x):
    return jnp.ones_like(x) if jnp.issubdtype(x.dtype, jnp.floating) else np.zeros(x.shape, jax.dtypes.float0)


def test_view_i_shows_particle_i_modulo_n_and_pulls_at_no_other():
    theta, aux = TWO.init(jax.random.key(0))
    assert not np.array_equal(theta["means"][0], theta["means"][1])
    render, g_theta, after = jax.jit(partial(shown_and_pulled, TWO))(theta, aux, CAMERA, KEYS, TWO.means2d_probe(aux, B))
    # Statistics are as if the particle had the batch alone: its views' gradients are not thinned by the others.
    alone = jax.jit(partial(shown_and_pulled, ONE, times=N))
    for i in range(N):
        mine, views = of((theta, aux), i), of(shared_out((CAMERA, KEYS), N), i)
        seen, pulled, counted = alone(*mine, *views, ONE.means2d_probe(mine[1], B // N))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), of(shared_out(render, N), i), seen)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), of(g_theta, i), pulled)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), of(after, i), counted)


def test_views_that_cannot_be_shared_out_are_refused():
    theta, aux = TWO.init(jax.random.key(0))
    with pytest.raises(ValueError, match="multiple of 2 views on each device, got 3"):
        TWO.render(theta, aux, turntable(3), KEYS[:3], TWO.means2d_probe(aux, 3))
