"""Where a camera looks, what is right and up, which way azimuth grows, and what an orbit promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lods_jax.core import cameras
from lods_jax.core.cameras import TABLETOP, VIEWS, Orbit, threestudio_elevation, turntable
from lods_jax.core.types import Camera

N, H, W = 5, 6, 10
DRAWN = 1024
EYES, TARGETS = np.random.default_rng(0).normal(size=(2, N, 3)).astype(np.float32)
EYES *= 3
MIDDLE = (W / 2, H / 2)
BY_RADIUS = Orbit(elevation=(-10.0, 45.0), fov_y=(40.0, 70.0), radius=(2.5, 4.0), overhead=0.3)

orbit_camera = jax.jit(cameras.orbit_camera, static_argnums=4)
sample_orbit = jax.jit(cameras.sample_orbit, static_argnums=(2, 3))
project = jax.jit(cameras.project, static_argnums=(2, 3))
rays = jax.jit(cameras.rays, static_argnums=(1, 2))
view_of = jax.jit(cameras.view_of, static_argnums=(2, 3))
wrap, look_at = jax.jit(cameras.wrap), jax.jit(cameras.look_at)


@pytest.fixture(scope="module")
def camera() -> Camera:
    """Camera i looks from EYES[i] at TARGETS[i], each with its own field of view."""
    unused = jnp.zeros(N)
    return Camera(look_at(EYES, TARGETS), jnp.linspace(0.5, 1.2, N), unused, unused, unused, unused.astype(int))


def at(azimuth, elevation, orbit=TABLETOP) -> Camera:
    """One camera in a distance of 3, angles in degrees."""
    angles = np.deg2rad(np.float32([[azimuth], [elevation]]))
    return orbit_camera(*angles, np.full(1, 3.0, np.float32), np.full(1, 0.8, np.float32), orbit)


def drawn(orbit: Orbit = TABLETOP, rows=slice(None)) -> Camera:
    """Rows of DRAWN random cameras; all tests share their compilation."""
    keys = jax.random.split(jax.random.key(0), DRAWN)
    return sample_orbit(keys[rows], np.arange(DRAWN)[rows], DRAWN, orbit)


def assert_close(a: Camera, b: Camera, atol: float):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=atol)


# --- geometry ---------------------------------------------------------------------------------------------------------
def test_the_point_looked_at_is_in_the_middle_of_the_image(camera):
    pixel, depth = project(camera, TARGETS, H, W)
    np.testing.assert_allclose(np.diagonal(pixel).T, np.tile(MIDDLE, (N, 1)), atol=1e-5)
    np.testing.assert_allclose(np.diagonal(depth), np.linalg.norm(EYES - TARGETS, axis=1), rtol=1e-6)


def test_a_camera_turns_space_without_stretching_or_mirroring_it(camera):
    """x right, y down, z forward is right-handed: determinant +1."""
    turn = np.asarray(camera.c2w)[:, :3, :3]
    np.testing.assert_allclose(turn.swapaxes(1, 2) @ turn, np.tile(np.eye(3), (N, 1, 1)), atol=1e-6)
    np.testing.assert_allclose(np.linalg.det(turn), 1.0, atol=1e-6)


def test_from_the_front_y_is_on_the_right_and_z_is_up():
    pixel, _ = project(at(0, 0), np.eye(3, dtype=np.float32)[1:], H, W)
    (y_column, y_row), (z_column, z_row) = np.asarray(pixel[0])
    assert y_column > W / 2
    assert z_row < H / 2
    np.testing.assert_allclose([z_column, y_row], MIDDLE, atol=1e-5)


@pytest.mark.parametrize(
    ("azimuth", "elevation", "eye"),
    [(0, 0, (3, 0, 0)), (90, 0, (0, 3, 0)), (180, 0, (-3, 0, 0)), (0, 90, (0, 0, 3))],
)
def test_azimuth_starts_at_the_front_and_grows_counter_clockwise_seen_from_above(azimuth, elevation, eye):
    np.testing.assert_allclose(at(azimuth, elevation).c2w[0, :3, 3], eye, atol=1e-6)


@pytest.mark.parametrize("azimuth", [-170, -60, 0, 30, 170])
def test_azimuth_has_period_two_pi(azimuth):
    assert_close(at(azimuth, 20), at(azimuth + 360, 20), atol=3e-6)  # float32 of 3 * 2 pi


def test_wrapping_keeps_the_direction_and_ends_below_pi():
    angle = np.linspace(-20, 20, 401, dtype=np.float32)
    wrapped = np.asarray(wrap(angle))
    assert np.all((wrapped >= -np.float32(np.pi)) & (wrapped < np.float32(np.pi)))
    np.testing.assert_allclose(np.exp(1j * wrapped), np.exp(1j * angle), atol=5e-6)  # float32 of 20


def test_projection_inverts_rays(camera):
    """Pixel centres are at halves. The points of all cameras are projected by all; each must find its own."""
    origins, directions = rays(camera, H, W)
    pixel, depth = project(camera, (origins + 2.7 * directions).reshape(-1, 3), H, W)
    own = np.arange(N)
    pixel, depth = pixel.reshape(N, N, H, W, 2)[own, own], depth.reshape(N, N, H, W)[own, own]
    centres = np.stack(np.meshgrid(np.arange(W) + 0.5, np.arange(H) + 0.5), -1)
    np.testing.assert_allclose(pixel, np.tile(centres, (N, 1, 1, 1)), atol=3e-5)  # float32 of 10 pixels
    assert np.all(depth > 0)


def test_rays_have_length_one_and_start_at_the_camera(camera):
    origins, directions = rays(camera, H, W)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=-1), 1.0, atol=1e-6)
    np.testing.assert_array_equal(origins, np.broadcast_to(EYES[:, None, None], origins.shape))


def test_the_field_of_view_is_the_angle_between_the_upper_and_the_lower_edge():
    """Rays go through pixel centres, which are half a pixel inside of the edges."""
    _, directions = rays(at(30, 20), 1000, 1)
    angle = np.arccos(np.vdot(directions[0, 0, 0], directions[0, -1, 0]))
    np.testing.assert_allclose(np.tan(angle / 2) * 1000 / 999, np.tan(0.8 / 2), rtol=1e-5)


@pytest.mark.parametrize("elevation", [90, -90])
def test_a_camera_straight_above_or_below_is_the_limit_of_its_neighbours(elevation):
    vertical, near = at(0, elevation).c2w, at(0, elevation * 0.9999).c2w
    assert np.all(np.isfinite(vertical))
    np.testing.assert_allclose(vertical, near, atol=1e-3)  # 0.009 degrees in a distance of 3 are 5e-4


def test_a_camera_straight_above_has_a_finite_gradient():
    gradient = jax.jit(jax.jacobian(cameras.look_at))(jnp.array([[0.0, 0.0, 3.0]]), jnp.zeros((1, 3)))
    assert np.all(np.isfinite(gradient))


# --- views ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("azimuth", "elevation", "view"),
    [
        *[(0, 0, "front"), (44.99, 0, "front"), (-44.99, 0, "front"), (360, 0, "front")],
        *[(45.01, 0, "side"), (90, 0, "side"), (-90, 0, "side"), (270, 0, "side"), (134.99, 0, "side")],
        *[(135.01, 0, "back"), (180, 0, "back"), (-180, 0, "back"), (-135.01, 0, "back")],
        *[(0, 59.99, "front"), (0, -80, "front"), (0, 60.01, "overhead"), (90, 75, "overhead"), (180, 75, "overhead")],
    ],
)
def test_view_words_have_sharp_limits_and_overhead_wins(azimuth, elevation, view):
    angles = np.deg2rad(np.float32([azimuth, elevation]))
    assert VIEWS[int(view_of(*angles))] == view


def test_the_limit_itself_belongs_to_the_side_and_is_not_overhead():
    """At limits of 0, which float32 represents: nothing is in a sector of no width."""
    azimuth = np.array([0, np.pi, 1], np.float32)
    np.testing.assert_array_equal(view_of(azimuth, np.zeros_like(azimuth), 0.0, 0.0), VIEWS.index("side"))


@pytest.mark.parametrize(("limits", "view"), [({}, "side"), ({"front": 60.0}, "front"), ({"above": 10.0}, "overhead")])
def test_the_limits_of_the_orbit_decide_the_view_of_its_cameras(limits, view):
    assert VIEWS[int(at(50, 20, Orbit(**limits)).view[0])] == view


# --- orbits -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("orbit", [TABLETOP, BY_RADIUS], ids=["extent", "radius"])
def test_drawn_cameras_keep_to_the_limits_of_the_orbit(orbit):
    camera = drawn(orbit)
    elevation, fov_y = np.rad2deg(camera.elevation), np.rad2deg(camera.fov_y)
    within = lambda x, limits: (x > limits[0] - 1e-3) & (x < limits[1] + 1e-3)  # noqa: E731  # float32 of degrees
    assert np.all(within(elevation, orbit.elevation) | within(elevation, orbit.overhead_elevation))
    assert np.all(within(fov_y, orbit.fov_y))
    assert np.all(within(camera.radius, orbit.radius or (0, 9)))
    np.testing.assert_allclose(jnp.linalg.norm(camera.c2w[:, :3, 3], axis=-1), camera.radius, rtol=1e-6)


def test_an_extent_frames_the_same_part_of_the_world_at_every_field_of_view():
    """The point `extent` above the origin, in the camera's sense of above, is on the upper edge."""
    camera = drawn(TABLETOP._replace(extent=(0.8, 0.8)))
    pixel, _ = project(camera, -0.8 * np.asarray(camera.c2w)[:, :3, 1], H, W)
    np.testing.assert_allclose(np.diagonal(pixel).T, np.tile([W / 2, 0], (DRAWN, 1)), atol=1e-5)


def test_every_view_has_its_own_sector():
    azimuth = np.asarray(drawn().azimuth)
    np.testing.assert_array_equal(np.floor((azimuth + np.pi) * DRAWN / (2 * np.pi)), np.arange(DRAWN))


def test_cameras_do_not_depend_on_how_views_are_split():
    every = jax.tree.map(np.asarray, vars(drawn()))
    for rows in (slice(0, None, 2), slice(1, None, 2)):
        assert_close(vars(drawn(rows=rows)), {name: x[rows] for name, x in every.items()}, atol=2e-6)


def test_the_overhead_share_is_kept_and_the_rest_is_even_over_the_sphere():
    """Even over the sphere is even in the sine of the elevation (Archimedes). Tolerances are four standard errors."""
    elevation = np.asarray(drawn(BY_RADIUS).elevation)
    overhead = np.rad2deg(elevation) > 50
    assert abs(overhead.mean() - 0.3) < 4 * (0.3 * 0.7 / DRAWN) ** 0.5
    low, high = np.sin(np.deg2rad(BY_RADIUS.elevation))
    share = (np.sin(elevation[~overhead]) - low) / (high - low)
    assert abs(share.mean() - 1 / 2) < 4 * (1 / 12 / len(share)) ** 0.5
    assert abs(share.var() - 1 / 12) < 4 * (1 / 180 / len(share)) ** 0.5


@pytest.mark.parametrize("orbit", [Orbit(), Orbit(radius=(2.0, 3.0), extent=(0.8, 0.9))])
def test_an_orbit_needs_exactly_one_of_radius_and_extent(orbit):
    with pytest.raises(ValueError, match="orbit needs either radius or extent, got radius="):
        drawn(orbit)


def test_a_turntable_starts_at_the_front_and_goes_round_in_equal_steps():
    camera = turntable(12)
    seen = [VIEWS[i] for i in np.asarray(camera.view)]
    assert seen == ["front"] * 2 + ["side"] * 3 + ["back"] * 3 + ["side"] * 3 + ["front"]
    np.testing.assert_allclose(np.diff(np.unwrap(camera.azimuth)), np.pi / 6, atol=1e-6)
    assert np.ptp(camera.radius) == np.ptp(camera.elevation) == np.ptp(camera.fov_y) == 0


def test_a_turntable_without_cameras_is_refused():
    with pytest.raises(ValueError, match="turntable needs n >= 1 cameras, got 0"):
        turntable(0)


def test_threestudio_draws_elevations_as_its_users_know_them():
    """Half uniform in [-10, 45] degrees; the others in [-6.4, 30], as arcsin(2 x - 1) of the limits' shares of 180 degrees."""
    u = jnp.linspace(0, 1, 101)
    limits = jnp.array([-10.0, 45.0])
    draw = jax.vmap(threestudio_elevation, in_axes=(None, None, 0))
    np.testing.assert_allclose(jnp.rad2deg(draw(limits, jnp.array(0.1), u)), np.linspace(-10, 45, 101), atol=1e-4)
    other = jnp.rad2deg(draw(limits, jnp.array(0.9), u))
    np.testing.assert_allclose([other[0], other[-1]], [-6.38, 30.0], atol=0.01)
    assert bool((jnp.diff(other) > 0).all())
    orbit = BY_RADIUS._replace(overhead=0.0, elevation_draw="threestudio")
    camera = sample_orbit(jax.random.split(jax.random.key(0), 4000), jnp.arange(4000), 4000, orbit)
    beyond = jnp.rad2deg(camera.elevation) > 30.01
    np.testing.assert_allclose(beyond.mean(), 0.5 * 15 / 55, atol=0.03)  # of the uniform half alone
