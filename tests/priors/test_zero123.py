"""The Zero-1-to-3 prior against PyTorch on a tiny random folder (tests/data/zero123/make.py), and its laws."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lods_jax.core.cameras import orbit_camera, relative_pose
from lods_jax.core.noise_schedule import STABLE_DIFFUSION
from lods_jax.core.types import Cond, Query
from lods_jax.distillation.objectives import sds
from lods_jax.distillation.scores import Denoiser, score
from lods_jax.priors import flax_networks
from lods_jax.priors.diffusers_folder import read_config
from lods_jax.priors.zero123 import zero123
from lods_jax.training.image_to_3d import condition_on_image, select_zero123_prompts

DATA = Path(__file__).resolve().parents[1] / "data" / "zero123"
KEY = jax.random.key(0)


def camera(azimuth, elevation, radius):
    n = len(azimuth)
    angle = lambda x: jnp.deg2rad(jnp.asarray(x, jnp.float32))  # noqa: E731
    return orbit_camera(angle(azimuth), angle(elevation), jnp.asarray(radius, jnp.float32), jnp.full(n, 0.8))


@pytest.fixture(scope="module")
def arrays():
    stored = np.load(DATA / "arrays.npz")
    return {name: jnp.asarray(x.transpose(0, 2, 3, 1) if x.ndim == 4 else x) for name, x in stored.items()}


@pytest.fixture(scope="module")
def posed():
    posed = zero123(DATA)
    return posed, posed.prior.init(KEY)


def test_picture_token_and_noise_are_those_of_pytorch(posed, arrays):
    (prior, _), weights = posed
    encoder = flax_networks.image_encoder(read_config(DATA / "image_encoder" / "config.json"))
    embedding = jax.jit(partial(flax_networks.encode_image, encoder))(weights["image"], arrays["pixels"])
    np.testing.assert_allclose(embedding, arrays["embedding"], atol=2e-5)
    join = weights["camera"]["projection"]
    token = jnp.concatenate([arrays["embedding"], arrays["pose"]], -1) @ join["kernel"] + join["bias"][None]
    np.testing.assert_allclose(token[:, None], arrays["token"], atol=2e-5)
    cond = Cond(tokens=arrays["token"], image=arrays["mode"])
    eps = jax.jit(prior.predict)(weights, {}, arrays["latents"], arrays["t"], cond)
    np.testing.assert_allclose(eps, arrays["eps"], atol=2e-5)


def test_the_picture_enters_as_unscaled_latents_and_embedding(posed, arrays):
    (_, encode_image), weights = posed
    encode_image = jax.jit(encode_image)
    tables = encode_image(weights, arrays["image01"][0], camera([0], [0], [2]))
    np.testing.assert_allclose(tables["image"], arrays["mode"][0], atol=2e-5)
    tables = encode_image(weights, arrays["pixels"][1], camera([0], [0], [2]))
    np.testing.assert_allclose(tables["embedding"], arrays["embedding"][1], atol=2e-5)


def test_a_pose_is_relative():
    one = camera([20], [10], [2])
    poses = relative_pose(one, camera([20, 110, 200], [10, 40, 10], [2, 2, 2.5]))
    expected = [[0, 0, 1, 0], [-np.pi / 6, 1, 0, 0], [0, 0, -1, 0.5]]
    np.testing.assert_allclose(poses, expected, atol=1e-6)
    # Turning both cameras changes nothing.
    turned = relative_pose(camera([75], [10], [2]), camera([75, 165, 255], [10, 40, 10], [2, 2, 2.5]))
    np.testing.assert_allclose(turned, poses, atol=1e-5)


def test_null_is_zeros_and_the_prompt_sees_the_picture(posed, arrays):
    (prior, encode_image), weights = posed
    objective, eye, seen = condition_on_image(sds(3.0)), camera([0, 90], [0, 0], [2, 2]), []
    rows, predict_noise_fn = select_zero123_prompts(
        jax.jit(encode_image)(weights, arrays["image01"][0], camera([0], [0], [2])), eye
    )

    def watch(psi, z_t, t, cond):
        seen.append(cond)
        return jax.jit(prior.predict)(weights, psi, z_t, t, cond)

    force = score(
        objective,
        Denoiser(watch, STABLE_DIFFUSION),
        {},
        {"render": arrays["latents"]},
        rows,
        (20, 980),
        jax.random.split(KEY, 2),
        None,
        predict_noise_fn,
    )
    (cond,) = seen
    assert force.shape == arrays["latents"].shape
    assert not jnp.any(cond.tokens[2:])
    assert not jnp.any(cond.image[2:])
    np.testing.assert_allclose(cond.image[:2], jnp.broadcast_to(arrays["mode"][:1], (2, 8, 8, 4)), atol=2e-5)
    assert jnp.any(cond.tokens[0] != cond.tokens[1])  # another pose, another token


def test_what_it_cannot_do_is_refused(posed, arrays):
    (prior, _), weights = posed
    with pytest.raises(ValueError, match="takes no text"):
        prior.embed(weights, ["a mug"])
    with pytest.raises(ValueError, match="learns nothing"):
        prior.init_psi(weights, KEY, jnp.zeros((1, 32)), [Query("learned")])
    with pytest.raises(ValueError, match=r"has an input for an image: give Cond\.image"):
        prior.predict(weights, {}, arrays["latents"], arrays["t"], Cond(tokens=arrays["token"]))


def test_a_folder_of_the_other_kind_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="image_encoder"):
        zero123(DATA.parent / "lods_parity" / "sd")
