"""Laws of an image that is one view of a group: where its group looks from, what the prior sees in its place, and what moves."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lods_jax.core.cameras import Orbit, orbit_camera, sample_orbit
from lods_jax.core.random import group_keys
from lods_jax.core.types import Reference, ReferenceImage
from lods_jax.distillation.known_views import ReferenceView, groups_around_image, show_image
from lods_jax.distillation.objectives import sds
from lods_jax.distillation.train_step import init_state, make_train_step
from lods_jax.priors.gaussian import gaussian
from lods_jax.scenes.images import pixels

V, B = 4, 8
ORBIT = Orbit(radius=(2.0, 4.0), front=80.0, above=85.0)
CAMERA = orbit_camera(*(jnp.array([x]) for x in (3.0, 0.3, 2.5, 0.8)), ORBIT)
VIEWS = jnp.arange(B)
DRAWN = sample_orbit(group_keys(jax.random.split(jax.random.key(0), B), V), VIEWS, B, ORBIT, V)


@pytest.mark.parametrize("step", [0, 1])
def test_every_second_group_stands_around_the_object_beside_the_image(step):
    camera, known = groups_around_image(DRAWN, CAMERA, VIEWS, jnp.int32(step), V, ORBIT)
    beside, free = slice(V * step, V * step + V), slice(V - V * step, 2 * V - V * step)
    assert np.flatnonzero(known).tolist() == [V * step]
    jax.tree.map(np.testing.assert_array_equal, *(jax.tree.map(lambda x: x[free], c) for c in (camera, DRAWN)))
    turn = jnp.arange(V) * jnp.pi / 2
    alike = (jnp.full(V, x[0]) for x in (CAMERA.elevation, CAMERA.radius, CAMERA.fov_y))
    wanted = orbit_camera(CAMERA.azimuth + turn, *alike, ORBIT)
    for name in ("c2w", "azimuth", "elevation", "radius", "fov_y", "view"):
        np.testing.assert_allclose(getattr(camera, name)[beside], getattr(wanted, name), atol=1e-5, err_msg=name)
    np.testing.assert_array_equal(camera.c2w[V * step], CAMERA.c2w[0])


def test_the_image_is_shown_on_the_background_of_its_render_and_the_others_stay():
    rgb, opacity = jnp.full((2, 4, 4, 3), 0.3), jnp.ones((2, 4, 4, 1)).at[0, 1, 2].set(0.0)
    rgb = rgb.at[0, 1, 2].set(jnp.array([0.7, 0.6, 0.5]))
    mask = jnp.zeros((8, 8, 1)).at[:, 4:].set(1.0)
    image = ReferenceImage(jnp.broadcast_to(jnp.where(mask > 0, 0.1, 1.0), (8, 8, 3)), mask, CAMERA)
    shown = show_image(rgb, opacity, image, jnp.array([True, False]))
    np.testing.assert_array_equal(shown[1], rgb[1])
    np.testing.assert_allclose(shown[0, :, 3], 0.1, atol=1e-6)
    np.testing.assert_allclose(shown[0, :, 0], np.broadcast_to([0.7, 0.6, 0.5], (4, 3)), atol=1e-6)


# --- the step ---------------------------------------------------------------------------------------------------------------
SINGLE = gaussian({"": 0.2, "y": 1.0}, 0.5)
TEXTS = {"prompt": SINGLE.embed({}, ["y"] * 4), "null": SINGLE.embed({}, [""] * 4)}


def coupled(weights, psi, z_t, t, cond):
    """The closed form plus the first view of the group: what only attention over a group can tell."""
    first = jnp.repeat(z_t[::V], V, 0)
    return SINGLE.predict(weights, psi, z_t, t, cond) + 0.1 * first


def gradient(predict, joins, seen):
    """Of one pixel, by a step 0 with one group beside the image and one free, the image being of one grey."""
    scene = pixels(1, 1)
    view = ReferenceView(scene, lambda render, image, step: {}, joins)
    build = make_train_step(
        scene, SINGLE._replace(predict=predict, views=V), sds(3.0), window=lambda step: (20, 980), batch=B, reference_view=view,
        cameras=lambda keys, views: sample_orbit(keys, views, B, ORBIT, V), tx_theta=optax.sgd(0.1), tx_psi=optax.sgd(0.1),
    )  # fmt: skip
    state = init_state(scene, {}, optax.sgd(0.1), optax.sgd(0.1), jax.random.key(2))
    image = ReferenceImage(jnp.full((1, 1, 3), seen), jnp.ones((1, 1, 1)), CAMERA)
    step = jax.jit(partial(build.compute_grads, state, {}, TEXTS, Reference(image=image), jax.random.key(0)))
    return step(VIEWS).g_theta["rgb"], step(VIEWS[V:]).g_theta["rgb"]


def test_the_image_tells_the_other_views_of_its_group_through_the_prior_alone():
    (dark, free), (bright, _) = gradient(coupled, True, 0.0), gradient(coupled, True, 1.0)
    assert np.abs(dark - bright).max() > 1e-3
    without, free_without = gradient(coupled, False, 0.0)
    np.testing.assert_array_equal(free, free_without)  # the other group sees nothing of it
    assert np.abs(dark - without).max() > 1e-3


def test_the_view_of_the_image_itself_pulls_at_nothing():
    """Where views do not see each other, the image changes nothing, and its own view is missing from the sum."""
    dark, free = gradient(SINGLE.predict, True, 0.0)
    bright, _ = gradient(SINGLE.predict, True, 1.0)
    np.testing.assert_array_equal(dark, bright)
    without, _ = gradient(SINGLE.predict, False, 0.0)
    assert np.abs(dark - without).max() > 1e-3
    assert np.abs(dark - free).max() > 1e-3  # the three others do pull
