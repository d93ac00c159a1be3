"""The gates of a prior of several views on priors and images whose figures are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lods_jax.core.cameras import VIEWS as VIEW_WORDS
from lods_jax.core.cameras import turntable
from lods_jax.core.noise_schedule import STABLE_DIFFUSION, signal_and_noise
from lods_jax.scenes.gaussian_rasterizer_reference import rasterize_reference
from lods_jax.tabletop import evaluate_multi_view as gates
from lods_jax.tabletop.classifier import ClassifierOutput
from lods_jax.tabletop.dataset import COLORS, KINDS, PATTERNS, Caption, Renders
from tests.tabletop.test_evaluate import HEARS_COLORS

V = 4
CAMERA = turntable(V, 15.0)


def looks(prior):
    """The prior, expecting a brightness that the camera decides: 0.5 plus a tenth of where it stands."""

    def predict(weights, psi, z_t, t, cond):
        a, s = signal_and_noise(STABLE_DIFFUSION, t, z_t)
        return (z_t - a * brightness(cond.camera)) / s

    return prior._replace(predict=predict)


def brightness(c2w):
    return 0.5 + 0.1 * jnp.asarray(c2w)[:, 3, None, None, None]


@pytest.fixture(scope="module")
def renders():
    """A group of every kind, as bright as `looks` expects."""
    rng, n = np.random.default_rng(0), 12 * V
    kind = np.arange(12).repeat(V)
    rows = np.stack([kind, *(rng.integers(m, size=12).repeat(V) for m in (8, 3)), rng.integers(4, size=n)], 1)
    place = [np.tile(np.asarray(x), 12) for x in (CAMERA.azimuth, CAMERA.elevation, CAMERA.radius)]
    rgb = np.zeros((n, 8, 8, 3), np.uint8)
    group = Renders(rgb, rows, *place)
    bright = np.broadcast_to(255 * brightness(gates.matrices_of(group)), rgb.shape)
    return group._replace(rgb=bright.astype(np.uint8))


def test_cameras_are_those_that_the_renders_were_made_by(renders):
    expected = np.tile(np.asarray(CAMERA.c2w).reshape(V, 16), (12, 1))
    np.testing.assert_allclose(gates.matrices_of(renders), expected, atol=1e-5)


def test_exchanged_cameras_make_no_difference_to_a_prior_that_does_not_see_them(renders):
    swap = gates.group_swap(HEARS_COLORS._replace(views=V), {}, renders, draws=2)
    assert swap["camera"] == swap["kind"] == (0, 0)
    assert swap["color"][0] != 0


def test_exchanged_cameras_disturb_a_prior_that_sees_them_and_wrong_words_do_not(renders):
    swap = gates.group_swap(looks(HEARS_COLORS._replace(views=V)), {}, renders, draws=2)
    assert swap["camera"][0] > 1
    assert swap["color"] == swap["kind"] == (0, 0)


# --- samples ----------------------------------------------------------------------------------------------------------------
def test_views_side_by_side_come_apart_in_their_order():
    views = np.arange(2.0 * V * 3 * 3 * 3).reshape(2, V, 3, 3, 3)
    np.testing.assert_array_equal(gates.split_views(np.concatenate(list(views.transpose(1, 0, 2, 3, 4)), 2), V), views)


def test_a_view_reads_as_its_camera_says_where_there_is_a_front():
    ball, mug = Caption("ball", "red"), Caption("mug", "blue", "striped", "overhead")
    words = ("front", "side", "back", "side")
    assert gates.view_captions([ball, mug], V) == [ball] * V + [mug._replace(view=word) for word in words]


def test_one_wrong_view_costs_a_whole_object(monkeypatch):
    asked = [Caption("mug", "red"), Caption("car", "blue", "striped")]
    said = gates.view_captions(asked, V)
    right = ClassifierOutput(
        *(np.array([values.index(getattr(c, name)) for c in said]) for name, values in
          (("kind", KINDS), ("color", list(COLORS)), ("pattern", PATTERNS), ("view", VIEW_WORDS))),
        np.ones(2 * V), np.zeros((2 * V, 1)),
    )  # fmt: skip
    images = np.zeros((2, V, 4, 4, 3))
    monkeypatch.setattr(gates, "classify", lambda params, rgb: right)
    assert set(gates.read_samples(images, asked, None).values()) == {1}
    view = right.view.copy()
    view[2] = VIEW_WORDS.index("front")  # a second front
    monkeypatch.setattr(gates, "classify", lambda params, rgb: right._replace(view=view))
    found = gates.read_samples(images, asked, None)
    assert (found["whole objects"], found["view"], found["kind"]) == (0.5, 7 / 8, 1)


# --- consistency ------------------------------------------------------------------------------------------------------------
def discs(radii):
    """A red disc on white in each view."""
    y, x = np.mgrid[:16, :16] - 7.5
    inside = np.hypot(y, x)[None, ..., None] < np.array(radii)[:, None, None, None]
    return np.where(inside, [1.0, 0.1, 0.1], 1.0).astype(np.float32)


def test_one_object_explains_views_of_one_size_better_than_of_many(monkeypatch):
    for name, value in (("EDGE", 16), ("COUNT", 48), ("STEPS", 40)):
        monkeypatch.setattr(gates, name, value)

    def rasterize(means, *rest, capacity, **shape):
        """The reference, which compiles in a tenth of the time."""
        return rasterize_reference(means, *rest, **shape, means2d_probe=jnp.zeros((V, len(means), 2)))

    monkeypatch.setattr(gates, "rasterize", rasterize)
    monkeypatch.setattr(gates, "fitted_renders", jax.jit(gates.fitted_renders.__wrapped__))
    same, many = gates.fit_psnr(discs([5, 5, 5, 5]), CAMERA), gates.fit_psnr(discs([7, 2, 6, 1]), CAMERA)
    assert same > many + 1
