"""Damages leave an image alone at strength 0, spoil it more the stronger they are, and spoil nothing but what they name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lods_jax.tabletop import damage as d

SIZE = 32
STRENGTHS = jnp.array([0.0, 0.25, 0.5, 0.75, 1.0])
apply = jax.jit(d.damage, static_argnums=0)


@pytest.fixture(scope="module")
def disc():
    """A red disc with a white middle on grey."""
    y, x = np.mgrid[:SIZE, :SIZE]
    r = np.hypot(x - 16, y - 16)[..., None]
    return np.float32(np.where(r < 5, 0.9, np.where(r < 10, (0.8, 0.1, 0.1), 0.6)))


@pytest.fixture(scope="module", params=d.DAMAGES)
def spoiled(request, disc):
    """Each damage at five strengths, with one and the same key."""
    keys = jnp.broadcast_to(jax.random.key(3), (5,))
    return request.param, np.asarray(apply(request.param, keys, np.repeat(disc[None], 5, 0), STRENGTHS))


def test_no_strength_is_no_damage_and_full_strength_is_seen(spoiled, disc):
    _, images = spoiled
    np.testing.assert_allclose(images[0], disc, atol=2e-3)  # a kernel of width 0 still rounds
    assert float(d.error(images[-1], disc)) > 0.02  # the white middle, all that a tint takes, is an eighth of the disc
    assert np.all((images >= -1e-6) & (images <= 1 + 1e-6))


def test_error_grows_with_strength(spoiled, disc):
    """From one strength to the next but one: needles may cover each other."""
    name, images = spoiled
    errors = np.asarray(d.error(images, np.repeat(disc[None], 5, 0)))
    assert np.all(errors[2:] > errors[:-2]), name


def test_a_tint_colours_greys_alone_and_grain_stays_on_the_object(disc):
    inside, grey = d.object_mask(disc)[..., 0] > 0, np.ptp(disc, -1) < 0.1
    one = lambda name: np.asarray(apply(name, jax.random.key(0)[None], disc[None], jnp.ones(1)))[0]  # noqa: E731
    tinted, grainy = one("tinted"), one("speckled")
    np.testing.assert_array_equal(tinted[~(grey & inside)], disc[~(grey & inside)])
    assert np.ptp(tinted[grey & inside], -1).mean() > 0.1
    np.testing.assert_array_equal(grainy[~inside], disc[~inside])


def test_the_error_of_a_lost_object_is_its_contrast(disc):
    """Where the object is gone, colours differ by their distance to the background, averaged over the object's area."""
    gone = np.full_like(disc, 0.6)
    inside = np.asarray(d.object_mask(disc))[..., 0] > 0
    np.testing.assert_allclose(d.error(gone, disc), np.abs(disc - 0.6)[inside].mean(), rtol=1e-5)


def test_no_blur_is_the_identity_and_blur_leaves_an_even_image_alone(disc):
    blur = jax.jit(d.blur)
    np.testing.assert_allclose(blur(disc, np.float32(0)), disc, atol=1e-6)
    np.testing.assert_allclose(blur(np.full_like(disc, 0.3), np.float32(0.1)), 0.3, atol=1e-6)
