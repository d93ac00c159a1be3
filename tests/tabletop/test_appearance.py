"""What a person sees: the true object is ideal in every figure, and each damage moves the figure that is named after it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lods_jax.core.images import oklab
from lods_jax.tabletop.appearance import appearance, prepare_truth
from lods_jax.tabletop.damage import damage
from lods_jax.tabletop.dataset import Caption, render_caption
from lods_jax.tabletop.measure import eyes, true_appearance
from lods_jax.tabletop.objects import part_count

HOUSE, SIZE = Caption("house", "purple"), 64
IDEAL = {"tint": 0, "color_error": 0, "speckle": 1, "floater_pixels": 0, "part_recall": 1, "sharpness": 1}
spoil = jax.jit(damage, static_argnums=0)


@pytest.fixture(scope="module")
def truth():
    return true_appearance(HOUSE, SIZE)


def show(variation=0.5, without=-1):
    return np.asarray(render_caption(HOUSE, eyes(), SIZE, variation=variation, without=without))


def spoiled(name, u, moves_outline):
    """Colours and opacity after a damage. What moves the outline does the same to a picture of the silhouette."""
    rgba, keys, u = show(), jax.random.split(jax.random.key(0), 24), jnp.full(24, u)
    rgb, silhouette = rgba[..., :3], 1 - rgba[..., 3:].repeat(3, -1)
    opacity = np.clip(1 - np.asarray(spoil(name, keys, silhouette, u)).mean(-1), 0, 1) if moves_outline else rgba[..., 3]
    return np.asarray(spoil(name, keys, rgb, u)), opacity


@pytest.mark.parametrize("variation", [0.1, 0.5, 0.9])
def test_the_true_object_is_ideal_in_all_proportions(truth, variation):
    rgba = show(variation)
    figures = appearance(rgba[..., :3], rgba[..., 3], truth)
    assert figures.keys() == IDEAL.keys()
    # The median filter takes the corners of parts away, and walls of another width cut other pixels.
    tolerance = {"tint": 0.003, "color_error": 0.005, "speckle": 0.1, "floater_pixels": 0, "part_recall": 0.05, "sharpness": 0.05}
    for name, ideal in IDEAL.items():
        assert abs(figures[name] - ideal) <= tolerance[name], name


@pytest.mark.parametrize(
    ("name", "figure", "others"),
    [
        ("tinted", "tint", {"color_error": 0.01, "speckle": 0.1, "floater_pixels": 0, "part_recall": 0.08, "sharpness": 0.1}),
        ("burnt", "color_error", {"tint": 0.01, "speckle": 0.3, "floater_pixels": 0}),
        ("speckled", "speckle", {"floater_pixels": 0, "part_recall": 0.05}),
        ("floaters", "floater_pixels", {"tint": 0.02, "color_error": 0.03, "part_recall": 0.05}),
        ("holes", "part_recall", {"tint": 0.01, "color_error": 0.02, "sharpness": 0.1}),
        ("smeared", "sharpness", {"tint": 0.02, "color_error": 0.05, "speckle": 0.3, "floater_pixels": 0.01, "part_recall": 0.1}),
    ],
)
def test_a_damage_moves_its_own_figure_with_its_strength_and_others_little(truth, name, figure, others):
    see = lambda u: appearance(*spoiled(name, u, name in ("floaters", "holes", "smeared")), truth)  # noqa: E731
    seen = [see(u) for u in (0.0, 0.25, 0.5, 1.0)]
    away = np.abs([one[figure] - IDEAL[figure] for one in seen])
    assert np.all(np.diff(away) > 0)
    for other, most in others.items():
        assert abs(seen[2][other] - seen[0][other]) <= most, other


@pytest.mark.parametrize("part", range(part_count("house")))
def test_a_part_that_is_missing_costs_its_share_of_the_parts(truth, part):
    """A fifth for each of body, roof, door, windows and chimney, however small; near other parts some of it seems to be there."""
    rgba = show(without=part)
    assert appearance(rgba[..., :3], rgba[..., 3], truth)["part_recall"] == pytest.approx(1 - 1 / 5, abs=0.06)


def test_nothing_has_no_part_and_no_looks(truth):
    nothing = appearance(np.ones((24, SIZE, SIZE, 3), np.float32), np.zeros((24, SIZE, SIZE), np.float32), truth)
    assert nothing["part_recall"] == pytest.approx(0, abs=1e-3)  # pixels of an outline are almost background
    assert nothing["sharpness"] == pytest.approx(0, abs=1e-3)
    assert np.isnan([nothing[name] for name in ("tint", "color_error", "speckle", "floater_pixels")]).all()


def disc(color, radius=20):
    """An even disc on white in one view, as rgba [1 64 64 4]."""
    y, x = np.mgrid[:64, :64] - 31.5
    inside = np.hypot(x, y)[None, ..., None] < radius
    return np.where(inside, np.float32([*color, 1]), np.float32([1, 1, 1, 0])).astype(np.float32)


prepare = partial(prepare_truth, without=[disc((1, 1, 1), 0)], scale=40.0)


def test_what_has_no_grey_has_no_tint_and_what_is_grey_no_colour_to_err_in():
    red, grey = disc((0.8, 0.1, 0.1)), disc((0.5, 0.5, 0.5))
    seen = {name: appearance(x[..., :3], x[..., 3], prepare(x)) for name, x in (("red", red), ("grey", grey))}
    assert np.isnan(seen["red"]["tint"])
    assert np.isnan(seen["grey"]["color_error"])
    assert seen["red"]["color_error"] == seen["grey"]["tint"] == 0


def test_tint_is_the_chroma_of_a_cast_on_grey():
    grey, cast = disc((0.5, 0.5, 0.5)), disc((0.6, 0.5, 0.5))
    expected = np.hypot(*oklab(np.float32([0.6, 0.5, 0.5]))[1:])
    assert appearance(cast[..., :3], cast[..., 3], prepare(grey))["tint"] == pytest.approx(expected, abs=1e-4)


def test_floater_pixels_are_the_share_that_does_not_touch_the_object():
    true, ours = disc((0.5, 0.5, 0.5)), disc((0.5, 0.5, 0.5))
    ours[0, :5, :5] = 0.5, 0.5, 0.5, 1
    share = 25 / (25 + true[..., 3].sum())
    see = lambda: appearance(ours[..., :3], ours[..., 3], prepare(true))["floater_pixels"]  # noqa: E731
    assert see() == pytest.approx(share, rel=1e-5)
    diagonal = np.arange(5, 25)
    ours[0, diagonal, diagonal] = 0.5, 0.5, 0.5, 1  # a thread from the square to the disc
    assert see() == 0
