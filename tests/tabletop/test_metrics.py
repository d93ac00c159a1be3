"""Each figure where its value is known: perfect and useless objects, two Gaussians, closed-form shapes."""

import numpy as np
import pytest

from lods_jax.core.cameras import VIEWS
from lods_jax.tabletop.classifier import NONE, ClassifierOutput
from lods_jax.tabletop.metrics import (
    chamfer,
    coverage,
    floaters,
    janus_index,
    kid,
    saturation,
    surface_points,
)

SIDE, FRONT, BACK, OVERHEAD = range(4)
AROUND = np.array([FRONT, SIDE, BACK, SIDE, OVERHEAD])
RADIUS = 0.54  # of the middle ball


def reads(view, kind=0) -> ClassifierOutput:
    """The reading of a classifier that sees these views on objects of one kind."""
    view = np.array(view)
    nothing = np.zeros_like(view)
    return ClassifierOutput(np.full_like(view, kind), nothing, nothing, view, np.ones(len(view)), np.zeros((len(view), 8)))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


BALL = np.random.default_rng(0).normal(size=(4000, 3)).astype(np.float32)
BALL *= RADIUS / np.linalg.norm(BALL, axis=1, keepdims=True)
# 4,000 points on that sphere have a mean distance of 0.5 sqrt(area / n) = 0.015 from a point of it.
SPACING = 0.5 * np.sqrt(4 * np.pi * RADIUS**2 / 4000)


# --- what a judge reads -----------------------------------------------------------------------------------------------
def test_views_are_numbered_as_this_file_numbers_them():
    assert VIEWS == ("side", "front", "back", "overhead")


@pytest.mark.parametrize(
    ("read", "index"),
    [(AROUND, 0), ([FRONT] * 5, 1), ([FRONT, FRONT, BACK, SIDE, FRONT], 1 / 3), ([BACK, FRONT, FRONT, FRONT, SIDE], 1)],
)
def test_the_janus_index_is_the_share_of_fronts_among_sides_and_backs(read, index):
    assert janus_index(reads(read), AROUND) == pytest.approx(index)


def test_what_is_no_object_shows_no_front():
    assert janus_index(reads([FRONT] * 5, kind=NONE), AROUND) == 0


def test_without_a_side_or_a_back_there_is_no_janus_index():
    assert np.isnan(janus_index(reads([FRONT, FRONT]), np.array([FRONT, OVERHEAD])))


def test_kid_is_about_zero_for_two_halves_of_one_distribution_and_grows_with_their_distance(rng):
    """Unbiased: over 40 pairs of 50 images the mean is within three standard errors of 0."""
    ours, true = rng.normal(size=(2, 40, 50, 16))
    alike = np.array([kid(a, b) for a, b in zip(ours, true, strict=True)])
    assert abs(alike.mean()) < 3 * alike.std() / 40**0.5
    assert 10 * alike.std() < kid(ours[0] + 1, true[0]) < kid(ours[0] + 2, true[0])


def test_kid_is_the_same_both_ways_and_in_any_order(rng):
    ours, true = rng.normal(size=(2, 50, 16))
    assert kid(ours, true) == pytest.approx(kid(true[::-1], ours[::-1]))


def test_kid_of_a_single_image_is_refused():
    with pytest.raises(ValueError, match="kid needs at least 2 images on each side, got 1 and 5"):
        kid(np.zeros((1, 4)), np.zeros((5, 4)))


# --- colours ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("rgb", "value"),
    [((0.4, 0.4, 0.4), 0), ((0, 0, 0), 0), ((1, 1, 1), 0), ((1, 0, 0), 1), ((0, 0.2, 0), 1), ((0.8, 0.4, 0.6), 0.5)],
)
def test_saturation_is_zero_for_grey_and_one_for_a_pure_color(rgb, value):
    assert saturation(np.tile(np.float64(rgb), (4, 4, 1)), np.ones((4, 4))) == pytest.approx(value)


def test_saturation_weighs_pixels_by_their_coverage():
    assert saturation(np.array([[1.0, 0, 0], [0.5, 0.5, 0.5]]), np.array([0.25, 0.75])) == pytest.approx(0.25)


# --- shapes -----------------------------------------------------------------------------------------------------------
def test_surface_points_of_a_ball_lie_on_its_sphere_on_all_sides():
    points = surface_points("ball", 4096)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), RADIUS, atol=0.012)  # the distance that counts as a hit
    # Cameras from everywhere: a mean of 4,096 directions, none of them preferred by more than a tenth of the radius.
    np.testing.assert_allclose(points.mean(0), 0, atol=0.1 * RADIUS)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        (BALL, 0.0),
        (BALL * np.float32(1 + 0.1 / RADIUS), 0.1),  # a larger ball is 0.1 away on all sides
        (BALL + np.float32([0.04, 0, 0]), 0.02),  # |cos| is 1/2 on average over a sphere
    ],
    ids=["itself", "larger", "shifted"],
)
def test_the_chamfer_distance_to_a_ball_is_the_one_of_spheres(points, expected):
    assert abs(chamfer(points, "ball") - expected) < SPACING / 2


def test_the_true_surface_is_at_chamfer_distance_zero_and_fully_covered():
    """Also for a shape with parts, of which few rays reach the inside: enough points must be drawn to cover that."""
    points = surface_points("mug", 20_000, seed=1)
    assert chamfer(points, "mug") < SPACING
    assert coverage(points, "mug") > 0.99


def test_coverage_is_the_share_of_the_surface_that_was_found():
    assert coverage(BALL, "ball") > 0.99
    assert coverage(BALL + np.float32([3, 0, 0]), "ball") == 0
    assert coverage(BALL[BALL[:, 0] > 0], "ball") == pytest.approx(0.5, abs=0.08)  # plus a seam of 0.04 and uneven rays


def test_floaters_are_the_share_of_mass_in_the_smaller_cluster(rng):
    cluster, mass = rng.uniform(-0.3, 0.3, (3000, 3)), np.ones(3000)
    assert floaters(np.vstack([cluster, cluster + 5]), np.hstack([3 * mass, mass])) == pytest.approx(0.25)
    assert floaters(cluster, mass) == pytest.approx(0)


def test_a_floater_may_be_as_far_away_as_it_likes():
    """Cells are listed, not laid out: a grid to 1e6 would hold 1e21 of them."""
    assert floaters(np.array([[0.0, 0, 0], [1e6, 1e6, -1e6]]), np.array([9.0, 1.0])) == pytest.approx(0.1)


def test_cells_that_touch_by_a_corner_are_connected_and_thin_fog_connects_nothing():
    cells = np.array([[0.05, 0.05, 0.05], [0.15, 0.15, 0.15], [0.25, 0.25, 0.25]])
    assert floaters(cells, np.ones(3)) == pytest.approx(0)
    assert floaters(cells, np.array([1, 0.005, 1])) == pytest.approx(1.005 / 2.005)


def test_without_mass_there_is_no_share_of_floaters():
    assert np.isnan(floaters(np.zeros((3, 3)), np.zeros(3)))
