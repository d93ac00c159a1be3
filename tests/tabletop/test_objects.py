"""The twelve objects: distances that a tracer can trust, shapes that fit their ball, renders that follow from both."""

from functools import partial

import jax
import numpy as np
import pytest

from lods_jax.core import cameras
from lods_jax.core.cameras import orbit_camera, turntable
from lods_jax.tabletop import objects
from lods_jax.tabletop.objects import BOUND, COLORS, COMPOSITE, KINDS, PATTERNS

PRIMITIVES = tuple(kind for kind in KINDS if kind not in COMPOSITE)
MIDDLE = np.full(4, 0.5, np.float32)
SIZE = 32
_rng = np.random.default_rng(0)
POINTS = _rng.uniform(-1, 1, (10_000, 3)).astype(np.float32)
NEAR = (POINTS + _rng.normal(scale=0.05, size=POINTS.shape)).astype(np.float32)
MIRROR = np.float32([1, -1, 1])
EXTREMES = [np.float32([a, b, 0, 0]) for a in (0, 1) for b in (0, 1)]  # of the two proportions that objects use

distance = jax.jit(objects.signed_distance, static_argnums=0)
trace = jax.jit(objects.trace, static_argnums=(0, 4))
_rays = jax.jit(cameras.rays, static_argnums=(1, 2))


def length(x) -> np.ndarray:
    return np.linalg.norm(x, axis=-1)


def rays(camera, size) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.asarray(x) for x in _rays(camera, size, size))


def camera_at(azimuth, elevation, radius=3.0, fov_y=0.6, n=1):
    """n equal cameras, angles in radians."""
    return jax.jit(orbit_camera)(*(np.full(n, x, np.float32) for x in (azimuth, elevation, radius, fov_y)))


@partial(jax.jit, static_argnums=0)
def _look(kind, camera, color, pattern):
    variation = jax.numpy.full((4, 4), 0.5)
    return objects.render_objects(kind, camera, variation, color, pattern, size=SIZE, supersample=1)


def look(kind, camera, color=("red",) * 4, pattern=("plain",) * 4) -> np.ndarray:
    """RGBA of the middle object from four cameras. One ray a pixel, and one compilation a kind for all tests."""
    indices = np.array([list(COLORS).index(c) for c in color]), np.array([PATTERNS.index(p) for p in pattern])
    return np.asarray(_look(kind, camera, *indices))


def chroma(rgba) -> np.ndarray:
    """Colour without brightness."""
    return rgba[..., :3] / np.maximum(rgba[..., :3].sum(-1, keepdims=True), 1e-6)


# --- shapes -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_the_distance_changes_no_faster_than_one_walks(kind):
    """Else a tracer steps through walls. It walks 0.95 of the distance: 1 / 0.95 is safe, and the mushroom needs it."""
    for variation in EXTREMES:
        change = np.abs(distance(kind, POINTS, variation) - distance(kind, NEAR, variation))
        assert np.max(change / length(POINTS - NEAR)) < (1.04 if kind == "mushroom" else 1.001)


@pytest.mark.parametrize("kind", KINDS)
def test_every_object_has_an_inside_and_fits_its_ball(kind):
    """The upper corners of the back of the largest chair stick out by 0.012."""
    outside = POINTS[length(POINTS) > BOUND]
    on_the_ball = BOUND * POINTS / length(POINTS)[:, None]
    for variation in EXTREMES:
        assert distance(kind, POINTS, variation).min() < -0.02
        assert distance(kind, outside, variation).min() > (-0.012 if kind == "chair" else 0)
        assert distance(kind, on_the_ball, variation).min() > (-0.012 if kind == "chair" else 0)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("mug", "house")])
def test_left_and_right_are_alike(kind):
    mirrored = distance(kind, POINTS * MIRROR, MIDDLE)
    np.testing.assert_allclose(mirrored, distance(kind, POINTS, MIDDLE), atol=1e-6)


@pytest.mark.parametrize("kind", ["mug", "house"])
def test_a_handle_and_a_chimney_are_on_one_side(kind):
    """So a mirrored image shows another object, and the data set must not be flipped."""
    mirrored = distance(kind, POINTS * MIRROR, MIDDLE)
    assert np.max(np.abs(mirrored - distance(kind, POINTS, MIDDLE))) > 0.1


@pytest.mark.parametrize("kind", PRIMITIVES)
def test_kinds_without_a_front_stay_the_same_under_a_quarter_turn(kind):
    turned = POINTS[:, [1, 0, 2]] * np.float32([-1, 1, 1])
    np.testing.assert_allclose(distance(kind, POINTS, MIDDLE), distance(kind, turned, MIDDLE), atol=1e-6)


# --- rays -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["ball", "mug", "chair", "mushroom"])
def test_a_ray_ends_on_the_surface_and_meets_nothing_before(kind):
    origins, directions = rays(camera_at(0.5, 0.6), SIZE)
    t, hit = (np.asarray(x) for x in trace(kind, origins[0], directions[0], MIDDLE, 96))
    hit = hit > 0
    way = np.linspace(0.5, 1, 100, dtype=np.float32)[:, None, None] * t
    d = np.asarray(distance(kind, origins[0] + way[..., None] * directions[0], MIDDLE))[:, hit]
    # In 96 steps all but the rays that graze an edge arrive; a hit counts within 0.012.
    assert np.abs(d[-1]).max() < 0.012
    assert np.median(np.abs(d[-1])) < 1e-5
    assert d[:-1].min() > 0


@pytest.mark.parametrize("kind", ["ball", "mug", "chair", "mushroom"])
def test_a_ray_that_misses_stays_outside(kind):
    origins, directions = rays(camera_at(0.5, 0.6), SIZE)
    _, hit = trace(kind, origins[0], directions[0], MIDDLE)
    way = np.linspace(2, 4, 100, dtype=np.float32)[:, None, None, None]
    d = np.asarray(distance(kind, origins[0] + way * directions[0], MIDDLE))
    assert d[:, np.asarray(hit) == 0].min() > -0.01  # what 36 steps promise at the silhouette


def test_a_ball_covers_the_area_of_its_silhouette():
    """A ball of radius r in a distance d fills a cone of half-angle asin(r / d), in the image a disc of its tangent."""
    origins, directions = rays(camera_at(0.3, 0.7), 128)
    for proportion, radius in ((0.0, 0.5), (1.0, 0.58)):
        _, hit = trace("ball", origins[0], directions[0], np.full(4, proportion, np.float32))
        area = np.asarray(hit).mean() * (2 * np.tan(0.6 / 2)) ** 2
        seen = 3 * np.sin(np.arctan(np.sqrt(area / np.pi)))
        assert -0.005 < seen - radius < 0.012  # 0.005 is a quarter of a pixel, 0.012 the distance that counts as a hit


def test_the_middle_of_a_ball_is_its_radius_nearer_than_its_centre():
    origins, directions = rays(camera_at(0.3, 0.7), 1)
    t, hit = trace("ball", origins[0], directions[0], MIDDLE)
    np.testing.assert_allclose((t, hit), ([[3 - 0.54]], [[1.0]]), atol=2e-6)


# --- renders ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_a_render_is_premultiplied_and_empty_outside_of_the_ball(kind):
    camera = turntable(4)
    rgba, (origins, directions) = look(kind, camera), rays(camera, SIZE)
    assert np.all((rgba >= 0) & (rgba <= rgba[..., 3:]) & (rgba[..., 3:] <= 1))
    assert 0.05 < rgba[..., 3].mean() < 0.6
    passes_by = length(np.cross(origins, directions)) > BOUND
    assert passes_by.any()
    np.testing.assert_array_equal(rgba[passes_by], 0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_kinds_with_a_front_are_those_that_look_different_from_behind(kind):
    """In outline, or in colour without brightness: the sun stays where it is. Green, because bright red is cut at 1."""
    front, _, back, _ = look(kind, turntable(4), ("green",) * 4)
    outline, both = front[..., 3] != back[..., 3], front[..., 3] * back[..., 3] > 0
    colored = np.abs(chroma(front) - chroma(back)).max(-1) > 0.05
    share = np.mean((outline | (both & colored))[outline | both])
    assert (share > 0.02) == (kind in COMPOSITE)  # the snowman, with its small nose, has 0.03; a ball has 0


def test_a_full_turn_shows_the_same_object():
    camera = [camera_at(0.5 + turn, 0.4, n=4) for turn in (0, 2 * np.pi)]
    once, again = (look("mug", c) for c in camera)
    assert np.mean(np.abs(once - again)) < 1e-3  # one pixel at the edge may fall on the other side
    assert once[..., 3].any()


@pytest.mark.parametrize("colors", [list(COLORS)[:4], list(COLORS)[4:]])
def test_color_names_are_what_a_ball_shows_to_the_sun(colors):
    toward = np.array([0.45, 0.35, 0.82])
    camera = camera_at(np.arctan2(toward[1], toward[0]), np.arcsin(toward[2] / length(toward)), n=4)
    middle = look("ball", camera, colors)[:, SIZE // 2, SIZE // 2, :3]
    nearest = np.argmin(length(middle[:, None] - np.array(list(COLORS.values()))), 1)
    assert [list(COLORS)[i] for i in nearest] == colors


def test_a_plain_ball_has_one_color_and_a_pattern_brings_in_a_second():
    rgba = look("ball", camera_at(0.5, 0.4, n=4), ("green",) * 4, ("plain", "striped", "checkered", "plain"))
    np.testing.assert_array_equal(np.ptp(rgba[..., 3], 0), 0)
    green = chroma(rgba)[..., 1]
    share = [np.mean(image[covered] > 0.5) for image, covered in zip(green, rgba[..., 3] > 0, strict=True)]
    assert share[0] == share[3] == 1
    assert 0.3 < share[1] < 0.7
    assert 0.3 < share[2] < 0.7


def test_an_unknown_kind_is_named_in_one_line():
    with pytest.raises(ValueError, match=r"kind must be one of ball, .*, robot, got 'teapot'") as error:
        look("teapot", turntable(4))
    assert "\n" not in str(error.value)
