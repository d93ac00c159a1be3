import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lods_jax.core.noise_schedule import STABLE_DIFFUSION, add_noise, velocity
from lods_jax.core.types import Cond, Query
from lods_jax.distillation.latents import encode_each
from lods_jax.distillation.prompts import prompt_table, view_prompts
from lods_jax.priors import flax_networks, tokenizer
from lods_jax.priors.architectures import write_configs
from lods_jax.priors.backbone import resize
from lods_jax.priors.diffusers_folder import read_config, read_vocabulary
from lods_jax.priors.sampling import prior_with_texts
from lods_jax.priors.stable_diffusion import stable_diffusion


def changed(sd, to, file, **changes):
    """A copy of the folder in which the config `file` has `changes`."""
    shutil.copytree(sd, to)
    (to / file).write_text(json.dumps(read_config(sd / file) | changes))
    return to


def test_predicted_noise_is_pytorchs(prior, weights, arrays):
    predict = jax.jit(lambda tokens: prior.predict(weights, {}, arrays["latents_noisy"], arrays["t"], Cond(tokens)))
    for tokens, eps in (("emb_cond_vd", "eps_cond"), ("emb_uncond", "eps_uncond")):
        np.testing.assert_allclose(predict(arrays[tokens]), arrays[eps], atol=2e-5)


def count(tree, name: str) -> int:
    """How many modules of a tree of parameters have a part of this name."""
    return sum(name in part for part in subtrees(tree))


def subtrees(tree):
    yield tree
    for part in tree.values():
        if isinstance(part, dict):
            yield from subtrees(part)


def test_fused_attention_and_remat_change_no_value_and_no_gradient(sd, prior, weights, arrays):
    """Held against PyTorch's noise, and against the plain network's gradients of an adapter that is not zero."""
    psi = prior.init_psi(weights, jax.random.key(0), arrays["emb_uncond"][0], [Query("null", lora=1.0)])
    psi = jax.tree.map(lambda x: 0.1 + 0.01 * x, psi)
    other = stable_diffusion(sd, attention="fused", remat=("transformer", "resnet"))
    tokens, scale = arrays["emb_cond_vd"], jnp.array([0.0, 0.5])

    def ask(prior):
        def loss(psi):
            eps = prior.predict(weights, psi, arrays["latents_noisy"], arrays["t"], Cond(tokens, lora=scale))
            return jnp.mean(eps**2), eps

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(psi)

    ((_, eps), gradient), ((_, expected), plain) = ask(other), ask(prior)
    np.testing.assert_allclose(eps, expected, atol=2e-5)
    np.testing.assert_allclose(eps[0], arrays["eps_cond"][0], atol=2e-5)  # where the adapter is off
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), gradient, plain)
    transformers, resnets = count(weights["unet"], "attn1"), count(weights["unet"], "time_emb_proj")
    blocks = lambda prior: str(jax.make_jaxpr(lambda: ask(prior))()).count("policy=None")  # noqa: E731
    assert blocks(other) == transformers + resnets
    assert blocks(stable_diffusion(sd, remat=True)) == transformers


def test_upcast_attention_keeps_scores_that_float16_does_not_hold(sd, tmp_path, weights, arrays):
    """Queries and keys a hundred times as large: scores beyond 65504, which without the upcast are infinite."""
    folder = changed(sd, tmp_path / "sd", "unet/config.json", upcast_attention=True)
    large = jax.tree.map_with_path(
        lambda path, x: (100 * x if {"to_q", "to_k"} & {getattr(key, "key", "") for key in path} else x).astype(jnp.float16),
        weights["unet"],
    )

    def finite(folder):
        predict = jax.jit(stable_diffusion(folder, jnp.float16).predict)
        return jnp.isfinite(predict({"unet": large}, {}, arrays["latents_noisy"], arrays["t"], Cond(arrays["emb_cond_vd"]))).all()

    assert finite(folder)
    assert not finite(sd)


def test_slicing_of_the_encoder_holds_the_activations_of_one_view(prior, weights):
    """In the gradient too, for which slices alone would keep them all. More views need more memory by their own size at most."""
    used = {}
    for slicing in (False, True):
        for b in (2, 8):

            def pulled(rgb, slicing=slicing):
                keys = jax.random.split(jax.random.key(0), len(rgb))
                z, pull = jax.vjp(lambda rgb: encode_each(prior, weights, rgb, keys, slicing), rgb)
                return pull(z)[0]

            compiled = jax.jit(pulled).lower(jnp.zeros((b, 64, 64, 3))).compile()
            used[slicing, b] = compiled.memory_analysis().temp_size_in_bytes
    assert used[True, 8] < 0.4 * used[False, 8]
    assert used[True, 8] - used[True, 2] < 0.1 * (used[False, 8] - used[False, 2])


def test_float16_is_for_the_unet_alone(sd, arrays):
    prior = stable_diffusion(sd, jnp.float16)
    weights = jax.eval_shape(prior.init, jax.random.key(0))
    assert {x.dtype for x in jax.tree.leaves(weights["unet"])} == {jnp.dtype(jnp.float16)}
    assert {x.dtype for x in jax.tree.leaves(weights["vae"])} == {jnp.dtype(jnp.float32)}
    z = jax.eval_shape(prior.encode, weights, arrays["image01"], jax.random.key(0))
    eps = jax.eval_shape(prior.predict, weights, {}, z, arrays["t"], Cond(arrays["emb_cond_vd"]))
    assert {z.dtype, eps.dtype} == {jnp.dtype(jnp.float32)}


def test_embedded_texts_are_pytorchs(sd, prior, weights, arrays):
    clip = tokenizer.load_tokenizer(sd)
    texts = [clip.decode(row, skip_special_tokens=True) for row in np.asarray(arrays["input_ids"])]
    np.testing.assert_allclose(prior.embed(weights, texts), arrays["text_emb"], atol=1e-5)


def test_encoded_latents_are_samples_of_pytorchs_posterior(prior, weights, arrays):
    key = jax.random.key(3)
    z = jax.jit(prior.encode)(weights, arrays["image01"], key)
    noise = jax.random.normal(key, z.shape)
    expected = 0.18215 * (arrays["vae_mean"] + jnp.exp(arrays["vae_logvar"] / 2) * noise)
    np.testing.assert_allclose(z, expected, atol=1e-5)


def test_decoded_image_is_pytorchs(prior, weights, arrays):
    image = jax.jit(prior.decode)(weights, arrays["latents"])
    np.testing.assert_allclose(image, arrays["vae_decode_image01"], atol=1e-5)


@pytest.mark.parametrize("name", ["resize_up_12x15", "resize_down_4x3"])
def test_interpolation_is_pytorchs(arrays, name):
    """The rule behind `resize`, at sizes that are not square."""
    out = jax.image.resize(arrays["resize_in"], arrays[name].shape, "bilinear", antialias=False)
    np.testing.assert_allclose(out, arrays[name], atol=1e-5)


@pytest.mark.parametrize("size", [4, 16, 40])
def test_an_image_of_any_size_becomes_latents_of_one_size(prior, weights, size):
    rgb = jax.ShapeDtypeStruct((2, size, size + 8, 3), jnp.float32)
    z = jax.eval_shape(prior.encode, weights, rgb, jax.random.key(0))
    assert (z.shape, z.dtype) == ((2, 8, 8, 4), jnp.float32)


def test_resizing_a_constant_changes_nothing():
    np.testing.assert_allclose(resize(jnp.full((1, 5, 9, 3), 0.3), 16), 0.3, atol=1e-6)


def test_a_predicted_velocity_becomes_the_noise(sd, tmp_path, arrays, monkeypatch):
    """A network that knows the true velocity is a perfect denoiser."""
    folder = changed(sd, tmp_path / "sd", "scheduler/scheduler_config.json", prediction_type="v_prediction")
    z, noise, t = arrays["latents"], arrays["noise"], arrays["t"]
    monkeypatch.setattr(flax_networks, "predict_noise", lambda *_: velocity(STABLE_DIFFUSION, z, noise, t))
    eps = stable_diffusion(folder).predict(
        {"unet": {}}, {}, add_noise(STABLE_DIFFUSION, z, noise, t), t, Cond(arrays["emb_cond_vd"])
    )
    np.testing.assert_allclose(eps, noise, atol=1e-5)


def test_bfloat16_is_inside_and_float32_outside(sd, arrays):
    prior = stable_diffusion(sd, jnp.bfloat16, image_size=32)
    weights = jax.eval_shape(prior.init, jax.random.key(0))
    assert {x.dtype for x in jax.tree.leaves((weights["unet"], weights["vae"]))} == {jnp.dtype(jnp.bfloat16)}
    z = jax.eval_shape(prior.encode, weights, arrays["image01"], jax.random.key(0))
    eps = jax.eval_shape(prior.predict, weights, {}, z, arrays["t"], Cond(arrays["emb_cond_vd"]))
    rgb = jax.eval_shape(prior.decode, weights, z)
    assert (z.shape, rgb.shape) == ((2, 16, 16, 4), (2, 32, 32, 3))
    assert {z.dtype, eps.dtype, rgb.dtype} == {jnp.dtype(jnp.float32)}


def test_only_a_learned_text_has_something_to_learn(prior, weights):
    tokens, key = jnp.ones((77, 32)), jax.random.key(0)
    assert prior.init_psi(weights, key, tokens, [Query("null")]) == {}
    np.testing.assert_array_equal(prior.init_psi(weights, key, tokens, [Query("learned")])["embedding"], tokens)


@pytest.mark.parametrize("name", ["lora", "pose", "image"])
def test_a_condition_without_an_input_is_refused(prior, weights, arrays, name):
    cond = Cond(arrays["emb_cond_vd"], **{name: jnp.ones((2,))})
    with pytest.raises(ValueError, match=rf"Cond\.{name}"):
        prior.predict(weights, {}, arrays["latents_noisy"], arrays["t"], cond)


def test_a_prior_says_which_words_it_knows(sd, tmp_path, weights):
    assert read_vocabulary(sd) is None
    shutil.copytree(sd, folder := tmp_path / "sd")
    (folder / "vocabulary.json").write_text(json.dumps({"words": ["a", "mug"]}))
    assert read_vocabulary(folder).words == {"a", "mug"}
    prior = stable_diffusion(folder)
    assert prior.embed(weights, ["a mug", ""]).shape == (2, 77, 32)
    with pytest.raises(ValueError, match=r"unknown word 'dragon' in 'a dragon'; it may use: a, mug"):
        prior.embed(weights, ["a mug", "a dragon"])
    assert stable_diffusion(folder, strict=False).embed(weights, ["a dragon"]).shape == (1, 77, 32)


@pytest.mark.parametrize(
    "options", [{"dtype": jnp.int8}, {"image_size": 0}, {"image_size": 17}, {"image_size": 18}, {"attention": "flash"}]
)
def test_an_option_out_of_range_is_refused_by_name(sd, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        stable_diffusion(sd, **options)


@pytest.mark.parametrize(("name", "multiple"), [("stable-diffusion-2-1-base", 64), ("mvdream-sd2.1-diffusers", 64)])
def test_images_are_of_a_size_that_all_levels_of_the_unet_can_halve(tmp_path, name, multiple):
    folder = write_configs(tmp_path, name)
    stable_diffusion(folder, image_size=9 * multiple, untrained=True, strict=False)
    with pytest.raises(ValueError, match=f"image_size must be a multiple of {multiple} for this U-Net, got 520"):
        stable_diffusion(folder, image_size=520, untrained=True, strict=False)


def test_views_of_a_prompt_longer_than_the_window_differ_and_one_line_tells_what_is_left_out(sd, capsys):
    long = " ".join(["a red mug on a table"] * 30)
    prior, weights, texts = prior_with_texts(sd, True, prompt_table(long, "blurry " * 100, with_view=False))
    assert len(capsys.readouterr().out.splitlines()) == 1
    rows = view_prompts(long, truncate=prior.truncate)
    assert all(long.startswith(row.rpartition(",")[0]) and row.endswith(" view") for row in rows)
    tokens = np.asarray(prior.embed(weights, rows))
    assert all(np.abs(tokens[i] - tokens[j]).max() > 1e-3 for i in range(4) for j in range(i))
    plain = np.asarray(prior.embed(weights, [long]))  # cut by the tokenizer, as PyTorch's pipelines do
    np.testing.assert_allclose(texts["prompt"][0], plain[0], atol=1e-5)
    assert view_prompts("a red mug", truncate=prior.truncate) == view_prompts("a red mug")
