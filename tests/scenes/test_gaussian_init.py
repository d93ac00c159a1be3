"""What a file starts a scene with: as many points as there is room for, as large as their spacing, and where cameras look."""

import numpy as np
import pytest

from lods_jax.scenes.gaussian_init import fitted, from_points

VIEW, RADIUS = 0.88, 0.5
BALL = np.random.default_rng(0).normal(size=(2000, 3))
BALL /= np.linalg.norm(BALL, axis=1, keepdims=True) / np.random.default_rng(1).random((2000, 1)) ** (1 / 3)


def splats(means, size=0.05):
    n = len(means)
    return {"means": means, "log_scales": np.full((n, 3), np.log(size), np.float32), "sh": np.ones((n, 1, 3), np.float32)}


@pytest.mark.parametrize("cloud", [0.5 * BALL, 0.3 * BALL + [0.2, 0, 0.1], np.zeros((1, 3))])
def test_what_lies_in_the_view_stays_to_the_bit(cloud):
    found, notes = fitted(splats(cloud), "auto", VIEW, RADIUS)
    np.testing.assert_array_equal(found["means"], cloud.astype(np.float32))
    np.testing.assert_array_equal(found["log_scales"], np.float32(np.log(0.05)))
    assert notes == []


@pytest.mark.parametrize(
    ("scale", "offset"),
    [(0.3, (4.5e5, 5.8e6, 120.0)), (300.0, (0, 0, 0)), (0.001, (0, 0, 0)), (1.0, (0.5, 0.5, 0.5)), (0.1, (0, 0, 30.0))],
)
def test_maps_millimetres_specks_and_what_lies_aside_are_brought_into_view_and_that_is_said(scale, offset):
    """Shape, order and sizes relative to it stay; nearly all lies within the radius."""
    cloud = scale * BALL + offset
    found, (note,) = fitted(splats(cloud, 0.05 * scale), "auto", VIEW, RADIUS)
    assert found["means"].dtype == np.float32
    np.testing.assert_allclose(np.quantile(np.linalg.norm(found["means"], axis=1), 0.98), RADIUS, rtol=0.01)
    by = (found["means"][0] - found["means"][1]) / (cloud[0] - cloud[1])
    np.testing.assert_allclose(by, by[0], rtol=1e-4)
    np.testing.assert_allclose(np.exp(found["log_scales"]), 0.05 * scale * by[0], rtol=1e-4)
    assert "centred from (" in note
    assert "--gaussians.fit never" in note


def test_single_points_far_away_do_not_count():
    cloud = np.concatenate([0.5 * BALL, [[1e4, 0, 0], [0, -1e6, 0]]])
    found, notes = fitted({"means": cloud}, "auto", VIEW, RADIUS)
    np.testing.assert_array_equal(found["means"], cloud.astype(np.float32))
    assert notes == []
    far, _ = fitted({"means": cloud + 1000}, "auto", VIEW, RADIUS)
    np.testing.assert_allclose(far["means"][:-2].mean(0), 0, atol=0.02)


def test_a_person_may_have_it_always_or_never():
    always, (_,) = fitted({"means": 0.25 * BALL}, "always", VIEW, RADIUS)
    np.testing.assert_allclose(np.quantile(np.linalg.norm(always["means"], axis=1), 0.98), RADIUS, rtol=0.01)
    never, (said,) = fitted({"means": 100 * BALL}, "never", VIEW, RADIUS)
    np.testing.assert_array_equal(never["means"], (100 * BALL).astype(np.float32))
    assert "--gaussians.fit auto" in said


def test_points_at_one_place_are_centred_keep_their_size_and_are_told():
    found, (said, _) = fitted(splats(np.full((3, 3), 50.0)), "auto", VIEW, RADIUS)
    assert "all of its 3 points lie at one place" in said
    np.testing.assert_array_equal(found["means"], np.zeros((3, 3)))
    np.testing.assert_allclose(found["log_scales"], np.log(0.05), rtol=1e-6)


def test_sizes_that_are_no_logarithms_are_noticed():
    """A standard deviation of 0.05 taken for a logarithm is one of 1.05, beyond all of the scene."""
    wrong = splats(0.3 * BALL) | {"log_scales": np.full((2000, 3), 0.05, np.float32)}
    _, notes = fitted(wrong, "auto", VIEW, RADIUS)
    assert any("must be logarithms" in note for note in notes)


# --- points -> Gaussians --------------------------------------------------------------------------------------------------------
def test_points_of_a_grid_start_as_large_as_its_spacing_in_their_colours():
    x = np.stack(np.meshgrid(*[0.25 * np.arange(4)] * 3, indexing="ij"), -1).reshape(-1, 3)
    start = from_points({"means": x, "rgb": np.full((64, 3), 0.75)}, 64)
    np.testing.assert_allclose(np.exp(start["log_scales"]), 0.25, rtol=1e-5)
    np.testing.assert_allclose(0.5 + 0.28209479 * start["sh"][:, 0], 0.75, rtol=1e-5)


def test_a_large_cloud_gives_as_many_points_as_there_is_room_for():
    cloud = {"means": np.random.default_rng(0).normal(size=(200, 3))}
    start = from_points(cloud, 48)
    assert start["means"].shape == (48, 3)
    assert len(np.unique(start["means"], axis=0)) == 48


def test_points_that_lie_twice_at_one_place_are_as_large_as_others():
    x = np.stack(np.meshgrid(*[0.25 * np.arange(4)] * 3, indexing="ij"), -1).reshape(-1, 3)
    start = from_points({"means": np.repeat(x, 5, 0), "rgb": np.full((320, 3), 0.75)}, 320)
    np.testing.assert_allclose(np.exp(start["log_scales"]), 0.25, rtol=1e-5)


@pytest.mark.parametrize("n", [1, 8])
def test_points_at_one_place_leave_their_size_to_the_configuration(n):
    assert "log_scales" not in from_points({"means": np.zeros((n, 3)), "rgb": np.zeros((n, 3))}, 8)
