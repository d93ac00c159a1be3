"""The fast rasterizer against its definition, and the laws of light that both obey."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from lods_jax.core.cameras import look_at
from lods_jax.core.devices import traced_for
from lods_jax.core.types import Camera
from lods_jax.scenes import gaussian_projection, gaussian_tiles
from lods_jax.scenes.gaussian_rasterizer import radiance, rasterize, spherical_harmonics
from lods_jax.scenes.gaussian_rasterizer_reference import rasterize_reference

N, B = 24, 2
H, W = 21, 37  # 3 x 3 tiles, the last row and column of them incomplete; odd, so that a pixel is in the middle
CAPACITY = 9 * N  # every Gaussian on every tile
FOV_Y = 0.8


def cameras(c2w) -> Camera:
    unused = jnp.zeros(B)
    return Camera(c2w, jnp.full(B, FOV_Y), unused, unused, unused, unused)


def random_scene(seed=0, k=None):
    """The arguments of `rasterize`: Gaussians of 1 to 10 pixels around the origin, some of them outside the image, from
    transparent to opaque; colors are coefficients if k is given.
    """
    keys = jax.random.split(jax.random.key(seed), 6)
    eyes = jnp.array([[2.0, 0.5, 1.0], [-0.3, 1.8, -0.4]])
    return {
        "means": jnp.linspace(0.1, 1.2, N)[:, None] * jax.random.normal(keys[0], (N, 3)),
        "quats": jax.random.normal(keys[1], (N, 4)),
        "scales": jnp.exp(0.5 * jax.random.normal(keys[2], (N, 3)) - 2),
        "opacities": jax.random.permutation(keys[3], jnp.linspace(0.0, 1.0, N)),
        "colors": jax.random.uniform(keys[4], (N, 3)) if k is None else 0.5 * jax.random.normal(keys[4], (N, k, 3)),
        "background": jax.random.uniform(keys[5], (B, 3)),
        "camera": cameras(look_at(eyes, jnp.zeros_like(eyes))),
        "means2d_probe": jnp.zeros((B, N, 2)),
    }


SCENE = random_scene()
# A camera whose coordinates are the world's: it sees (x, y, z) at pixel (W / 2 + FOCAL x / z, H / 2 + FOCAL y / z).
FRONTAL = cameras(jnp.stack([jnp.eye(4)] * B))
FOCAL = H / 2 / np.tan(FOV_Y / 2)


def alone(mean, scale, opacity, **other):
    """One round Gaussian before the frontal camera; the others are invisible."""
    means, scales = SCENE["means"].at[0].set(jnp.array(mean)), SCENE["scales"].at[0].set(scale)
    seen = {"means": means, "scales": scales, "opacities": jnp.zeros(N).at[0].set(opacity), "camera": FRONTAL}
    return {**SCENE, **seen, **other}


def values_and_vjp(function, h, w, **options):
    """(scene, v) -> (rgb, opacity, depth), the gradient of their product with v, and extras."""

    def run(scene, v):
        def images(scene):
            render = function(**scene, height=h, width=w, **options)
            return (render.rgb, render.opacity, render.depth), render.extras

        values, pull, extras = jax.vjp(images, scene, has_aux=True)
        return values, pull(v)[0], extras

    return run


def noise(h=H, w=W):
    """Cotangents of rgb, opacity and depth."""
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=(B, h, w, c)).astype(np.float32) for c in (3, 1, 1))


@cache
def compiled(function, h, w, **options):
    run = jax.jit(values_and_vjp(function, h, w, **options))
    # Strong types for all: a weak one, which jnp.full makes of a Python float, would compile once more.
    return lambda scene: run(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), scene), noise(h, w))


def render(scene):
    return compiled(rasterize, H, W, capacity=CAPACITY)(scene)


def assert_close(actual, expected, rtol):
    """Of every array in a tree; relative to its largest element."""
    for (path, x), y in zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        name, largest = jax.tree_util.keystr(path), np.abs(y).max()
        np.testing.assert_allclose(x, y, atol=rtol * largest, rtol=0, err_msg=name)


def assert_finite(tree):
    for path, x in jax.tree.leaves_with_path(tree):
        assert np.all(np.isfinite(x)), jax.tree_util.keystr(path)


# --- the definition -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("h", "w", "k"), [(H, W, None), (16, 32, 9), (5, 3, 1)], ids=["incomplete-tiles", "whole-tiles", "less-than-a-tile"]
)
def test_values_and_gradients_are_those_of_the_definition(h, w, k):
    scene = random_scene(1, k)
    values, gradient, _ = compiled(rasterize, h, w, capacity=CAPACITY)(scene)
    expected, expected_gradient, _ = compiled(rasterize_reference, h, w)(scene)
    assert_close(values, expected, 1e-5)
    # Both are within 3e-5 of float64: depth is divided by opacities down to 1 / 255.
    assert_close(gradient, expected_gradient, 1e-4)


@pytest.mark.parametrize(("platform", "kernels"), [("tpu", 0), ("gpu", 2)], ids=["tpu", "gpu"])
def test_the_forms_of_other_devices_have_the_values_and_gradients_of_the_definition(monkeypatch, platform, kernels):
    """On a TPU six large steps, written out; on a GPU a kernel forward and one back, here interpreted."""
    monkeypatch.setattr(gaussian_tiles, "ON_ACCELERATOR", gaussian_tiles.ON_ACCELERATOR._replace(chunk=4))
    with traced_for(platform):
        traced = jax.jit(values_and_vjp(rasterize, H, W, capacity=CAPACITY)).trace(SCENE, noise())
    assert str(traced.jaxpr).count("pallas_call[") == kernels
    actual, gradient, _ = traced.lower().compile()(SCENE, noise())
    expected, expected_gradient, _ = compiled(rasterize_reference, H, W)(SCENE)
    assert_close(actual, expected, 1e-5)
    assert_close(gradient, expected_gradient, 1e-4)


def test_a_capped_alpha_has_no_gradient():
    """In the definition by min(), and so in the fast form too: here half of the pixels are at the cap."""
    opaque = alone([0.1, 0.0, 2.0], 5.0, 1.0)
    (_, opacity, _), gradient, _ = render(opaque)
    assert 0.2 < np.mean(opacity > 0.9899) < 0.8
    expected = compiled(rasterize_reference, H, W)(opaque)[1]
    for name in ("means", "scales", "opacities", "colors", "means2d_probe"):
        assert_close(gradient[name], expected[name], 1e-4)


def test_what_gets_less_light_than_the_stop_is_skipped():
    """24 half-transparent walls: a chunk of 16 leaves 2^-16 of the light."""
    chunk = gaussian_tiles.ON_CPU.chunk
    walls = {**SCENE, "scales": jnp.full((N, 3), 1e3), "opacities": jnp.full(N, 0.5), "camera": FRONTAL}
    walls["means"] = jnp.arange(1.0, N + 1)[:, None] * jnp.array([[0.0, 0.0, 1.0]])
    values, gradient, _ = render(walls)
    for fast, exact, farthest in zip(values, compiled(rasterize_reference, H, W)(walls)[0], (1, 1, N), strict=True):
        np.testing.assert_allclose(fast, exact, atol=gaussian_tiles.STOP * farthest)
    assert np.all(gradient["colors"][:chunk] != 0)
    assert not np.any(gradient["colors"][chunk:])


# --- what must not matter -------------------------------------------------------------------------------------------
def test_the_order_of_the_gaussians_does_not_matter():
    order = jax.random.permutation(jax.random.key(3), N)
    shuffled = {name: value if name in ("background", "camera") else value[order] for name, value in SCENE.items()}
    shuffled["means2d_probe"] = SCENE["means2d_probe"]
    values, gradient, _ = render(shuffled)
    expected, expected_gradient, _ = render(SCENE)
    assert_close(values, expected, 1e-6)
    assert_close(gradient["means"], expected_gradient["means"][order], 1e-5)
    assert_close(gradient["means2d_probe"], expected_gradient["means2d_probe"][:, order], 1e-5)


def hamilton(p, q):
    """Product of quaternions wxyz, [4] and [... 4]."""
    real = p[0] * q[..., :1] - (q[..., 1:] @ p[1:])[..., None]
    return np.concatenate([real, p[0] * q[..., 1:] + q[..., :1] * p[1:] + np.cross(p[1:], q[..., 1:])], -1)


def test_turning_scene_and_cameras_together_changes_nothing():
    q = np.array([0.5, -0.1, 0.7, 0.5])
    turn = np.stack([hamilton(hamilton(q, axis), q * [1, -1, -1, -1])[1:] for axis in np.eye(4)[1:]], 1)  # |q| = 1
    c2w = np.array(SCENE["camera"].c2w)
    c2w[:, :3] = turn @ c2w[:, :3]
    turned = {"means": SCENE["means"] @ turn.T, "quats": hamilton(q, np.array(SCENE["quats"])), "camera": cameras(c2w)}
    assert_close(render({**SCENE, **turned})[0], render(SCENE)[0], 2e-5)


def test_every_camera_sees_what_it_would_see_alone():
    swap = lambda tree: jax.tree.map(lambda x: x[::-1], tree)  # noqa: E731
    swapped = {**SCENE, "camera": swap(SCENE["camera"]), "background": swap(SCENE["background"])}
    values, _, extras = render(swapped)
    expected, _, expected_extras = render(SCENE)
    assert_close((swap(values), swap(extras)), (expected, expected_extras), 0)


def test_the_length_of_a_quaternion_does_not_matter():
    values, gradient, _ = render({**SCENE, "quats": 3 * SCENE["quats"]})
    expected, expected_gradient, _ = render(SCENE)
    assert_close(values, expected, 1e-5)
    assert_close(3 * gradient["quats"], expected_gradient["quats"], 5e-5)


# --- light ----------------------------------------------------------------------------------------------------------
def test_light_is_stopped_or_passes():
    """Black Gaussians before a white background: what is not opaque is white."""
    (rgb, opacity, _), _, _ = render({**SCENE, "colors": jnp.zeros((N, 3)), "background": jnp.ones((B, 3))})
    np.testing.assert_allclose(rgb + opacity, 1.0, rtol=0, atol=1e-6)
    assert 0.5 < np.max(opacity) <= 1


def test_without_opacity_the_background_is_seen():
    (rgb, opacity, depth), gradient, _ = render({**SCENE, "opacities": jnp.zeros(N)})
    np.testing.assert_array_equal(rgb, jnp.broadcast_to(SCENE["background"][:, None, None], rgb.shape))
    assert not np.any(opacity)
    assert not np.any(depth)
    assert_finite(gradient)


@pytest.mark.parametrize("opacity", [0.6, 1.0])
def test_one_gaussian_has_a_closed_form(opacity):
    """On the optical axis its image is round, of variance (focal scale / z)^2 + low-pass."""
    z, scale = 1.7, 0.25
    (rgb, stopped, depth), _, _ = render(alone([0.0, 0.0, z], scale, opacity))
    y, x = np.mgrid[:H, :W] + 0.5 - np.array([H, W]).reshape(2, 1, 1) / 2
    alpha = opacity * np.exp(-(x**2 + y**2) / 2 / ((FOCAL * scale / z) ** 2 + gaussian_projection.LOW_PASS))
    alpha = np.where(alpha < gaussian_projection.ALPHA_CUT, 0, np.minimum(alpha, gaussian_projection.ALPHA_CAP))[None, ..., None]
    alpha = np.concatenate([alpha] * B)
    color, background = SCENE["colors"][0].reshape(1, 1, 1, 3), SCENE["background"][:, None, None]
    np.testing.assert_allclose(stopped, alpha, atol=1e-6)
    np.testing.assert_allclose(rgb, alpha * color + (1 - alpha) * background, atol=1e-6)
    np.testing.assert_allclose(depth, np.where(alpha > 0, z, 0), rtol=2e-5)  # both sums round at alpha = 1 / 255


@pytest.mark.parametrize(("x", "y", "total"), [(24, 12, 1), (16, 8, 4), (24, 8, 2), (-20, 8, 0), (24, -5, 0)])
def test_a_gaussian_is_where_its_mean_projects_to(x, y, total):
    """The centre of a tile, a corner, an edge, outside: counted tiles, radius, and the brightest pixel."""
    z, scale = 2.0, 0.02
    scene = alone([(x - W / 2) * z / FOCAL, (y - H / 2) * z / FOCAL, z], scale, 1.0)
    (_, opacity, _), _, extras = render(scene)
    np.testing.assert_array_equal(extras["total"], total)
    radius = 3 * np.sqrt((FOCAL * scale / z) ** 2 + gaussian_projection.LOW_PASS) if total else 0
    np.testing.assert_allclose(extras["radii"][:, 0], radius, rtol=0.02)  # seen aslant it is a little longer
    assert not np.any(extras["radii"][:, 1:])
    if total:
        around = opacity[:, y - 1 : y + 1, x - 1 : x + 1]
        np.testing.assert_allclose(around, np.max(opacity), rtol=0.05)


def test_beyond_the_capacity_only_the_farthest_are_lost():
    """Four walls reach 9 tiles each, and there is room for two."""
    z = jnp.array([3.0, 1.0, 4.0, 2.0])
    walls = alone([0.0, 0.0, 1.0], 0.1, 0.0, scales=jnp.full((N, 3), 1e3))
    walls["means"] = walls["means"].at[:4].set(z[:, None] * jnp.array([[0.0, 0.0, 1.0]]))
    near, every = jnp.zeros(N).at[:4].set(0.5 * (z < 2.5)), jnp.zeros(N).at[:4].set(0.5)
    values, gradient, extras = compiled(rasterize, H, W, capacity=18)({**walls, "opacities": every})
    assert_close(values, render({**walls, "opacities": near})[0], 0)
    np.testing.assert_array_equal(extras["total"], 36)
    assert_finite(gradient)


# --- the gradient ---------------------------------------------------------------------------------------------------
def test_the_cotangent_of_the_probe_is_the_gradient_of_the_projected_means():
    # Wide Gaussians, because no alpha may cross the cut: there the image jumps.
    wide = {**SCENE, "means": 0.1 * SCENE["means"], "scales": jnp.full((N, 3), 0.8)}
    wide["opacities"] = jnp.clip(SCENE["opacities"], 0.2, 0.8)
    gradient = render(wide)[1]["means2d_probe"]
    step = 0.2 * gradient / jnp.max(jnp.abs(gradient))  # pixels, uphill
    uphill, downhill = (sum(map(np.vdot, render({**wide, "means2d_probe": p})[0], noise())) for p in (step, -step))
    np.testing.assert_allclose((uphill - downhill) / 2, np.vdot(gradient, step), rtol=2e-3)


def test_the_cotangent_of_the_absolute_probe_sums_what_each_pixel_pulls():
    def pixels(probe):
        render = rasterize_reference(**{**SCENE, "means2d_probe": probe}, height=H, width=W)
        return sum(jnp.sum(v * x, -1) for v, x in zip(noise(), (render.rgb, render.opacity, render.depth), strict=True))

    def pulled(direction):
        """Of a mean moved in every view at once: a view's pixels hang on its own means alone."""
        tangent = jnp.broadcast_to(direction.reshape(1, N, 2), (B, N, 2))
        return jnp.sum(jnp.abs(jax.jvp(pixels, (jnp.zeros((B, N, 2)),), (tangent,))[1]), (1, 2))

    expected = jax.jit(lambda: jax.lax.map(pulled, jnp.eye(2 * N)))().T.reshape(B, N, 2)
    values, gradient, _ = render({**SCENE, "absolute_probe": jnp.zeros((B, N, 2))})
    assert_close(gradient["absolute_probe"], expected, 1e-4)
    plain_values, plain, _ = render(SCENE)
    # Another program, which may round another way.
    assert_close(values, plain_values, 1e-5)
    assert_close({name: gradient[name] for name in plain}, plain, 1e-4)
    assert np.all(gradient["absolute_probe"] >= np.abs(plain["means2d_probe"]) * (1 - 1e-4))


EYE = SCENE["camera"].c2w[0, :3, 3]
HIDDEN = {
    "behind": {"means": SCENE["means"].at[:8].add(4 * EYE[None])},
    "at-the-eye": {"means": SCENE["means"].at[:8].set(EYE[None])},
    "transparent": {"opacities": SCENE["opacities"].at[:8].set(0.0)},
    "fainter-than-the-cut": {"opacities": SCENE["opacities"].at[:8].set(0.99 / 255)},
}


@pytest.mark.parametrize("how", HIDDEN)
def test_what_cannot_be_seen_has_no_effect_and_no_gradient(how):
    twice = cameras(jnp.stack([SCENE["camera"].c2w[0]] * B))
    values, gradient, extras = render({**SCENE, "camera": twice, **HIDDEN[how]})
    assert_close(values, render({**SCENE, "camera": twice, **HIDDEN["transparent"]})[0], 0)
    assert_finite(gradient)
    for name in ("means", "quats", "scales", "opacities", "colors"):
        assert not np.any(gradient[name][:8]), name
    assert not np.any(extras["radii"][:, :8])


@pytest.mark.parametrize("scale", [1e3, 1e6, 1e12, 1e30])
def test_a_huge_gaussian_is_a_veil(scale):
    veil = alone([0.1, 0.2, 3.0], scale, 0.5)
    (rgb, opacity, depth), gradient, _ = render(veil)
    expected = (SCENE["colors"][:1] + SCENE["background"])[:, None, None] / 2
    np.testing.assert_allclose(opacity, 0.5, rtol=1e-4)  # at scale 1e3 it still fades by 4e-6
    np.testing.assert_allclose(rgb, jnp.broadcast_to(expected, rgb.shape), rtol=1e-4)
    np.testing.assert_allclose(depth, 3.0, rtol=1e-5)
    assert_finite(gradient)


@pytest.mark.parametrize("length", [1.0, 1e3, 1e6])
def test_a_needle_has_finite_gradients(length):
    needle = alone([0.1, 0.2, 3.0], jnp.array([length, 1e-6, 0.0]), 0.9, quats=SCENE["quats"].at[0].set(0.0))
    values, gradient, _ = render(needle)
    assert_finite((values, gradient))
    assert np.max(values[1]) <= gaussian_projection.ALPHA_CAP


# --- spherical harmonics --------------------------------------------------------------------------------------------
def test_spherical_harmonics_are_orthonormal():
    """Quadrature that is exact for products of degree 3: Gauss-Legendre in z, equal steps in azimuth."""
    (z, weights), azimuth = np.polynomial.legendre.leggauss(8), np.arange(8) * np.pi / 4
    z, weights, azimuth = np.repeat(z, 8), np.repeat(weights, 8) * np.pi / 4, np.tile(azimuth, 8)
    flat = np.sqrt(1 - z**2)
    basis = spherical_harmonics(jnp.asarray(np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), z], 1), jnp.float32))
    np.testing.assert_allclose(basis.T @ (weights[:, None] * basis), np.eye(16), atol=1e-6)


def test_spherical_harmonics_have_the_order_and_signs_of_the_published_files():
    """A .ply of Kerbl et al. stores these coefficients; constants from their sh_utils.py."""
    x, y, z = np.array([2.0, 3.0, 6.0]) / 7
    expected = [0.28209479177387814, -0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x]
    expected += [
        1.0925484305920792 * x * y,
        -1.0925484305920792 * y * z,
        0.31539156525252005 * (2 * z * z - x * x - y * y),
    ]
    expected += [-1.0925484305920792 * x * z, 0.5462742152960396 * (x * x - y * y)]
    expected += [-0.5900435899266435 * y * (3 * x * x - y * y), 2.890611442640554 * x * y * z]
    expected += [-0.4570457994644658 * y * (4 * z * z - x * x - y * y)]
    expected += [0.3731763325901154 * z * (2 * z * z - 3 * x * x - 3 * y * y)]
    expected += [-0.4570457994644658 * x * (4 * z * z - x * x - y * y), 1.445305721320277 * z * (x * x - y * y)]
    expected += [-0.5900435899266435 * x * (x * x - 3 * y * y)]
    np.testing.assert_allclose(spherical_harmonics(jnp.array([[x, y, z]], jnp.float32))[0], expected, rtol=1e-5)


# --- where it runs --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("how", ["pmap", "shard_map"])
def test_devices_compute_what_one_jit_computes(how):
    run, inputs = values_and_vjp(rasterize, H, W, capacity=CAPACITY), (SCENE, noise())
    if how == "pmap":
        result = jax.tree.map(lambda x: x[0], jax.pmap(run)(*jax.tree.map(lambda x: x[None], inputs)))
    else:
        mesh, spec = Mesh(jax.devices()[:1], "data"), PartitionSpec()
        result = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))(*inputs)
    assert_close(result, render(SCENE), 1e-5)


def test_a_depth_order_sorts_like_argsort():
    """Also with more digits than the usual two, and stably."""
    depth = jnp.round(jax.random.uniform(jax.random.key(5), (70_000,), minval=0.01, maxval=30.0), 2)
    for n in (1, 2, 3, 1000, 70_000):
        np.testing.assert_array_equal(gaussian_tiles.depth_order(depth[:n]), np.argsort(depth[:n], stable=True))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="capacity >= 1, got 21, 37 and 0"):
        rasterize(**SCENE, height=H, width=W, capacity=0)
    with pytest.raises(ValueError, match="got 5"):
        radiance(SCENE["means"], jnp.zeros((N, 5, 3)))
