"""Laws of the prior's trainer. Networks are random: what is tested holds for any weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lods_jax.core.paths import TABLETOP_64
from lods_jax.priors import flax_networks
from lods_jax.priors.diffusers_folder import read_config
from lods_jax.priors.stable_diffusion import stable_diffusion
from lods_jax.tabletop import prior_batches, train_prior
from lods_jax.tabletop.architectures import ARCHITECTURES, architecture, networks, size_of
from lods_jax.tabletop.dataset import WORDS, caption_of
from lods_jax.tabletop.fitting import Fit, learning_rate, load_checkpoint, optimizer, save_checkpoint, start
from lods_jax.tabletop.objects import COMPOSITE, KINDS


@pytest.fixture(scope="module")
def vae():
    return flax_networks.init(networks(64).vae, jax.random.key(0))


@pytest.fixture(scope="module")
def images():
    blobs = jax.random.uniform(jax.random.key(1), (56, 8, 8, 3))
    return np.asarray(255 * jax.image.resize(blobs, (56, 64, 64, 3), "bilinear")).astype(np.uint8)


def test_normalised_latents_are_standard_and_decode_to_the_same_images(vae, images):
    normal = train_prior.normalize_latents(64, vae, images)
    z, z_normal = (prior_batches.encode(64, v, images) for v in (vae, normal))
    np.testing.assert_allclose(z_normal.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(z_normal.std((0, 1, 2)), 1, atol=1e-4)
    # A random VAE's latents vary by 1e-3, so that dividing by their deviation amplifies float32 rounding.
    np.testing.assert_allclose(prior_batches.decode(64, normal, z_normal), prior_batches.decode(64, vae, z), atol=1e-3)


def test_chunks_do_not_change_the_result():
    x = np.arange(23.0)[:, None]
    np.testing.assert_array_equal(prior_batches.in_chunks(lambda x: 2 * x, x, 8), 2 * x)


def test_training_captions_say_what_is_shown():
    """10 % empty, 5 % bare, 10 % without view; whatever is said is true of the render."""
    table, empty = prior_batches.caption_ids()
    words = {tuple(ids): text for ids, text in zip(table.reshape(-1, 12), texts_of_table(), strict=True)}
    words[tuple(empty)] = ""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, (12, 8, 3, 4), (2000, 4))
    said = [words[tuple(ids)] for ids in prior_batches.draw_captions(rng, labels, table, empty)]
    full = [str(caption_of(row)) for row in labels]
    assert 0.07 < np.mean([s == "" for s in said]) < 0.13
    for short, long in zip(said, full, strict=True):
        assert set(short.replace(",", " ,").split()) - {"a", "an"} <= set(long.replace(",", " ,").split())
    front = [KINDS[k] in COMPOSITE for k in labels[:, 0]]
    assert 0.6 < np.mean([("view" in s) for s, f in zip(said, front, strict=True) if f]) < 0.9


def texts_of_table():
    from itertools import product

    from lods_jax.core.cameras import VIEWS
    from lods_jax.tabletop.dataset import Caption
    from lods_jax.tabletop.objects import COLORS, PATTERNS

    return [str(Caption(*c)) for c in product(KINDS, (*COLORS, None), PATTERNS, (*VIEWS, None))]


def test_every_caption_fits_and_every_word_is_one_token():
    table, empty = prior_batches.caption_ids()
    end = empty[1]
    for ids, text in zip(table.reshape(-1, 12), texts_of_table(), strict=True):
        assert list(ids).index(end) == 1 + len(text.replace(",", " ,").split())
    assert len(WORDS) == len(set(WORDS))


def test_the_learning_rate_warms_up_and_ends_low():
    rates = [learning_rate(1.0, step, done) for step, done in ((0, 0.0), (100, 0.1), (100, 0.79), (900, 0.9), (999, 1.0))]
    np.testing.assert_allclose(rates, [1 / 60, 1, 1, 0.51, 0.02], rtol=1e-6)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_both_optimizers_move_every_parameter_at_the_size_of_the_learning_rate(name, vae):
    tx = optimizer(name)
    grads = jax.tree.map(lambda p: jax.random.normal(jax.random.key(p.size), p.shape), vae)
    updates, _ = jax.jit(tx.update)(grads, tx.init(vae), vae)
    for update in jax.tree.leaves(updates):
        assert 0.02 < float(jnp.sqrt(jnp.mean(update**2))) < 2


def test_a_checkpoint_restores_bit_for_bit_and_tells_what_is_missing(tmp_path, vae):
    fit, file = start(vae, optimizer("adamw"), samples=7), tmp_path / "checkpoint.safetensors"
    save_checkpoint(file, {"vae": fit}, {"sittings": 2})
    restored, meta = load_checkpoint(file, {"vae": jax.eval_shape(lambda: fit), "unet": jax.eval_shape(lambda: fit)})
    jax.tree.map(np.testing.assert_array_equal, restored, {"vae": fit})
    assert meta == {"sittings": 2}
    wider = {"vae": Fit({**vae, "more": jnp.zeros(3)}, *fit[1:])}
    with pytest.raises(ValueError, match=r"expected vae/params/more of shape \(3,\), found nothing"):
        load_checkpoint(file, wider)


def test_a_folder_alone_is_enough_to_go_on(tmp_path, vae):
    """Float16 on disk: weights come back rounded, optimizers fresh, and the count of samples goes on."""
    tx = optimizer("adamw")
    unet = jax.tree.map(lambda x: 0.01 * jnp.ones(x.shape), flax_networks.shapes(networks(64).unet))
    text = jax.tree.map(lambda x: 0.01 * jnp.ones(x.shape), flax_networks.shapes(networks(64).text))
    meta = {"sittings": 1, "seconds": {"vae": 1.0, "unet": 2.0}, "samples": {"vae": 5, "unet": 9}}
    train_prior.write_folder(tmp_path / "prior", architecture(64), {"vae": vae, "unet": unet, "text": text}, meta)
    arch, back, meta = train_prior.resume_from(tmp_path / "prior", tx, seed=0)
    assert arch == architecture(size_of(tmp_path / "prior")) == architecture(64)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), back["vae"].ema, vae)
    assert (int(back["unet"].samples), int(back["unet"].step), meta["sittings"]) == (9, 0, 1)
    prior = stable_diffusion(tmp_path / "prior")
    assert prior.embed(prior.init(jax.random.key(0)), ["a red mug, side view"]).shape == (1, 12, 64)
    assert sum(f.stat().st_size for f in (tmp_path / "prior").rglob("*.safetensors")) < 16 * 2**20
    assert read_config(tmp_path / "prior" / "vocabulary.json")["words"] == list(WORDS)


def test_bad_sittings_are_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="minutes must be positive, got 0"):
        train_prior.train(tmp_path, 0.0)
    with pytest.raises(ValueError, match="part must be all, vae or unet, got 'text'"):
        train_prior.train(tmp_path, 1.0, part="text")
    with pytest.raises(ValueError, match="size must be 64 or 128, got 96"):
        train_prior.train(tmp_path, 1.0, size=96)
    with pytest.raises(ValueError, match="train --part vae or all first"):
        train_prior.train(tmp_path, 1.0, part="unet")
    with pytest.raises(ValueError, match="64 holds weights already; pass --resume"):
        train_prior.train(TABLETOP_64, 1.0)
    (tmp_path / "checkpoint.safetensors").touch()
    with pytest.raises(ValueError, match="pass --resume to go on with it"):
        train_prior.train(tmp_path, 1.0)


@pytest.mark.parametrize("size", ARCHITECTURES)
def test_every_size_has_the_same_latents_and_reads_the_same_words(size):
    """Latents of 16 x 16 x 4: what a U-Net call costs does not hang on the size of the images."""
    arch, shapes = architecture(size), flax_networks.shapes(networks(size).vae)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    z, _ = jax.eval_shape(lambda p, x: flax_networks.encode_moments(networks(size).vae, p, x), shapes, image)
    assert z.shape == (1, 16, 16, 4)
    assert arch.unet["sample_size"] == 16
    assert arch.text == architecture(64).text


def test_a_sitting_cannot_change_the_size_of_a_prior():
    with pytest.raises(ValueError, match="holds a prior of 64 px; pass --size 64"):
        train_prior.train(TABLETOP_64, 1.0, resume=True, size=128)
