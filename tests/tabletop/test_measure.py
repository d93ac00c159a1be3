"""The figures of a generated object: what the true object gets, and what a wrong one gets."""

import numpy as np
import pytest

from lods_jax.core.cameras import VIEWS
from lods_jax.core.types import Render
from lods_jax.tabletop.dataset import parse_caption, render_caption
from lods_jax.tabletop.measure import EDIT_FIGURES, FIGURES, eyes, measure, measure_edit, visible_points
from lods_jax.tabletop.metrics import _first_hits, surface_points

POINTS, MASS = np.zeros((1, 3), np.float32), np.ones(1, np.float32)


def show(caption):
    """Cameras -> the true object as a scene would render it, depth along the optical axis included."""

    def look(camera):
        rgba = np.asarray(render_caption(caption, camera, 64))
        points, hit = (np.asarray(x) for x in _first_hits(parse_caption(caption).kind, camera))
        c2w = np.asarray(camera.c2w)
        depth = np.einsum("bhwc,bc->bhw", np.where(hit[..., None] > 0, points, 0) - c2w[:, None, None, :3, 3], c2w[:, :3, 2])
        # Soft at the outline as colours are, and above 1/2 where the depth is known.
        opacity = np.where(hit > 0, np.maximum(rgba[..., 3], 0.51), np.minimum(rgba[..., 3], 0.49))
        return Render(rgba[..., :3], opacity[..., None].astype(np.float32), depth[..., None].astype(np.float32), {})

    return look


@pytest.fixture(scope="module")
def car():
    return {
        shown: measure("a yellow car", show(shown), POINTS, MASS) for shown in ("a yellow car", "a blue car", "a yellow house")
    }


def test_the_true_object_gets_the_best_of_every_figure(car):
    true = car["a yellow car"]
    assert set(true) == set(FIGURES)
    assert true["kind"] == true["color"] == true["pattern"] == 1
    assert true["view"] > 0.9
    assert true["janus"] < 0.1
    assert -0.5 < true["reward"] <= 0
    assert abs(true["kid"]) < 0.3
    assert true["chamfer"] < 0.01
    assert true["coverage"] > 0.98
    assert true["floaters"] == 0
    assert abs(true["saturation"]) < 0.02
    ideal = {"tint": 0, "color_error": 0, "speckle": 1, "floater_pixels": 0, "part_recall": 1, "sharpness": 1}
    assert {name: true[name] for name in ideal} == pytest.approx(ideal, abs=0.05)


def test_a_wrong_colour_shows_in_colour_and_kid_alone(car):
    wrong, true = car["a blue car"], car["a yellow car"]
    assert wrong["color"] == 0
    assert wrong["reward"] < true["reward"] - 1
    assert wrong["kid"] > true["kid"] + 0.5
    assert wrong["kind"] == 1
    assert wrong["chamfer"] == true["chamfer"]


def test_a_wrong_kind_shows_in_kind_kid_and_shape(car):
    wrong = car["a yellow house"]
    assert wrong["kind"] == 0
    assert wrong["color"] == 1
    assert wrong["kid"] > 1
    assert wrong["chamfer"] > 0.05
    assert wrong["coverage"] < 0.5


def test_an_edit_is_told_by_what_changed_as_asked_what_stayed_and_how_far_the_surface_moved():
    before = show("a yellow car")
    painted = measure_edit("a yellow car", "a blue car", show("a blue car"), before)
    assert set(painted) == set(EDIT_FIGURES)
    assert painted["attribute"] == 1
    assert painted["rest"] > 0.9
    assert painted["moved"] == 0
    untouched = measure_edit("a yellow car", "a blue car", before, before)
    assert untouched == painted | {"attribute": 0}
    rebuilt = measure_edit("a yellow car", "a yellow house", show("a yellow house"), before)
    assert rebuilt["attribute"] == 1
    assert rebuilt["moved"] > 0.05


def test_what_has_no_front_has_no_views():
    ball = measure("a red ball", show("a red ball"), POINTS, MASS)
    assert np.isnan([ball["view"], ball["janus"]]).all()
    assert ball["kind"] == 1


def test_an_empty_scene_is_no_object():
    """NaN where there is nothing to measure, and zero shares."""
    white = lambda camera: Render(*(np.full((24, 64, 64, n), x, np.float32) for n, x in ((3, 1), (1, 1e-6), (1, 0))), {})  # noqa: E731
    empty = measure("a red mug", white, POINTS, np.zeros(1, np.float32))
    assert empty["kind"] == empty["coverage"] == 0
    assert np.isnan([empty["chamfer"], empty["floaters"]]).all()


def test_no_camera_looks_along_a_border_between_views():
    camera = eyes()
    degrees = np.abs(np.rad2deg(camera.azimuth))
    assert np.abs(degrees[:, None] - [45, 135]).min() > 10
    assert set(np.asarray(camera.view)) == {VIEWS.index(name) for name in ("side", "front", "back")}


def test_points_of_a_depth_image_lie_on_the_surface():
    points = visible_points(show("a red mug")(eyes()), eyes())
    true = surface_points("mug", 4096, eyes())
    from scipy.spatial import cKDTree

    assert cKDTree(true).query(points)[0].mean() < 0.02
