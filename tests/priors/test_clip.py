"""CLIP of a folder against PyTorch (tests/data/clip/make.py), and what its figures mean."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lods_jax.priors.clip import Clip, judge, likeness, load_clip, unit

FOLDER = Path(__file__).resolve().parents[1] / "data" / "clip"


@pytest.fixture(scope="module")
def clip():
    return load_clip(FOLDER)


@pytest.fixture(scope="module")
def torch():
    return np.load(FOLDER / "arrays.npz")


@pytest.fixture(scope="module")
def pixels(torch):
    return torch["pixels"].transpose(0, 2, 3, 1)


def test_embeddings_are_those_of_pytorch(clip, torch, pixels):
    """Texts of unlike lengths; the last is cut to the sixteen tokens that the encoder takes."""
    assert clip.size == 16
    np.testing.assert_allclose(clip.embed_texts(torch["texts"].tolist()), unit(torch["text_embeds"]), atol=2e-5)
    np.testing.assert_allclose(clip.embed_images(pixels), unit(torch["image_embeds"]), atol=2e-5)


def test_the_score_is_a_hundred_times_the_mean_cosine_of_pytorch(clip, torch, pixels):
    for i, text in enumerate(torch["texts"]):
        assert judge(clip, pixels, str(text))["clip_score"] == pytest.approx(100 * torch["cosine"][:, i].mean(), abs=2e-3)


def test_any_number_of_images_is_asked_in_calls_of_one_size(clip, pixels):
    many = np.tile(pixels, (7, 1, 1, 1))
    np.testing.assert_allclose(clip.embed_images(many), np.tile(clip.embed_images(pixels), (7, 1)), atol=1e-6)


def test_r_precision_is_the_share_of_views_that_are_nearer_to_their_prompt_than_to_any_other():
    """Views along the first axis and the second; prompts along the axes."""
    axes = dict(zip(("a mug", "a car", "a chair"), np.eye(3), strict=True))
    views = np.array([[1.0, 0.5, 0], [1.0, 0.2, 0], [0.3, 1.0, 0], [1.0, 0, 0.9]])[:, None, None]  # images of one pixel
    clip = Clip(1, lambda texts: np.stack([axes[text] for text in texts]), lambda rgb: unit(rgb[:, 0, 0]))
    assert judge(clip, views, "a mug", ["a car", "a mug", "a chair"])["clip_r_precision"] == 0.75
    assert judge(clip, views, "a car", ["a mug"])["clip_r_precision"] == 0.25
    assert "clip_r_precision" not in judge(clip, views, "a mug", ["a mug"])


def test_what_a_train_step_asks_is_the_score_of_pytorch(clip, torch, pixels):
    """One text for each picture, within a jitted function whose argument the parameters are."""
    asked = np.arange(len(pixels)) % len(torch["texts"])
    texts = jnp.asarray(clip.embed_texts(torch["texts"].tolist()))[asked]
    found = jax.jit(lambda params, rgb: likeness(clip, params, rgb, texts))(clip.image_params, jnp.asarray(pixels))
    np.testing.assert_allclose(found, 100 * torch["cosine"][np.arange(len(pixels)), asked], atol=2e-3)


def test_pictures_of_any_size_and_brightness_are_asked_about(clip, pixels):
    """A smooth picture looks alike at twice the size; what is beyond white and black is cut."""
    ramp = lambda n: jnp.broadcast_to(jnp.linspace(0, 1, n)[None, :, None, None], (1, n, n, 3))  # noqa: E731
    text = jnp.asarray(clip.embed_texts(["a mug"]))
    ask = lambda rgb: np.asarray(likeness(clip, clip.image_params, rgb, text))  # noqa: E731
    np.testing.assert_allclose(ask(ramp(32)), ask(ramp(16)), atol=0.5)
    bright = 3 * jnp.asarray(pixels[:1]) - 1
    np.testing.assert_array_equal(ask(bright), ask(jnp.clip(bright, 0, 1)))


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda f: (f / "config.json").unlink(), FileNotFoundError, "config.json is missing: expected a CLIP"),
        (lambda f: (f / "model.safetensors").unlink(), FileNotFoundError, "model.safetensors is missing"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), ValueError, "only pickled weights"),
        (lambda f: (f / "merges.txt").unlink(), FileNotFoundError, "merges.txt is missing"),
        (lambda f: (f / "config.json").write_text(json.dumps({"model_type": "bert"})), ValueError, "must hold a CLIP"),
    ],
)
def test_what_is_no_clip_is_refused_in_a_line(change, error, says, tmp_path):
    folder = shutil.copytree(FOLDER, tmp_path / "clip")
    change(folder)
    with pytest.raises(error, match=says) as caught:
        load_clip(folder)
    assert "\n" not in str(caught.value)
