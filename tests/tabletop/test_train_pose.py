"""Laws of the trainer of the prior of poses: what it begins as, what a pair is, and what its folder says to a run."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lods_jax.core.cameras import orbit_camera
from lods_jax.core.noise_schedule import STABLE_DIFFUSION, v_to_eps
from lods_jax.core.paths import TABLETOP_64
from lods_jax.core.types import Cond, Query
from lods_jax.priors import flax_networks, torch_weights
from lods_jax.priors.zero123 import zero123
from lods_jax.tabletop import train_pose
from lods_jax.tabletop.architectures import architecture
from lods_jax.tabletop.dataset import sample_renders
from lods_jax.tabletop.fitting import optimizer
from lods_jax.training.image_to_3d import select_zero123_prompts

KEY = jax.random.key(0)
UNET, CONFIGS = architecture(64).unet, train_pose.configs_of(architecture(64))


@pytest.fixture(scope="module")
def fit():
    return train_pose.new_fit(optimizer("adamw"), TABLETOP_64, 0)


@pytest.fixture(scope="module")
def batch():
    """z_t, t, a context and the latents of pictures."""
    k = jax.random.split(KEY, 3)
    z, image = (jax.random.normal(key, (2, 16, 16, 4)) for key in k[:2])
    return z, jnp.array([100, 800]), jax.random.normal(k[2], (2, 1, 64)), image


@pytest.mark.slow
def test_it_begins_as_the_prior_and_blind_to_the_picture(fit, batch):
    z, t, context, image = batch
    own = torch_weights.to_flax(torch_weights.read_state(TABLETOP_64, "unet"), flax_networks.shapes(flax_networks.unet(UNET)))
    expected = flax_networks.predict_noise(flax_networks.unet(UNET), own, z, t, context)
    begun = flax_networks.predict_noise(
        train_pose.networks(64).unet, fit.params["unet"], jnp.concatenate([z, image], -1), t, context
    )
    np.testing.assert_allclose(begun, expected, atol=1e-5)


@pytest.mark.slow
def test_its_folder_says_to_a_run_what_training_says(fit, batch, tmp_path):
    z, t, _, _ = batch
    vae = torch_weights.to_flax(
        torch_weights.read_state(TABLETOP_64, "vae"), flax_networks.shapes(flax_networks.vae(CONFIGS["vae"]))
    )
    # Float16 on disk: the weights that training is compared with are those that come back.
    params = jax.tree.map(lambda x: np.asarray(x, np.float16).astype(np.float32), fit.params)
    params["unet"]["conv_in"]["kernel"][:, :, 4:] = 0.05  # no longer blind
    params["unet"]["conv_in"]["kernel"] = params["unet"]["conv_in"]["kernel"].astype(np.float16).astype(np.float32)
    torch_weights.save_folder(tmp_path / "pose", CONFIGS, {"vae": vae} | params, {}, prediction_type="v_prediction")
    prior, look = zero123(tmp_path / "pose")
    weights = prior.init(KEY)
    angles = lambda *x: jnp.deg2rad(jnp.array(x))  # noqa: E731
    here = orbit_camera(angles(10.0), angles(20.0), jnp.array([2.0]), jnp.array([0.8]))
    there = orbit_camera(angles(100.0, -50.0), angles(0.0, 40.0), jnp.array([2.0, 2.2]), jnp.array([0.8, 0.8]))
    picture = jax.random.uniform(KEY, (64, 64, 3))
    tables = jax.jit(look)(weights, picture, here)
    rows, predict_noise_fn = select_zero123_prompts(tables, there)
    query, predict = {"y": Query("prompt", image=True)}, jax.jit(prior.predict)
    said = predict_noise_fn(partial(predict, weights), {}, query, {"render": z}, rows, t)["y"]

    pose = jnp.array([[np.deg2rad(20), 1.0, 0.0, 0.0], [np.deg2rad(-20), -np.sin(np.pi / 3), 0.5, 0.2]], jnp.float32)
    context = train_pose.context_of(params, jnp.stack([picture, picture]), pose)
    seen = jnp.concatenate([z, jnp.stack([tables["image"]] * 2)], -1)
    v = jax.jit(partial(flax_networks.predict_noise, train_pose.networks(64).unet))(params["unet"], seen, t, context)
    np.testing.assert_allclose(said, v_to_eps(STABLE_DIFFUSION, v, z, t), atol=2e-4)
    blind = predict(weights, {}, z, t, Cond(rows["prompt"], image=0 * seen[..., :4]))
    assert float(jnp.abs(blind - said).max()) > 1e-2


def test_a_pair_shows_one_object_and_the_pose_between(monkeypatch):
    """Latents stand for the views that they are of: the pose must lead from the picture's place to that of the view."""
    rng = np.random.default_rng(0)
    shape = (32, train_pose.VIEWS)
    place = [rng.uniform(-3, 3, shape), rng.uniform(-0.5, 1, shape), rng.uniform(1, 3, shape)]
    number = np.arange(128).reshape(shape)
    rgb = np.broadcast_to(number[..., None, None, None], (*shape, 2, 2, 3)).astype(np.uint8)
    renders = train_pose.Renders(rgb, np.zeros((*shape, 4), int), *place)
    monkeypatch.setattr(train_pose, "fresh_views", lambda size, seed, part: renders)
    monkeypatch.setattr(train_pose, "in_chunks", lambda f, x: x[..., :1].astype(np.float32))
    z, picture, pose, image = next(train_pose.pairs(2, 0, 64, None))
    view, shown = z[:, 0, 0, 0].astype(int), picture[:, 0, 0, 0].astype(int)
    np.testing.assert_array_equal(shown, image[:, 0, 0, 0])
    np.testing.assert_array_equal(view // train_pose.VIEWS, shown // train_pose.VIEWS)  # the same object
    assert set(shown % train_pose.VIEWS) == {0, 2}  # on white
    azimuth, elevation, radius = (x.ravel() for x in place)
    np.testing.assert_allclose(pose[:, 0], elevation[shown] - elevation[view], atol=1e-6)
    np.testing.assert_allclose(pose[:, 2], np.cos(azimuth[view] - azimuth[shown]), atol=1e-6)
    np.testing.assert_allclose(pose[:, 3], radius[view] - radius[shown], atol=1e-6)


def test_views_in_a_row_are_of_one_object():
    r = sample_renders(KEY, {"mug": 8, "ball": 8}, 16, views=4)
    labels = r.labels.reshape(4, 4, 4)
    assert (labels[:, :, :3] == labels[:, :1, :3]).all()
    assert len(np.unique(r.azimuth)) == 16
    assert (r.rgb[::2, 0, 0] == 255).all()  # every second one is on white
    assert (r.rgb[1::2, 0, 0] < 255).all()
    with pytest.raises(ValueError, match="multiples of views=4"):
        sample_renders(KEY, {"mug": 6}, 16, views=4)
