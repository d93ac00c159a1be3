"""Folders as people have them: saved by other versions, with one variant alone, damaged. `tests/data/sd_folders` is from PyTorch:

transformers5    a folder that diffusers 0.39 and transformers 5.24 saved: a text encoder whose names lack `text_model.`, and
                 tokenizer.json alone
alpha_pattern, peft    adapters of its U-Net, with alpha_pattern in the metadata, and with adapter_config.json beside them
arrays.npz, NCHW       ids, emb of TEXTS; eps at z, t; eps of the U-Net with the adapters at lora_emb; zero_snr_v, what a
                       network says at z, t, and zero_snr_eps, the noise that this means without signal at the last timestep
"""

import json
import logging
import shutil
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lods_jax.core.types import Cond
from lods_jax.priors import tokenizer, torch_weights
from lods_jax.priors.diffusers_folder import read_vocabulary, weight_files
from lods_jax.priors.stable_diffusion import stable_diffusion

TEXTS = ["a red mug, front view!", "", "ein Grünes Haus 3.5 (very)"]
UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


@pytest.fixture
def folder(folders, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(folders / "transformers5", tmp_path / "sd")


def rewrite(file, change):
    """Changes the arrays of a weight file."""
    save_file(change(load_file(file)), file, {"format": "pt"})


def edit(file, **changes):
    """Changes the values of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def refused(folder):
    """What the folder is refused with, in one line; texts are embedded if it isn't refused before."""

    def embed():
        prior = stable_diffusion(folder)
        prior.embed(prior.init(jax.random.key(0)), ["a red mug"])

    with pytest.raises((ValueError, FileNotFoundError)) as error:
        embed()
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


# --- read right -------------------------------------------------------------------------------------------------------------
def test_what_transformers_5_saves_gives_pytorchs_text_and_noise(folders, torch_arrays):
    prior, a = stable_diffusion(str(folders / "transformers5")), torch_arrays
    weights = prior.init(jax.random.key(0))
    clip = tokenizer.load_tokenizer(folders / "transformers5")
    np.testing.assert_array_equal(tokenizer.tokenize(clip, TEXTS, 77), a["ids"])
    tokens = prior.embed(weights, TEXTS)
    np.testing.assert_allclose(tokens, a["emb"], atol=1e-5)
    np.testing.assert_allclose(jax.jit(prior.predict)(weights, {}, a["z"], a["t"], Cond(tokens)), a["eps"], atol=2e-5)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: {f"text_model.{name}": array for name, array in x.items()},
        lambda x: x | {"text_projection.weight": x["final_layer_norm.weight"], "logit_scale": np.ones((), np.float32)},
        lambda x: (
            {f"text_model.{name}": array for name, array in x.items()}
            | {
                "vision_model.post_layernorm.bias": np.ones(3, "f"),
                "visual_projection.weight": np.ones((2, 3), np.float32),
            }
        ),
        lambda x: x | {"embeddings.position_ids": np.arange(77)[None]},
    ],
    ids=["transformers 4", "with projection", "whole CLIP", "position ids"],
)
def test_all_ways_to_save_the_text_encoder_are_one(folder, folders, change):
    rewrite(folder / TEXT, change)
    ours, expected = (stable_diffusion(f).init(jax.random.key(0))["text"] for f in (folder, folders / "transformers5"))
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


def test_the_config_of_a_whole_clip_is_read(folder, folders):
    config = json.loads((folder / "text_encoder/config.json").read_text())
    whole = {"model_type": "clip", "text_config": config, "vision_config": {"image_size": "none"}}
    (folder / "text_encoder/config.json").write_text(json.dumps(whole))
    ours, expected = (stable_diffusion(f).init(jax.random.key(0))["text"] for f in (folder, folders / "transformers5"))
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


@pytest.mark.parametrize("size", [[8, 8], 8])
def test_the_size_of_the_latents_may_be_a_list(folder, size):
    edit(folder / "unet/config.json", sample_size=size)
    prior = stable_diffusion(folder)
    z = jax.eval_shape(prior.encode, jax.eval_shape(prior.init, jax.random.key(0)), jnp.zeros((1, 16, 16, 3)), jax.random.key(0))
    assert z.shape == (1, 8, 8, 4)


def test_the_only_variant_of_a_part_is_found_by_itself(folder):
    (folder / UNET).rename(half := folder / "unet/diffusion_pytorch_model.fp16.safetensors")
    assert weight_files(folder, "unet") == [half]


def test_the_default_file_goes_before_a_variant_that_nobody_asked_for(folder):
    half = shutil.copy(folder / UNET, folder / "unet/diffusion_pytorch_model.fp16.safetensors")
    assert weight_files(folder, "unet") == [folder / UNET]
    assert weight_files(folder, "unet", "fp16") == [half]
    assert weight_files(folder, "vae", "fp16") == [folder / "vae/diffusion_pytorch_model.safetensors"]  # non_ema: U-Net alone


def test_shards_are_no_variant(folder):
    state, directory = load_file(folder / UNET), folder / "unet"
    (folder / UNET).unlink()
    names = [f"diffusion_pytorch_model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for file, keys in zip(names, (sorted(state)[::2], sorted(state)[1::2]), strict=True):
        save_file({k: state[k] for k in keys}, directory / file)
    index = {"weight_map": {k: names[i % 2] for i, k in enumerate(sorted(state))}}
    (directory / "diffusion_pytorch_model.safetensors.index.fp16.json").write_text(json.dumps(index))
    assert [file.name for file in weight_files(folder, "unet")] == names


@pytest.mark.parametrize("name", ["transformers4", "transformers5"])
def test_counting_the_tokens_of_a_long_text_warns_of_nothing(folders, sd, caplog, name):
    clip = tokenizer.load_tokenizer(sd if name == "transformers4" else folders / name)
    with transformers_logs_reach(caplog):
        assert len(tokenizer.truncate(clip, "a red mug " * 100, "", 77).split()) < 77
    assert caplog.records == []


@contextmanager
def transformers_logs_reach(caplog):
    """transformers keeps its log lines from the root logger, where pytest listens."""
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    yield
    logger.removeHandler(caplog.handler)


# --- refused in one line ----------------------------------------------------------------------------------------------------
def test_one_of_several_variants_must_be_chosen(folder):
    for name in ("fp16", "ema"):
        shutil.copy(folder / UNET, folder / f"unet/diffusion_pytorch_model.{name}.safetensors")
    (folder / UNET).unlink()
    assert "weights of several variants, ema, fp16: choose one by --prior.variant" in refused(folder)
    with pytest.raises(FileNotFoundError, match=r"no weights of the variant 'fp32'; its variants: ema, fp16"):
        stable_diffusion(folder, variant="fp32")


@pytest.mark.parametrize(
    ("dtype", "named"),
    [(np.int64, "is of type I64"), (np.bool_, "is of type BOOL"), (ml_dtypes.float8_e4m3fn, "is of type F8_E4M3")],
)
def test_weights_that_are_no_floats_are_refused_with_file_and_tensor(folder, dtype, named):
    rewrite(folder / UNET, lambda x: x | {"conv_in.bias": x["conv_in.bias"].astype(dtype)})
    assert f"{UNET}: conv_in.bias {named}" in refused(folder)


@pytest.mark.parametrize(
    ("value", "dtype"), [(np.nan, np.float32), (np.inf, np.float16), (-np.inf, np.float32), (np.nan, ml_dtypes.bfloat16)]
)
def test_weights_that_are_not_finite_are_refused_with_file_and_tensor(folder, value, dtype):
    rewrite(folder / UNET, lambda x: x | {"conv_in.bias": np.full_like(x["conv_in.bias"], value, dtype)})
    assert f"{UNET}: conv_in.bias has values that are NaN or infinite" in refused(folder)


def test_weights_beyond_a_half_precision_are_refused_for_it_alone(folder):
    rewrite(folder / UNET, lambda x: x | {"conv_in.bias": np.full_like(x["conv_in.bias"], 1e5, np.float32)})
    stable_diffusion(folder).init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"unet: conv_in\.bias .* float16"):
        stable_diffusion(folder, jnp.float16).init(jax.random.key(0))


@pytest.mark.parametrize("at", [0, 531])
def test_a_token_without_an_embedding_is_refused_by_its_word(folder, at):
    """Words that a textual inversion added to the tokenizer alone; a start token that lies beyond the table."""
    rewrite(folder / TEXT, lambda x: x | {"embeddings.token_embedding.weight": x["embeddings.token_embedding.weight"][:at]})
    edit(folder / "text_encoder/config.json", vocab_size=at)
    said = refused(folder)
    assert f"the text encoder has embeddings for 0 to {at - 1}" in said or at == 0


@pytest.mark.parametrize(
    ("file", "changes", "named"),
    [
        ("unet/config.json", {"in_channels": 9}, "has 9 input channels, as one for inpainting has"),
        ("unet/config.json", {"out_channels": 8}, "out_channels and the autoencoder's latent_channels differ: 8 and 4"),
        ("unet/config.json", {"cross_attention_dim": 16}, "cross_attention_dim and the text encoder's hidden_size differ"),
        (
            "unet/config.json",
            {"block_out_channels": "32"},
            "unet/config.json: block_out_channels must be a list",
        ),
        ("unet/config.json", {"block_out_channels": [32.0, 32]}, "block_out_channels must be a list of whole numbers"),
        (
            "unet/config.json",
            {"attention_head_dim": True},
            "attention_head_dim must be a whole number or a list",
        ),
        ("unet/config.json", {"attention_head_dim": 0}, "unet/config.json"),
        ("unet/config.json", {"layers_per_block": 10**9}, "layers_per_block must be a whole number up to 32"),
        ("unet/config.json", {"down_block_types": [["CrossAttnDownBlock2D"]]}, "down_block_types must be a list of texts"),
        ("unet/config.json", {"down_block_types": ["DownBlock2D"]}, "unet/config.json"),
        ("unet/config.json", {"sample_size": [8, 16]}, "sample_size must be a whole number up to 2048, got [8, 16]"),
        ("vae/config.json", {"scaling_factor": "0.18"}, "vae/config.json: scaling_factor must be a number"),
        ("vae/config.json", {"latent_channels": None}, "vae/config.json: latent_channels must be a whole number"),
        ("text_encoder/config.json", {"hidden_size": "32"}, "text_encoder/config.json: hidden_size must be a whole number"),
        ("text_encoder/config.json", {"num_attention_heads": 5}, "text_encoder/config.json"),
        ("text_encoder/config.json", {"hidden_act": "no"}, "text_encoder/config.json"),
        ("text_encoder/config.json", {"model_type": "t5"}, "must be CLIP, with the model_type clip_text_model, got 't5'"),
    ],
)
def test_a_config_that_describes_no_prior_is_refused_by_its_file_before_weights_are_read(folder, file, changes, named):
    for weights in (UNET, TEXT, "vae/diffusion_pytorch_model.safetensors"):
        (folder / weights).write_text("not read")
    edit(folder / file, **changes)
    assert named in refused(folder)


@pytest.mark.parametrize("text", ["[]", "{", '{"words": 3}', '{"words": []}', '{"words": [1]}', '{"words": ["a"], "prompts": 1}'])
def test_a_vocabulary_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "vocabulary.json").write_text(text)
    with pytest.raises(ValueError, match=r"vocabulary\.json") as error:
        read_vocabulary(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("vocab.json", "[]"), ("vocab.json", '{"a": "b"}'), ("vocab.json", '{"a": -1}'), ("vocab.json", '{"a": true}'),
        ("vocab.json", "{}"), ("tokenizer_config.json", "[]"), ("tokenizer_config.json", '{"added_tokens_decoder": 3}'),
        ("merges.txt", b"\xff\xfe"),
    ],
)  # fmt: skip
def test_a_malformed_tokenizer_is_one_line(sd, tmp_path, file, text):
    shutil.copytree(sd / "tokenizer", tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match="tokenizer") as error:
        tokenizer.tokenize(tokenizer.load_tokenizer(tmp_path), ["a mug"], 77, 1000)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["[]", "{", "{}", '{"model": {"type": "BPE", "vocab": {"a": "b"}, "merges": []}}'])
def test_a_malformed_tokenizer_of_transformers_5_is_one_line(folder, text):
    (folder / "tokenizer/tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match="holds no CLIP tokenizer") as error:
        tokenizer.load_tokenizer(folder)
    assert "\n" not in str(error.value)


def test_the_file_of_a_wrong_array_is_named(folder):
    rewrite(folder / TEXT, lambda x: x | {"text_model.surprise": np.ones(3, np.float32)})
    assert "text_encoder: text_model.surprise of shape (3,) has no place in this network" in refused(folder)


def test_to_flax_drops_nothing_of_a_network_that_is_no_clip(sd):
    state = {"logit_scale": np.ones(())}
    with pytest.raises(ValueError, match="logit_scale"):
        torch_weights.to_flax(state, {"conv_in": {"bias": jax.ShapeDtypeStruct((1,), np.float32)}})
