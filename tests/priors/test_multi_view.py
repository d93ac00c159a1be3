"""MVDream's U-Net beside its PyTorch source, and the laws of attention over several views.

`tests/data/mvdream` is the U-Net and PyTorch's numbers (its make.py says which).
"""

import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lods_jax.core.cameras import orbit_camera
from lods_jax.core.types import Cond, Query
from lods_jax.priors import flax_networks, hub, multi_view
from lods_jax.priors.registry import views_of
from lods_jax.priors.stable_diffusion import stable_diffusion
from tests.mvdream import DATA, make_folder

V, LORA = 4, 0.5


@pytest.fixture(scope="module")
def mvdream(tmp_path_factory):
    """A whole folder with MVDream's U-Net."""
    return make_folder(tmp_path_factory.mktemp("mvdream") / "folder")


@pytest.fixture(scope="module")
def numbers():
    """PyTorch's numbers, latents as NHWC."""
    stored = np.load(DATA / "mvdream" / "arrays.npz")
    return {name: jnp.asarray(x.transpose(0, 2, 3, 1) if x.ndim == 4 else x) for name, x in stored.items()}


@pytest.fixture(scope="module")
def four(mvdream):
    prior = stable_diffusion(mvdream)
    return prior, prior.init(jax.random.key(0))


def c2w(azimuth, elevation=15.0, radius=2.5):
    """Our cameras at some azimuths, degrees."""
    fill = lambda x: jnp.full(len(azimuth), x, jnp.float32)  # noqa: E731
    camera = orbit_camera(jnp.deg2rad(azimuth), fill(np.deg2rad(elevation)), fill(radius), fill(0.8))
    return camera.c2w.reshape(-1, 16)


CAMERAS = c2w(45.0 * jnp.arange(8) - 90.0)  # MVDream counts from -y, and we from the front, which is +x in both


def predicted(four, z_t, t, cond, psi={}):  # noqa: B006
    prior, weights = four
    return jax.jit(prior.predict)(weights, psi, z_t, t, cond)


# --- parity -----------------------------------------------------------------------------------------------------------------
def test_cameras_of_eight_azimuths_are_pytorchs(numbers):
    np.testing.assert_allclose(multi_view.camera_vectors(CAMERAS), numbers["camera"], atol=1e-6)


def test_four_views_are_predicted_as_pytorch_does(four, numbers):
    eps = predicted(four, numbers["latents"], numbers["t"], Cond(numbers["tokens"], camera=CAMERAS))
    print(f"four views: {np.abs(eps - numbers['eps_4']).max():.1e}")
    np.testing.assert_allclose(eps, numbers["eps_4"], atol=1e-4)
    assert np.abs(numbers["eps_4"] - numbers["eps_1"]).max() > 0.05  # one is not the other


def test_single_images_are_predicted_as_pytorch_does(mvdream, four, numbers):
    prior = stable_diffusion(mvdream, views=1)
    eps = predicted((prior, four[1]), numbers["latents"], numbers["t"], Cond(numbers["tokens"]))
    print(f"single images: {np.abs(eps - numbers['eps_1']).max():.1e}")
    np.testing.assert_allclose(eps, numbers["eps_1"], atol=1e-4)


def relative(a, b):
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def test_the_gradient_of_an_embedding_is_pytorchs(four, numbers):
    prior, weights = four

    @jax.jit
    @jax.grad
    def gradient(embedding):
        tokens = jnp.broadcast_to(embedding, (8, *embedding.shape))
        eps = prior.predict(weights, {}, numbers["latents"], numbers["t"], Cond(tokens, camera=CAMERAS))
        return jnp.mean((eps - numbers["noise"]) ** 2)

    assert relative(gradient(numbers["embedding"]), numbers["g_embedding"]) < 1e-4


def test_loss_and_gradient_of_a_lora_are_pytorchs(four, numbers):
    prior, weights = four
    names = {name.split("/")[1] for name in numbers if name.startswith("lora/")}

    def of(which):
        site = lambda name: multi_view.diffusers_name(f"{name}.", 1)[:-1]  # noqa: E731
        return {site(name): {way: numbers[f"{which}/{name}/{way}"].T for way in ("down", "up")} for name in names}

    lora, expected = of("lora"), of("g_lora")
    assert set(lora) == set(prior.init_psi(weights, jax.random.key(0), numbers["tokens"][0], [Query("null", lora=LORA)])["lora"])

    @jax.jit
    @jax.value_and_grad
    def fit(lora):
        cond = Cond(numbers["tokens"], lora=jnp.full(8, LORA), camera=CAMERAS)
        eps = prior.predict(weights, {"lora": lora}, numbers["latents"], numbers["t"], cond)
        return jnp.mean((eps - numbers["noise"]) ** 2)

    loss, found = fit(lora)
    np.testing.assert_allclose(loss, numbers["loss"], rtol=1e-5)
    flat = lambda tree: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])  # noqa: E731
    print(f"LoRA: {relative(flat(found), flat(expected)):.1e}")
    assert relative(flat(found), flat(expected)) < 1e-4


# --- laws -------------------------------------------------------------------------------------------------------------------
def test_permuting_the_views_of_a_group_permutes_their_predictions(four, numbers):
    order = jnp.array([2, 0, 3, 1, 4, 5, 6, 7])
    inputs = (numbers["latents"], numbers["t"], Cond(numbers["tokens"], camera=CAMERAS))
    eps = predicted(four, *inputs)
    permuted = predicted(four, *jax.tree.map(lambda x: x[order], inputs))
    np.testing.assert_allclose(permuted, eps[order], atol=2e-6)
    # Exchanged between groups they have other company, and other predictions.
    swapped = jnp.array([4, 1, 2, 3, 0, 5, 6, 7])
    assert np.abs(predicted(four, *jax.tree.map(lambda x: x[swapped], inputs)) - eps[swapped]).max() > 1e-3


def test_one_view_without_a_camera_is_the_single_view_unet_bit_for_bit(mvdream, four, numbers):
    """The same weights in the U-Net of diffusers, which knows no views and no cameras."""
    config = json.loads((mvdream / "unet" / "config.json").read_text())
    own = {key: value for key, value in config.items() if key in multi_view.KINDS}
    single = flax_networks.unet(multi_view.diffusers_config(own))
    params = {name: part for name, part in four[1]["unet"].items() if name != "camera_embedding"}
    inputs = (numbers["latents"], numbers["t"], numbers["tokens"])
    expected = jax.jit(partial(flax_networks.predict_noise, single))(params, *inputs)
    alone = stable_diffusion(mvdream, views=1)
    np.testing.assert_array_equal(predicted((alone, four[1]), *inputs[:2], Cond(inputs[2])), expected)


@pytest.mark.parametrize("options", [{"attention": "fused"}, {"remat": True}])
def test_other_ways_to_compute_attention_join_the_views_too(mvdream, four, numbers, options):
    inputs = (numbers["latents"], numbers["t"], Cond(numbers["tokens"], camera=CAMERAS))
    eps = predicted((stable_diffusion(mvdream, **options), four[1]), *inputs)
    np.testing.assert_allclose(eps, numbers["eps_4"], atol=1e-4)


# --- folders ----------------------------------------------------------------------------------------------------------------
def test_a_folder_says_what_it_is(mvdream, sd, four):
    assert (views_of(str(mvdream)), four[0].views, views_of(str(sd))) == (V, V, 1)
    assert hub.family(mvdream) == "MVDream, 4 views together, text width 32"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ip_dim": 16}, "ip_dim must be 0, got 16"),
        ({"num_head_channels": 24}, r"num_head_channels must divide the channels \[32, 64\] of all levels, got 24"),
        ({"num_classes": 10}, "num_classes is not supported, got 10"),
        ({"context_dim": None}, "context_dim must be a whole number, got None"),
        ({"camera_dim": 12}, "camera_dim must be 16, got 12"),
    ],
)
def test_a_network_of_another_kind_is_refused(mvdream, tmp_path, changes, says):
    folder = shutil.copytree(mvdream, tmp_path / "folder")
    file = folder / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ValueError, match=says):
        stable_diffusion(folder)


def test_a_missing_array_is_named(mvdream, tmp_path):
    folder = shutil.copytree(mvdream, tmp_path / "folder")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    arrays = load_file(file)
    del arrays["camera_embed.2.bias"]
    save_file(arrays, file)
    with pytest.raises(ValueError, match=r"camera_embedding\.linear_2\.bias is missing"):
        stable_diffusion(folder).init(jax.random.key(0))


def test_groups_must_be_whole_and_single_image_priors_have_none(sd, four, numbers):
    inputs = (numbers["latents"], numbers["t"], Cond(numbers["tokens"]))
    with pytest.raises(ValueError, match="takes groups of 4 views, got 6 examples"):
        predicted(four, *jax.tree.map(lambda x: x[:6], inputs))
    with pytest.raises(ValueError, match="views must be 1 for a prior of single images, got 4"):
        stable_diffusion(sd, views=4)
