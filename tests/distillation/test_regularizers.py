import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import binary_erosion

from lods_jax.core.cameras import orbit_camera, rays
from lods_jax.core.types import ReferenceImage, Render
from lods_jax.distillation.regularizers import (
    REGULARIZERS,
    depth_error,
    depth_normals,
    image_errors,
    mask_error,
    normal_error,
    opaque,
    rgb_error,
    sparsity,
    weighted_regularizers,
    z_variance,
)


def render(opacity, **extras):
    one = jnp.full((2, 4, 4, 1), opacity)
    return Render(jnp.zeros((2, 4, 4, 3)), one, one, {k: jnp.full((2, 4, 4, 1), v) for k, v in extras.items()})


def test_sparsity_wants_empty_space():
    assert sparsity(render(0.0))[0] < sparsity(render(0.5))[0] < sparsity(render(1.0))[0]


def test_opaque_wants_all_or_nothing():
    np.testing.assert_allclose(opaque(render(0.5)), np.log(2), rtol=1e-6)
    assert opaque(render(0.01))[0] < opaque(render(0.3))[0] > 0
    np.testing.assert_allclose(opaque(render(0.2)), opaque(render(0.8)), rtol=1e-5)


def test_z_variance_of_an_empty_view_is_zero_with_a_finite_gradient():
    cost = lambda v: z_variance(render(0.0, z_var=v)).sum()  # noqa: E731
    assert cost(1.0) == 0.0
    assert jnp.isfinite(jax.grad(cost)(1.0))


def test_z_variance_is_the_mean_over_what_is_seen():
    np.testing.assert_allclose(z_variance(render(1.0, z_var=0.3)), 0.3, rtol=1e-6)


def test_weights_follow_their_schedule():
    costs = weighted_regularizers({"sparsity": lambda step: jnp.where(step < 10, 0.0, 2.0)})
    assert costs(render(1.0), jnp.array(0))["sparsity"][0] == 0.0
    np.testing.assert_allclose(costs(render(1.0), jnp.array(10))["sparsity"], 2 * sparsity(render(1.0)), rtol=1e-6)


def test_an_unknown_penalty_is_refused():
    with pytest.raises(ValueError, match=r"unknown regularizer haze; there are .*sparsity"):
        weighted_regularizers({"haze": lambda step: 1.0})
    assert set(REGULARIZERS) == {"sparsity", "opaque", "z_variance", "distortion", "orientation"}


# --- a view of which there is an image -------------------------------------------------------------------------------------
def ball(size=96, radius=0.6, distance=2.0):
    """A ball before a camera: what a render shows of it, and its true normals, x right, y up, z towards the camera."""
    camera = orbit_camera(*(jnp.full(1, x) for x in (0.3, 0.2, distance, 0.8)))
    _, directions = (np.asarray(x)[0] for x in rays(camera, size, size))
    right, down, forward = np.moveaxis(np.asarray(camera.c2w)[0, :3, :3], 1, 0)
    along = directions @ forward
    inside = radius**2 - distance**2 * (1 - along**2)
    hit = inside > 0
    t = distance * along - np.sqrt(np.where(hit, inside, 0.0))
    points = np.stack([directions @ right, -(directions @ down), -along], -1) * t[..., None]
    normal = (points - [0, 0, -distance]) / radius
    mask = hit[None, ..., None].astype(np.float32)
    seen = Render(jnp.asarray(mask * 0.5), jnp.asarray(mask), jnp.asarray(mask * (t * along)[None, ..., None], jnp.float32), {})
    return seen, ReferenceImage(
        0.5 * mask[0], mask[0], camera, depth=7 * seen.depth[0] + 3, normal=np.where(mask[0] > 0, normal, 0.0)
    )


def test_a_picture_of_the_render_itself_costs_nothing():
    seen, image = ball()
    for error in (rgb_error, mask_error, depth_error):  # depths count up to scale and offset
        np.testing.assert_allclose(error(seen, image), 0, atol=1e-5)
    inside = binary_erosion(np.asarray(image.mask)[..., 0], iterations=2)[..., None]
    assert normal_error(seen, image.replace(mask=jnp.asarray(inside, jnp.float32)))[0] < 1e-3


def test_normals_of_a_depth_map_are_those_of_a_ball_to_two_degrees():
    seen, image = ball()
    found, true = depth_normals(seen.depth, image.camera.fov_y)[0], image.normal[1:-1, 1:-1]
    inside = binary_erosion(np.asarray(image.mask)[..., 0], iterations=2)[1:-1, 1:-1]
    angle = np.rad2deg(np.arccos(np.clip(np.sum(np.asarray(found) * true, -1), -1, 1)))
    assert angle[inside].max() < 2


def test_depth_that_runs_the_other_way_costs_two():
    seen, image = ball()
    np.testing.assert_allclose(depth_error(seen, image.replace(depth=-image.depth)), 2, atol=1e-4)
    flat = jax.grad(lambda depth: depth_error(seen.replace(depth=depth), image)[0])(jnp.zeros_like(seen.depth))
    assert jnp.all(jnp.isfinite(flat))


def test_a_picture_is_brought_to_the_size_of_the_render():
    seen, image = ball(96)
    larger = ball(192)[1]
    costs = image_errors({"rgb": lambda step: 2.0, "mask": lambda step: 1.0})
    small = costs(seen, larger, jnp.array(0))
    assert set(small) == {"image_rgb", "image_mask"}
    assert small["image_rgb"][0] < 2e-3
    np.testing.assert_allclose(costs(seen, image.replace(rgb=image.rgb + 0.1), jnp.array(0))["image_rgb"], 0.02, rtol=1e-4)
