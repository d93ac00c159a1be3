"""Adapters that people bring along act as in PyTorch. `tests/data/adapters/make.py` made the files and PyTorch's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lods_jax.core.types import Cond
from lods_jax.priors.adapter_files import read_lora
from lods_jax.priors.networks import load
from lods_jax.priors.prompt_encoder import TABLE, replaced
from lods_jax.priors.stable_diffusion import stable_diffusion
from lods_jax.priors.user_adapters import merge, read_token_embedding

TEXTS = ["a red mug, front view", ""]
INVERTED = ["a <cat-toy> on a mug", "wooden <cat-toy>, side view", "a red mug"]
SCALES = {"kohya": 0.8, "diffusers": 0.5}
EMBEDDINGS = ("learned_embeds", "Wooden")


@pytest.fixture(scope="module")
def data(sd):
    return sd.parents[1] / "adapters"


@pytest.fixture(scope="module")
def answers(data):
    """PyTorch's numbers, images as NHWC."""
    stored = np.load(data / "arrays.npz")
    return {name: jnp.asarray(x.transpose(0, 2, 3, 1) if x.ndim == 4 else x) for name, x in stored.items()}


@pytest.fixture(scope="module")
def predict(prior):
    return jax.jit(prior.predict)


@pytest.fixture(scope="module")
def inverted(sd, data):
    """A prior with both textual inversions, and its weights."""
    prior = stable_diffusion(sd, embeddings=[data / f"{name}.safetensors" for name in EMBEDDINGS])
    return prior, prior.init(jax.random.key(0))


@pytest.mark.parametrize(
    "names", [[], ["kohya"], ["diffusers"], ["kohya", "diffusers"]], ids=["base", "kohya", "diffusers", "both"]
)
def test_merged_loras_say_what_pytorch_says(sd, data, answers, prior, predict, names):
    """Attention, feed-forward, convolutions and text encoder; without the adapter the answers differ by 1 to 3."""
    called = {0: "base", 2: "both"}.get(len(names), "".join(names))
    weights = stable_diffusion(sd, loras=[(data / f"{name}.safetensors", SCALES[name]) for name in names]).init(jax.random.key(0))
    eps = predict(weights, {}, answers["z"], answers["t"].astype(jnp.int32), Cond(answers["emb"]))
    np.testing.assert_allclose(eps, answers[f"{called}_eps"], atol=5e-5)
    np.testing.assert_allclose(prior.embed(weights, TEXTS), answers[f"{called}_emb"], atol=2e-5)


def test_a_merged_lora_is_rounded_once(sd, data, weights):
    """In bfloat16 the sum in float32 is rounded, not the weight and the sum."""
    shapes = jax.eval_shape(lambda: weights["text"])
    adapter = read_lora(data / "kohya.safetensors", jax.eval_shape(lambda: {part: weights[part] for part in ("unet", "text")}))[
        "text"
    ]
    whole, rounded = (load(sd, "text", shapes, dtype, None, [(adapter, 0.8)]) for dtype in (jnp.float32, jnp.bfloat16))
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x.astype(jnp.bfloat16), y), whole, rounded)


def test_the_names_of_peft_and_of_old_releases_are_the_same_adapter(data, weights, tmp_path):
    flat = load_file(data / "diffusers.safetensors")
    shapes = {part: weights[part] for part in ("unet", "text")}
    expected = read_lora(data / "kohya.safetensors", shapes)
    kohya = load_file(data / "kohya.safetensors")
    # Names with dots again, from those of the layers that were read.
    dots = {f"lora_unet_{name.replace('.', '_')}": name for name in expected["unet"]}
    dots |= {f"lora_te_{name.replace('.', '_')}": name for name in expected["text"]}
    factor = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight", "alpha": "alpha"}
    split = {key: key.partition(".")[::2] for key in kohya}
    save_file(
        {f"base_model.model.{dots[site]}.{factor[part]}": kohya[key] for key, (site, part) in split.items()},
        tmp_path / "p.safetensors",
    )
    jax.tree.map(np.testing.assert_array_equal, read_lora(tmp_path / "p.safetensors", shapes), expected)
    old = {key.replace(".q_proj.lora_linear_layer", ".to_q_lora"): x for key, x in flat.items()}
    save_file(old, tmp_path / "o.safetensors")
    save_file(flat, tmp_path / "n.safetensors")
    jax.tree.map(np.testing.assert_array_equal, *(read_lora(tmp_path / f"{name}.safetensors", shapes) for name in "on"))


def test_merging_is_the_side_path_of_the_same_factors(weights, data):
    """scale up down, in the layout of a kernel."""
    adapter = read_lora(data / "diffusers.safetensors", {"unet": weights["unet"], "text": weights["text"]})["unet"]
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_v"
    kernel = lambda tree: tree["mid_block"]["attentions_0"]["transformer_blocks_0"]["attn1"]["to_v"]["kernel"]  # noqa: E731
    before = jax.tree.map(np.asarray, weights["unet"])
    after = merge(before, {name: adapter[name]}, 0.5)
    x = np.random.default_rng(0).normal(size=(3, len(kernel(before)))).astype(np.float32)
    side = 0.5 * adapter[name].scale * (x @ adapter[name].down.T) @ adapter[name].up.T
    np.testing.assert_allclose(x @ kernel(after), x @ kernel(before) + side, atol=1e-5)


def shrunk(x):
    """An array of an adapter for another width of text."""
    return x[:, : x.shape[1] // 2]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda flat: flat | {"lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha": np.ones((), "f")}, "was trained on SDXL"),
        (
            lambda flat: flat | {"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": np.ones((2, 2), "f")},
            "SD 3 or Flux",
        ),
        (
            lambda flat: {key: shrunk(x) if "attn2_to_k.lora_down" in key else x for key, x in flat.items()},
            "text width 16, and this",
        ),
        (lambda flat: {key: x[:1] if "ff_net_2.lora_down" in key else x for key, x in flat.items()}, r"ff\.net\.2 do not fit"),
        (lambda flat: {key: x[..., :1] if "conv1.lora_down" in key else x for key, x in flat.items()}, "conv1 do not fit"),
        (lambda flat: {key: x for key, x in flat.items() if "conv1.lora_up" not in key}, "up is missing"),
        (lambda flat: flat | {"lora_unet_nowhere.lora_up.weight": np.ones((2, 2), "f")}, "no layer lora_unet_nowhere"),
        (lambda flat: flat | {"lora_unet_conv_in.hada_w1_a": np.ones((2, 2), "f")}, "is a LoHa"),
        (lambda flat: flat | {"lora_unet_conv_in.dora_scale": np.ones((2, 2), "f")}, "is a DoRA"),
        (lambda flat: {key: x * np.inf if "conv1.lora_up" in key else x for key, x in flat.items()}, "NaN or infinite"),
    ],
    ids=["SDXL", "transformer", "width", "rank", "window", "half", "nowhere", "LoHa", "DoRA", "infinite"],
)
def test_a_lora_that_does_not_fit_is_refused_in_one_line(data, weights, tmp_path, change, says):
    file = tmp_path / "my.safetensors"
    save_file(change(load_file(data / "kohya.safetensors")), file)
    with pytest.raises(ValueError, match=says) as error:
        read_lora(file, {part: weights[part] for part in ("unet", "text")})
    assert str(error.value).startswith(str(file))
    assert "\n" not in str(error.value)


def test_files_that_are_missing_pickled_or_cut_short_are_refused_before_weights_are_read(sd, data, tmp_path):
    cut, pickled = tmp_path / "cut.safetensors", tmp_path / "old.pt"
    cut.write_bytes((data / "kohya.safetensors").read_bytes()[:5000])
    pickled.write_bytes(b"PK")
    for option in ({"loras": [(pickled, 1.0)]}, {"embeddings": [pickled]}):
        with pytest.raises(ValueError, match=r"old\.pt is pickled"):
            stable_diffusion(sd, **option)
    for option in ({"loras": [(tmp_path / "no.safetensors", 1.0)]}, {"embeddings": [tmp_path / "no.safetensors"]}):
        with pytest.raises(FileNotFoundError, match=r"there is no file .*no\.safetensors"):
            stable_diffusion(sd, **option)
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        stable_diffusion(sd, embeddings=[cut])
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        read_lora(cut, {})


# --- textual inversions -------------------------------------------------------------------------------------------------------
def test_textual_inversions_of_several_vectors_read_as_in_pytorch(inverted, answers):
    prior, weights = inverted
    np.testing.assert_allclose(prior.embed(weights, INVERTED), answers["inverted_emb"], atol=1e-5)


def test_a_token_is_found_in_any_case_and_not_inside_a_word(inverted, prior):
    adapted, weights = inverted
    upper, lower, inside = adapted.embed(weights, ["WOODEN <Cat-Toy>", "wooden <cat-toy>", "woodenly"])
    np.testing.assert_array_equal(upper, lower)
    np.testing.assert_allclose(inside, stable_diffusion_says(prior, weights, "woodenly"), atol=1e-5)


def stable_diffusion_says(prior, weights, text):
    """What the prior without textual inversions says of a text, with the rows of its own vocabulary."""
    table = weights["text"]["text_model"]["embeddings"]["token_embedding"]["embedding"]
    vocabulary = table[: len(table) - 5]
    return prior.embed({"text": replaced(weights["text"], TABLE, vocabulary)}, [text])[0]


def test_tokens_count_as_many_as_their_vectors(inverted):
    """Of 77 tokens two are start and end: 25 times three fit, and the 26th does not."""
    prior, _ = inverted
    assert prior.truncate(" ".join(["<cat-toy>"] * 25)).count("toy") == 25
    assert prior.truncate(" ".join(["<cat-toy>"] * 26)).count("toy") == 25


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"<x>": np.ones((2, 1024), np.float32)}, r"trained on Stable Diffusion 2\.x"),
        ({"clip_l": np.ones((2, 32), np.float32), "clip_g": np.ones((2, 48), np.float32)}, "for two text encoders"),
        ({"<x>": np.ones(32, np.float32), "<y>": np.ones(32, np.float32)}, "must hold one array"),
        ({"<CAT-toy>": np.ones(32, np.float32)}, "both stand for '<CAT-toy>'"),
        ({" ": np.ones(32, np.float32)}, "their word in prompts"),
        ({}, "must hold one array"),
    ],
)
def test_a_textual_inversion_that_does_not_fit_is_refused_in_one_line(sd, data, tmp_path, arrays, says):
    save_file(arrays, tmp_path / "e.safetensors")
    with pytest.raises(ValueError, match=says) as error:
        stable_diffusion(sd, embeddings=[data / "learned_embeds.safetensors", tmp_path / "e.safetensors"])
    assert "e.safetensors" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_token_is_the_key_of_diffusers_and_the_name_of_a_file_of_a1111(data):
    assert [read_token_embedding(data / f"{name}.safetensors").token for name in EMBEDDINGS] == ["<cat-toy>", "Wooden"]
