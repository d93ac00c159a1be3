import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lods_jax.core.cameras import turntable
from lods_jax.scenes.gaussian_init import ball, from_points, shell
from lods_jax.scenes.gaussians import filtered, gaussians
from lods_jax.scenes.ply import read_points, write_ply

SCENE = gaussians(height=16, width=16, intersections=1024, capacity=64, count=48)
THETA, AUX = SCENE.init(jax.random.key(0))
CAMERA, KEYS = turntable(2), jax.random.split(jax.random.key(1), 2)
render = jax.jit(lambda theta, aux: SCENE.render(theta, aux, CAMERA, KEYS, SCENE.means2d_probe(aux, 2)))


def test_dead_slots_are_not_drawn():
    """Whatever their parameters are."""
    loud = {name: x.at[48:].add(jnp.ones_like(x[48:])) for name, x in THETA.items()}
    jax.tree.map(np.testing.assert_array_equal, render(loud, AUX), render(THETA, AUX))


def test_a_scene_without_life_shows_its_background():
    empty = render(THETA, AUX | {"alive": jnp.zeros(64, bool)})
    np.testing.assert_array_equal(empty.opacity, 0)
    np.testing.assert_allclose(empty.rgb - empty.rgb[:, :1, :1], 0, atol=1e-6)


def test_everything_that_trains_has_a_gradient_and_dead_slots_have_none():
    """A round Gaussian cannot feel its rotation, so the quaternions' gradient is 0 at first."""
    target = jax.random.uniform(jax.random.key(2), (2, 16, 16, 3))
    grads = jax.grad(lambda theta: jnp.mean((render(theta, AUX).rgb - target) ** 2))(THETA)
    for name in ("means", "log_scales", "opacity_logits", "sh"):
        assert float(jnp.abs(grads[name][:48]).max()) > 0
        np.testing.assert_array_equal(grads[name][48:], 0)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))


def test_statistics_of_two_views_add_up():
    """Counts and sums of views, the largest radius; per view, so that they do not depend on the size of the batch."""
    rendered = render(THETA, AUX)
    means2d_grad = {"means2d": jnp.ones((2, 64, 2)) / 2}
    aux = SCENE.update_stats(AUX, means2d_grad, rendered)
    seen = np.asarray(rendered.extras["radii"] > 0)
    np.testing.assert_array_equal(aux["seen"], seen.sum(0))
    # Each view's own gradient is (1, 1) per pixel, and the image is 16 pixels or 2 device units wide.
    np.testing.assert_allclose(aux["grad"], seen.sum(0) * 8 * 2**0.5, rtol=1e-6)
    np.testing.assert_array_equal(aux["radius"], rendered.extras["radii"].max(0))
    assert int(aux["total"]) == int(rendered.extras["total"].max())


def test_pixels_that_pull_in_opposite_directions_do_not_cancel_in_absolute_values():
    scene = gaussians(height=16, width=16, intersections=1024, capacity=64, count=48, statistic="mean-of-absolute")
    probe = scene.means2d_probe(AUX, 2)
    assert set(probe) == {"means2d", "absolute"}
    rendered = render(THETA, AUX)
    pull = {"means2d": jnp.zeros((2, 64, 2)), "absolute": jnp.ones((2, 64, 2)) / 2}
    aux = scene.update_stats(AUX, pull, rendered)
    np.testing.assert_allclose(aux["grad"], np.asarray(rendered.extras["radii"] > 0).sum(0) * 8 * 2**0.5, rtol=1e-6)


def test_views_that_pull_in_opposite_directions_cancel_in_the_norm_of_the_sum():
    """One length for a step, of the gradient of the mean over its views: 3 pixels times 8, halved. The other statistic sees 3 and
    3."""
    scene = gaussians(height=16, width=16, intersections=1024, capacity=64, count=48, statistic="norm-of-sum")
    rendered = render(THETA, AUX)
    seen = np.asarray(rendered.extras["radii"] > 0)
    both = seen.all(0)
    assert both.any()
    assert not seen.any(0).all()
    pull = jnp.stack([jnp.full((64, 2), 3.0), jnp.full((64, 2), -3.0)]) / 2
    opposed = scene.update_stats(AUX, {"means2d": pull}, rendered)
    np.testing.assert_allclose(opposed["grad"], 0, atol=1e-6)
    np.testing.assert_array_equal(opposed["seen"], seen.any(0))
    one_sided = scene.update_stats(AUX, {"means2d": pull.at[1].set(0.0)}, rendered)
    np.testing.assert_allclose(one_sided["grad"], seen.any(0) * 3 / 2 * 8 * 2**0.5, rtol=1e-6)
    assert float(SCENE.update_stats(AUX, {"means2d": pull}, rendered)["grad"][both].min()) > 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": 65}, "count"),
        ({"degree": 4}, "degree"),
        ({"opacity": 1.0}, "opacity"),
        ({"size": 0.0}, "size"),
        ({"statistic": "mean"}, "statistic"),
    ],
)
def test_impossible_scenes_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        gaussians(**{"height": 16, "width": 16, "intersections": 64, "capacity": 64, "count": 48} | wrong)


def test_first_points_lie_in_the_ball_and_on_the_shell():
    """Half of a uniform ball lies beyond 0.5^(1/3) of its radius; both are centred."""
    key = jax.random.key(0)
    for points, inside in ((ball, 0.5), (shell, 0.0)):
        means = np.asarray(points(key, 4000, radius=0.8)["means"])
        distance = np.linalg.norm(means, axis=1) / 0.8
        assert distance.max() <= 1 + 1e-6
        np.testing.assert_allclose(np.mean(distance < 0.5 ** (1 / 3)), inside, atol=0.03)
        np.testing.assert_allclose(means.mean(0), 0, atol=0.03)


def test_a_scene_that_starts_from_its_own_ply_shows_the_same_picture(tmp_path):
    theta = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(5), x.shape), THETA)
    write_ply(tmp_path / "scene.ply", {name: np.asarray(x)[:48] for name, x in theta.items()})
    start = from_points(read_points(tmp_path / "scene.ply").columns, 64)
    again = gaussians(height=16, width=16, intersections=1024, capacity=64, count=48, points=lambda key, count: start)
    theta_again, aux = again.init(jax.random.key(7))
    assert int(aux["alive"].sum()) == 48
    np.testing.assert_allclose(render(theta_again, aux).rgb, render(theta, AUX).rgb, atol=1e-5)


# --- the 3D filter ------------------------------------------------------------------------------------------------------
def uneven(theta):
    """Gaussians of three lengths each and of all opacities."""
    k1, k2 = jax.random.split(jax.random.key(5))
    log_scales = theta["log_scales"] + jax.random.normal(k1, theta["log_scales"].shape)
    return theta | {"log_scales": log_scales, "opacity_logits": 3 * jax.random.normal(k2, theta["opacity_logits"].shape)}


def test_filters_add_up_as_variances_do():
    theta = uneven(THETA)
    twice, once = filtered(filtered(theta, 0.03), 0.04), filtered(theta, 0.05)
    for name in theta:
        np.testing.assert_allclose(twice[name], once[name], rtol=1e-4, atol=1e-5)
    assert filtered(theta, 0.0) is theta


def test_a_filter_keeps_mass_and_lets_nothing_be_thinner():
    """Opacity times the product of the lengths is the mass of a Gaussian, up to a constant."""
    theta = uneven(THETA)
    wide = filtered(theta, 0.02)
    mass = lambda x: jax.nn.log_sigmoid(x["opacity_logits"]) + x["log_scales"].sum(1)  # noqa: E731
    np.testing.assert_allclose(mass(wide), mass(theta), rtol=1e-4, atol=1e-4)
    assert float(jnp.exp(wide["log_scales"]).min()) >= 0.02
    np.testing.assert_allclose(jnp.exp(2 * wide["log_scales"]), jnp.exp(2 * theta["log_scales"]) + 0.02**2, rtol=1e-4)


def test_a_filtered_scene_is_the_scene_of_filtered_gaussians():
    through = gaussians(height=16, width=16, intersections=1024, capacity=64, count=48, filter_std=0.05)
    seen = through.render(THETA, AUX, CAMERA, KEYS, through.means2d_probe(AUX, 2))
    np.testing.assert_allclose(seen.rgb, render(filtered(THETA, 0.05), AUX).rgb, atol=1e-6)
    assert float(jnp.abs(seen.rgb - render(THETA, AUX).rgb).max()) > 1e-3
