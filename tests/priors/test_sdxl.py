"""A tiny SDXL beside PyTorch's diffusers, and the laws of its texts. `tests/data/sdxl/make.py` made PyTorch's numbers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from lods_jax.core.types import Cond, Query
from lods_jax.distillation.objectives import lods_embedding
from lods_jax.distillation.perp_neg import interpolate_view_prompts
from lods_jax.priors import flax_networks, hub, lora
from lods_jax.priors.adapter_files import load_embedding, read_lora, save_embedding
from lods_jax.priors.sdxl import added_conditions, pack, unpack
from lods_jax.priors.stable_diffusion import stable_diffusion
from lods_jax.scenes.images import image_batch
from lods_jax.training.distill_2d import in_latents
from lods_jax.training.distill_scene import distill_scene
from tests.sdxl import DATA, change, draw, make_folder

FILES = DATA / "sdxl"
TEXTS, INVERTED = ["a red mug, front view", "a dog"], ["a toy on a mug", "a dog"]
LORA, MERGED, POOLED, WIDTH, B = 0.5, 0.8, 24, 40, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("sdxl") / "sdxl")


@pytest.fixture(scope="module")
def numbers():
    """PyTorch's numbers, latents as NHWC."""
    stored = np.load(FILES / "arrays.npz")
    return {name: jnp.asarray(x.transpose(0, 2, 3, 1) if x.ndim == 4 else x) for name, x in stored.items()}


@pytest.fixture(scope="module")
def xl(folder):
    prior = stable_diffusion(folder)
    return prior, prior.init(jax.random.key(0))


def drawn(name, *shape):
    """An input as make.py draws it: standard normal."""
    x = draw(name, shape) * np.float32(np.prod(shape[1:]) ** 0.5 if len(shape) > 1 else 10)
    return jnp.asarray(x.transpose(0, 2, 3, 1) if x.ndim == 4 else x)


LATENTS, NOISE, T = drawn("latents", B, 4, 8, 8), drawn("noise", B, 4, 8, 8), jnp.array([17, 801])
TOKENS = pack(drawn("tokens", B, 77, WIDTH), drawn("pooled", B, POOLED))


@pytest.fixture(scope="module")
def predict(xl):
    return jax.jit(xl[0].predict)


def relative(a, b):
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


# --- parity -----------------------------------------------------------------------------------------------------------------
def test_embedded_texts_are_those_of_the_pipeline(xl, numbers):
    """Of the second tokenizer, whose padding is another token, too."""
    prior, weights = xl
    tokens, pooled = unpack(prior.embed(weights, TEXTS), prior.pooled)
    print(f"tokens: {np.abs(tokens - numbers['prompt_embeds']).max():.1e}")
    np.testing.assert_allclose(tokens, numbers["prompt_embeds"], atol=2e-5)
    np.testing.assert_allclose(pooled, numbers["pooled_prompt_embeds"], atol=2e-5)


def test_predicted_noise_is_pytorchs_and_sees_the_pooled_text_and_the_size(xl, predict, numbers):
    weights = xl[1]
    eps = predict(weights, {}, LATENTS, T, Cond(TOKENS))
    print(f"noise: {np.abs(eps - numbers['eps']).max():.1e}")
    np.testing.assert_allclose(eps, numbers["eps"], atol=1e-4)
    other = pack(unpack(TOKENS, POOLED)[0], jnp.zeros((B, POOLED)))
    assert np.abs(predict(weights, {}, LATENTS, T, Cond(other)) - eps).max() > 0.1
    sizes = lambda edge: added_conditions(jnp.zeros((B, POOLED)), edge, edge)["time_ids"]  # noqa: E731
    assert sizes(1024)[0].tolist() == [1024, 1024, 0, 0, 1024, 1024]


def test_gradients_of_embedding_pooled_vector_and_lora_are_pytorchs(xl, numbers):
    """The LoRA is on all transformer blocks, of which the second level has two for each attention."""
    prior, weights = xl
    shapes = prior.init_psi(weights, jax.random.key(0), TOKENS[0], [Query("null", lora=LORA)])["lora"]

    def factors(name, rank=2):
        wide = (drawn(f"{name}/down", rank, len(shapes[name]["down"])), drawn(f"{name}/up", shapes[name]["up"].shape[1], rank))
        return {"down": wide[0].T / rank, "up": 0.1 * wide[1].T}

    @jax.jit
    @jax.value_and_grad
    def fit(learned):
        text, lora = learned
        cond = Cond(jnp.broadcast_to(text, (B, *text.shape)), lora=jnp.full(B, LORA))
        return jnp.mean((prior.predict(weights, {"lora": lora}, LATENTS, T, cond) - NOISE) ** 2)

    loss, (text, lora) = fit((TOKENS[0], {name: factors(name) for name in shapes}))
    np.testing.assert_allclose(loss, numbers["loss"], rtol=1e-5)
    assert {name.split("/")[1] for name in numbers if name.startswith("g_lora/")} == set(shapes)
    pairs = dict(zip(("g_embedding", "g_pooled"), unpack(text, POOLED), strict=True))
    pairs |= {f"g_lora/{name}/{way}": lora[name][way].T for name in shapes for way in ("down", "up")}
    for part in ("g_embedding", "g_pooled", "g_lora"):
        names = [name for name in pairs if name.startswith(part)]
        error = relative(*(np.concatenate([np.ravel(side[name]) for name in names]) for side in (pairs, numbers)))
        print(f"{part}: {error:.1e}")
        assert error < 1e-4


@pytest.mark.parametrize("name", ["kohya", "diffusers"])
def test_merged_loras_say_what_pytorch_says(folder, xl, predict, numbers, name):
    """U-Net and both text encoders. kohya's has the names of SDXL's own code, and convolutions."""
    weights = stable_diffusion(folder, loras=[(FILES / f"{name}.safetensors", MERGED)]).init(jax.random.key(0))
    eps = predict(weights, {}, LATENTS, T, Cond(TOKENS))
    tokens, pooled = unpack(xl[0].embed(weights, TEXTS), POOLED)
    assert np.abs(numbers[f"{name}_eps"] - numbers["eps"]).max() > 0.1
    np.testing.assert_allclose(eps, numbers[f"{name}_eps"], atol=1e-4)
    np.testing.assert_allclose(tokens, numbers[f"{name}_embeds"], atol=5e-5)
    np.testing.assert_allclose(pooled, numbers[f"{name}_pooled"], atol=5e-5)


def test_a_textual_inversion_for_both_text_encoders_reads_as_in_pytorch(folder, numbers):
    """Its token is the name of the file; the pooled vector is that of the end token, not of the token with the largest id."""
    prior = stable_diffusion(folder, embeddings=[FILES / "toy.safetensors"])
    tokens, pooled = unpack(prior.embed(prior.init(jax.random.key(0)), INVERTED), POOLED)
    np.testing.assert_allclose(tokens, numbers["inverted_embeds"], atol=2e-5)
    np.testing.assert_allclose(pooled, numbers["inverted_pooled"], atol=2e-5)


def test_latents_have_the_scale_of_sdxls_vae(xl, monkeypatch):
    """The network is that of Stable Diffusion's VAE, which other tests hold against PyTorch."""
    prior, _ = xl
    monkeypatch.setattr(flax_networks, "encode_moments", lambda *_: (LATENTS, jnp.full_like(LATENTS, -30.0)))
    monkeypatch.setattr(flax_networks, "decode_image", lambda vae, params, z, attend: z[..., :3])
    z = prior.encode({"vae": None}, jnp.zeros((B, 16, 16, 3)), jax.random.key(0))
    np.testing.assert_allclose(z, 0.13025 * LATENTS, atol=1e-6)
    np.testing.assert_allclose(prior.decode({"vae": None}, 0.1 * z), 0.05 * LATENTS[..., :3] + 0.5, atol=1e-6)


# --- laws ---------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("width", [1, 4, 5, 11])
def test_a_packed_text_is_unpacked(width):
    tokens, pooled = drawn("a", 3, 2, 5), drawn("b", 3, width)
    jax.tree.map(np.testing.assert_array_equal, unpack(pack(tokens, pooled), width), (tokens, pooled))


def test_the_empty_text_is_zeros_where_the_folder_says_so(folder, xl, tmp_path, numbers):
    prior, weights = xl
    nothing, mug = prior.embed(weights, ["", "a mug"])
    assert not nothing.any()
    assert mug.any()
    said = make_folder(tmp_path / "sdxl", force_zeros_for_empty_prompt=False)
    tokens, pooled = unpack(stable_diffusion(said).embed(weights, [""]), POOLED)
    np.testing.assert_allclose(tokens, numbers["negative_prompt_embeds"], atol=2e-5)
    np.testing.assert_allclose(pooled, numbers["negative_pooled_prompt_embeds"], atol=2e-5)


def test_a_learned_text_starts_as_the_null_text_and_never_as_equal_rows(xl):
    """Equal rows get equal gradients: 77 tokens would stay one."""
    prior, weights = xl
    learned = lambda text: prior.init_psi(weights, jax.random.key(0), text, [Query("learned")])["embedding"]  # noqa: E731
    np.testing.assert_array_equal(learned(TOKENS[0]), TOKENS[0])
    rows = learned(jnp.zeros_like(TOKENS[0]))
    assert np.ptp(rows[:77], axis=0).min() > 0
    assert np.abs(rows).max() < 0.05


def test_a_learned_text_is_written_as_a_pipeline_of_pytorch_calls_it(tmp_path):
    save_embedding(tmp_path / "e.safetensors", TOKENS[0], POOLED)
    flat = load_file(tmp_path / "e.safetensors")
    assert {name: x.shape for name, x in flat.items()} == {
        "negative_prompt_embeds": (1, 77, WIDTH), "negative_pooled_prompt_embeds": (1, POOLED)
    }  # fmt: skip
    np.testing.assert_array_equal(load_embedding(tmp_path / "e.safetensors"), TOKENS[0])


def test_float16_is_for_the_unet_and_the_size_is_what_is_asked_for(folder):
    prior = stable_diffusion(folder, jnp.float16, image_size=32)
    weights = jax.eval_shape(prior.init, jax.random.key(0))
    dtypes = {part: {str(x.dtype) for x in jax.tree.leaves(own)} for part, own in weights.items()}
    assert dtypes == {"unet": {"float16"}, "vae": {"float32"}, "text": {"float32"}, "text_2": {"float32"}}
    z = jax.eval_shape(prior.encode, weights, jnp.zeros((B, 8, 8, 3)), jax.random.key(0))
    assert (z.shape, z.dtype) == ((B, 16, 16, 4), jnp.float32)


class TwoEmbeddings(nn.Module):
    """A timestep's and another condition's embedding, of the same kind and added up, as in SDXL's U-Net."""

    def setup(self):
        self.time_embedding, self.add_embedding = nn.Dense(8), nn.Dense(8)

    def __call__(self, x):
        return self.time_embedding(x) + self.add_embedding(x)


def test_a_pose_is_added_to_the_embedding_of_the_timestep_alone():
    """VSD's camera network."""
    module, x = TwoEmbeddings(), jnp.ones((B, 4))
    params = module.init(jax.random.key(0), x)
    pose = lora.init_pose(jax.random.key(1), 8) | {"bias_2": drawn("bias", 8)}
    with nn.intercept_methods(lora.pose_path(pose, jnp.zeros((B, 16)), jnp.ones(B))):
        moved = module.apply(params, x)
    np.testing.assert_allclose(moved - module.apply(params, x), jnp.broadcast_to(pose["bias_2"], (B, 8)), atol=1e-5)


def test_a_scene_is_distilled_with_perp_neg_and_words_of_views(xl):
    """LODS learns both the tokens and the pooled vector."""
    prior, weights = xl
    steps = distill_scene(
        image_batch(LATENTS), in_latents(prior), lods_embedding(100.0), "a mug", weights=weights, steps=2, batch=B,
        negative_prompt="a dog", select_prompts=interpolate_view_prompts,
    )  # fmt: skip
    *_, (state, metrics) = steps
    null = prior.embed(weights, ["a dog"])[0]
    for learned, start in zip(unpack(state.psi["embedding"], POOLED), unpack(null, POOLED), strict=True):
        assert np.abs(learned - start).min() > 1e-4  # Adam moves each number by about its rate
    assert metrics["score_rms"] > 0
    assert int(state.skipped) == 0


# --- folders ------------------------------------------------------------------------------------------------------------------
def changed(tmp_path, file, **changes):
    change(make_folder(tmp_path / "sdxl") / file, **changes)
    return tmp_path / "sdxl"


@pytest.mark.parametrize(
    ("file", "changes", "says"),
    [
        ("model_index.json", {"requires_aesthetics_score": True}, "is the refiner of SDXL"),
        ("scheduler/scheduler_config.json", {"timestep_spacing": "trailing"}, "distilled to a few steps, as sdxl-turbo"),
        ("scheduler/scheduler_config.json", {"_class_name": "LCMScheduler"}, "distilled to a few steps"),
        ("unet/config.json", {"projection_class_embeddings_input_dim": 48}, "must be more than the 6 x 8"),
        (
            "unet/config.json",
            {"projection_class_embeddings_input_dim": 80},
            "projection_dim of the second text encoder differ: 32",
        ),
        ("unet/config.json", {"addition_time_embed_dim": 7}, "must be an even whole number"),
        ("unet/config.json", {"addition_embed_type": "text_image"}, "'text_time' as in SDXL, got 'text_image'"),
        ("unet/config.json", {"cross_attention_dim": 24}, "hidden_size differ: 24 and 40"),
        ("text_encoder_2/config.json", {"max_position_embeddings": 60}, "same max_position_embeddings"),
    ],
)
def test_other_folders_are_refused_in_one_line(tmp_path, file, changes, says):
    with pytest.raises(ValueError, match=says) as error:
        stable_diffusion(changed(tmp_path, file, **changes))
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_with_one_text_encoder_is_the_refiner(folder, tmp_path):
    (make_folder(tmp_path / "sdxl") / "text_encoder" / "config.json").unlink()
    with pytest.raises(ValueError, match="is the refiner of SDXL, with one text encoder"):
        stable_diffusion(tmp_path / "sdxl")


def test_adapters_of_another_family_are_refused_both_ways(sd, weights, folder, xl):
    """SDXL's on an SD 1.x, and the other way round."""
    other = sd.parents[1] / "adapters"
    with pytest.raises(ValueError, match="trained on SDXL"):
        read_lora(FILES / "kohya.safetensors", {part: weights[part] for part in ("unet", "text")})
    with pytest.raises(ValueError, match=r"trained on .*text width 32"):
        read_lora(other / "kohya.safetensors", {part: xl[1][part] for part in ("unet", "text", "text_2")})
    for prior, file, says in ((sd, FILES / "toy", "for two text encoders"), (folder, other / "Wooden", "for one text encoder")):
        with pytest.raises(ValueError, match=says):
            stable_diffusion(prior, embeddings=[file.with_suffix(".safetensors")])


def test_a_folder_of_any_width_is_sdxl_by_name(tmp_path):
    make_folder(tmp_path / "sdxl")
    assert hub.family(tmp_path / "sdxl") == "SDXL, text width 40"
    change(tmp_path / "sdxl/unet/config.json", cross_attention_dim=2048)
    assert hub.family(tmp_path / "sdxl") == "SDXL"
