"""Laws of the radiance field: skipping empty space changes nothing, geometry turns with the cameras, normals are right."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lods_jax.core.cameras import orbit_camera, turntable
from lods_jax.scenes import nerf as renderer
from lods_jax.scenes import radiance_field
from lods_jax.scenes.nerf import centres, grown, nerf, update_occupancy_grid
from lods_jax.scenes.radiance_field import FieldConfig, density, init_field, init_layers, normals, query_field
from lods_jax.scenes.volume_rendering import absorb

FIELD = FieldConfig(levels=3, log2_rows=10, base=4, finest=16, hidden=16, cells=12)
S, SIZE = 24, 12
FULL = S * SIZE**2
make = partial(nerf, height=SIZE, width=SIZE, field=FIELD, samples=S, background=lambda key: jnp.full(3, 0.25))
KEYS = jax.random.split(jax.random.key(1), 3)


@pytest.fixture(scope="module")
def start():
    theta, aux = make(capacity=FULL).init(jax.random.key(0))
    theta["tables"] = jax.tree.map(lambda x: 1e4 * x, theta["tables"])  # away from the even start
    return theta, update_occupancy_grid(jax.random.key(2), FIELD, theta, aux)


def shown(capacity, theta, aux, camera, **options):
    scene = make(capacity=capacity, **options)
    return jax.jit(lambda theta, aux: scene.render(theta, aux, camera, KEYS[: len(camera.view)], {}))(theta, aux)


def close(a, b, atol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), a, b)


def test_packing_equals_evaluating_everything_while_nothing_overflows(start, monkeypatch):
    """With an honest grid that calls everything outside its cells empty, and without any grid."""
    theta, aux = start
    camera = turntable(3)
    packed = shown(FULL, theta, aux, camera)
    most = int(packed.extras["total"].max())
    assert 0.02 * FULL < most < 0.9 * FULL
    close(shown(most, theta, aux, camera), packed, 1e-6)
    empty = density(FIELD, theta, centres(FIELD)).reshape(aux["occupied"].shape) * 0
    everything = shown(FULL, theta, aux | {"occupied": jnp.ones_like(aux["occupied"]), "density": empty}, camera)
    close(packed.rgb, everything.rgb, 0.05)  # what lies outside the cells is thinner than `empty`
    thin = update_occupancy_grid(jax.random.key(2), FIELD, theta, aux, empty=0.0)
    close(shown(FULL, theta, thin | {"density": empty}, camera).rgb, everything.rgb, 1e-6)
    # Nor is what a wall hides seen: a thousandth of the light at most.
    close(shown(FULL, theta, thin, camera).rgb, everything.rgb, 2e-3)


def test_beyond_the_room_the_farthest_are_dropped(start):
    theta, aux = start
    camera = turntable(1)
    whole, half = shown(FULL, theta, aux, camera), shown(int(0.5 * FULL), theta, aux, camera)
    few = shown(FULL // 20, theta, aux, camera)
    assert int(few.extras["total"][0]) == int(whole.extras["total"][0]) > FULL // 20
    assert np.isfinite(few.rgb).all()
    assert float(few.opacity.sum()) < float(half.opacity.sum()) <= float(whole.opacity.sum()) + 1e-4
    assert (np.asarray(few.opacity) <= np.asarray(whole.opacity) + 1e-5).all()


def test_samples_in_chunks_have_the_same_gradient_and_take_less_memory(start, monkeypatch):
    theta, aux = start
    theta = theta | {
        name: init_layers(jax.random.key(3), (2 * FIELD.levels, 256, n)) for name, n in (("density", 1), ("color", 3))
    }
    scene = make(capacity=FULL, normal_eps=0.01)

    def total(theta):
        render = scene.render(theta, aux, turntable(1), KEYS[:1], {})
        return sum(jnp.sum(jnp.sin(x)) for x in (render.rgb, render.opacity, render.extras["orientation"]))

    def measured():
        compiled = jax.jit(lambda theta: jax.value_and_grad(total)(theta)).lower(theta).compile()
        return compiled(theta), compiled.memory_analysis().temp_size_in_bytes

    whole, much = measured()
    monkeypatch.setattr(radiance_field, "CHUNK", 100)  # which does not divide the room
    chunked, little = measured()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max()), chunked, whole)
    assert little < 0.5 * much


def test_rays_in_parts_show_the_same_and_take_less_memory(start, monkeypatch):
    theta, aux = start
    camera, tall = turntable(2), {"height": 4 * SIZE, "width": 4 * SIZE, "stratified": False, "normal_eps": 0.01}

    def measured(capacity):
        scene = make(capacity=capacity, environment=True, **tall)
        init = scene.init(jax.random.key(0))[0]  # has a background

        def total(theta):
            render = scene.render(theta, aux, camera, KEYS[:2], {})
            images = jax.tree.leaves((render.rgb, render.opacity, render.depth, render.extras | {"total": 0.0}))
            return sum(jnp.sum(jnp.sin(x)) for x in images), render

        compiled = jax.jit(jax.value_and_grad(total, has_aux=True)).lower(init | theta).compile()
        (_, render), grad = compiled(init | theta)
        return render, grad, compiled.memory_analysis().temp_size_in_bytes

    whole, g_whole, much = measured(16 * FULL)
    most = int(whole.extras["total"].max())
    monkeypatch.setattr(renderer, "TOGETHER", 4 * FULL)
    for capacity in (16 * FULL, int(1.125 * most)):  # of each part a quarter, though none needs quite as much as another
        parts, g_parts, little = measured(capacity)
        assert most <= int(parts.extras["total"].max()) < 1.05 * most
        close(parts.replace(extras=parts.extras | {"total": 0}), whole.replace(extras=whole.extras | {"total": 0}), 2e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max()), g_parts, g_whole)
        assert little < 0.5 * much


def test_one_ray_is_the_closed_loop_over_its_samples(start):
    theta, aux = start
    camera = orbit_camera(jnp.zeros(1), jnp.zeros(1), jnp.full(1, 2.0), jnp.full(1, 1e-4))  # every ray is the x axis
    render = shown(
        FULL, theta, aux | {"occupied": jnp.ones_like(aux["occupied"]), "density": 0 * aux["density"]}, camera, stratified=False
    )
    step = 2 * FIELD.bound / S
    x = FIELD.bound - step * (np.arange(S) + 0.5)
    found = np.asarray(query_field(FIELD, theta, jnp.stack([jnp.asarray(x, jnp.float32), jnp.zeros(S), jnp.zeros(S)])))
    light, rgb, opacity, depth = 1.0, np.zeros(3), 0.0, 0.0
    for sigma, color, at in zip(found[:, 0], found[:, 1:], 2.0 - x, strict=True):
        weight = light * (1 - np.exp(-sigma * step))
        rgb, opacity, depth, light = rgb + weight * color, opacity + weight, depth + weight * at, light * np.exp(-sigma * step)
    np.testing.assert_allclose(render.rgb[0, 5, 5], rgb + light * 0.25, atol=1e-3)
    np.testing.assert_allclose([render.opacity[0, 5, 5, 0], render.depth[0, 5, 5, 0]], [opacity, depth / opacity], atol=1e-3)


def ball(monkeypatch, radius, sharp):
    """The field of an even ball with a soft edge, in place of the network's."""
    raw = lambda field, theta, x, encoded: sharp * (radius - jnp.sqrt(jnp.sum(x * x, 0)))  # noqa: E731
    monkeypatch.setattr(radiance_field, "before_softplus", raw)


def test_normals_of_a_ball_point_outwards_to_2_degrees(monkeypatch):
    ball(monkeypatch, 0.4, 50.0)
    theta = init_field(jax.random.key(0), FIELD)
    x = jax.random.normal(jax.random.key(1), (3, 200))
    x = 0.4 * x / jnp.linalg.norm(x, axis=0, keepdims=True)
    found = normals(FIELD, theta, x, 0.01)
    cosine = np.sum(np.asarray(found) * np.asarray(x.T) / 0.4, 1)
    assert np.rad2deg(np.arccos(np.clip(cosine, -1, 1))).max() < 2


def test_a_ball_looks_alike_from_everywhere_and_is_as_large_as_it_is(monkeypatch):
    ball(monkeypatch, 0.4, 100.0)
    theta, aux = make(capacity=FULL).init(jax.random.key(0))
    camera = orbit_camera(jnp.array([0.0, 1.0, -2.0]), jnp.array([0.1, 0.9, -0.4]), jnp.full(3, 3.0), jnp.full(3, 0.4))
    render = shown(FULL, theta, aux, camera, stratified=False, normal_eps=0.01)
    close(render.opacity[0], render.opacity[1], 0.05)
    close(render.opacity[0], render.opacity[2], 0.05)
    # The nearest point, and the normal there, which faces the camera: orientation penalises none of it.
    middle = np.asarray(render.depth)[:, 5:7, 5:7].mean()
    assert 2.6 < middle < 2.6 + 2 * 2 * FIELD.bound / S  # within two samples of the surface
    assert np.asarray(render.extras["orientation"])[:, 4:8, 4:8].max() < 1e-3
    outward = np.asarray(render.extras["normal"])[0, 5:7, 5:7].mean((0, 1))
    np.testing.assert_allclose(outward, -np.asarray(camera.c2w)[0, :3, 2], atol=0.1)


def test_turning_field_and_camera_together_changes_nothing(monkeypatch):
    """An ellipsoid turned by a quarter about z, seen from a quarter further on."""
    theta, aux = make(capacity=FULL).init(jax.random.key(0))
    aux = aux | {"occupied": jnp.ones_like(aux["occupied"]), "density": 0 * aux["density"]}
    at = lambda azimuth: orbit_camera(jnp.full(1, azimuth), jnp.full(1, 0.3), jnp.full(1, 3.0), jnp.full(1, 0.5))  # noqa: E731
    images = []
    for scale, azimuth in (((2.0, 4.0, 3.0), 0.4), ((4.0, 2.0, 3.0), 0.4 + np.pi / 2)):
        raw = lambda field, theta, x, encoded: 40 * (1 - jnp.sqrt(jnp.sum((jnp.array(scale)[:, None] * x) ** 2, 0)))  # noqa: B023, E731
        monkeypatch.setattr(radiance_field, "before_softplus", raw)
        images.append(shown(FULL, theta, aux, at(azimuth), stratified=False).opacity)
    close(images[0], images[1], 1e-3)
    assert 0.05 < float(images[0].mean()) < 0.9


def test_cells_grow_by_their_neighbours_and_forget_what_is_gone(start):
    cells = jnp.zeros((5, 5, 5), bool).at[2, 2, 2].set(True)
    assert int(grown(cells).sum()) == 27
    theta, aux = start
    gone = theta | {"density": [theta["density"][0], 0 * theta["density"][1]]}
    away = FIELD._replace(blob_radius=1e-3)
    for i in range(12):
        aux = update_occupancy_grid(jax.random.key(i), away, gone, aux)
    assert not aux["occupied"][:4].any()


def test_the_total_is_kept_until_the_next_refresh(start):
    theta, aux = start
    scene = make(capacity=FULL)
    seen = scene.update_stats(aux, {}, shown(FULL, theta, aux, turntable(2)))
    after = update_occupancy_grid(jax.random.key(0), FIELD, theta, seen)
    assert int(seen["total"]) > 0
    assert (int(after["last"]), int(after["total"])) == (int(seen["total"]), 0)


def test_every_part_of_the_field_is_pulled_and_a_learned_background_too(start):
    scene = make(capacity=FULL, environment=True)
    theta, aux = scene.init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(3), 3)
    g = jax.jit(jax.grad(lambda theta: jnp.sum(scene.render(theta, aux, turntable(3), keys, {}).rgb ** 2)))(theta)
    for leaf in jax.tree.leaves(g):
        assert np.isfinite(leaf).all()
        assert np.abs(leaf).max() > 0


def test_light_of_absorb_is_what_a_render_shows(start):
    theta, aux = start
    render = shown(FULL, theta, aux, turntable(1))
    assert float(absorb(jnp.ones((1, 1)), 1.0)[0][0, 0]) == pytest.approx(1 - np.exp(-1))
    assert (np.asarray(render.opacity) <= 1 + 1e-5).all()


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="at least 1, got 0 and 5"):
        nerf(height=4, width=4, capacity=5, samples=0)
