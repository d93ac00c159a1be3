import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lods_jax.priors import diffusers_folder, flax_networks
from lods_jax.priors.diffusers_folder import read_config

PARTS = {"unet": flax_networks.unet, "vae": flax_networks.vae, "text": flax_networks.text_encoder}


def module(sd, part, **changes):
    return PARTS[part](read_config(sd / diffusers_folder.PARTS[part][0] / "config.json") | changes)


def test_without_its_mends_the_unet_is_not_pytorchs(sd, weights, arrays):
    """Guards the mends: once a new version of diffusers makes them needless, this fails and they can go."""
    z_t, tokens = jnp.moveaxis(arrays["latents_noisy"], -1, 1), arrays["emb_cond_vd"]
    unmended = jax.jit(lambda *x: module(sd, "unet").apply({"params": weights["unet"]}, *x).sample)
    eps = jnp.moveaxis(unmended(z_t, arrays["t"], tokens), 1, -1)
    assert jnp.abs(eps - arrays["eps_cond"]).max() > 1e-4


def test_moments_are_pytorchs(sd, weights, arrays):
    encode = jax.jit(lambda x: flax_networks.encode_moments(module(sd, "vae"), weights["vae"], x))
    mean, logvar = encode(2 * arrays["image01"] - 1)
    np.testing.assert_allclose(mean, arrays["vae_mean"], atol=1e-5)
    np.testing.assert_allclose(logvar, arrays["vae_logvar"], atol=1e-5)


def test_latents_as_wide_as_they_have_channels_are_not_transposed(sd, weights):
    z = jax.ShapeDtypeStruct((1, 8, 4, 4), jnp.float32)
    image = jax.eval_shape(lambda z: flax_networks.decode_image(module(sd, "vae"), weights["vae"], z), z)
    assert image.shape == (1, 16, 8, 3)


@pytest.mark.parametrize("part", PARTS)
def test_random_parameters_fill_the_shapes_with_unit_gain(sd, part):
    net = module(sd, part)
    params = flax_networks.init(net, jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), flax_networks.shapes(net)
    )
    for path, leaf in jax.tree.leaves_with_path(params):
        if path[-1].key == "kernel" and leaf.size > 4000:
            gain = jnp.var(leaf) * np.prod(leaf.shape[:-1])
            np.testing.assert_allclose(gain, 1.0, atol=0.12, err_msg=jax.tree_util.keystr(path))  # 4000 draws: 5 sigma


@pytest.mark.parametrize(
    ("part", "changes", "named"),
    [
        ("unet", {"norm_num_groups": 16}, "norm_num_groups must be 32, got 16"),
        ("unet", {"act_fn": "gelu"}, "act_fn must be 'silu', got 'gelu'"),
        ("unet", {"norm_eps": 1e-6}, "norm_eps must be 1e-05"),
        ("unet", {"class_embed_type": "timestep"}, "class_embed_type"),
        ("unet", {"dual_cross_attention": True}, "dual_cross_attention"),
        ("unet", {"layers_per_block": [1, 2]}, "layers_per_block"),
        ("unet", {"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]}, "down_block_types"),
        ("vae", {"shift_factor": 0.1}, "shift_factor"),
        ("vae", {"use_quant_conv": False}, "use_quant_conv"),
    ],
)
def test_a_setting_that_flax_would_ignore_is_refused_in_one_line(sd, part, changes, named):
    with pytest.raises(ValueError, match=named) as error:
        module(sd, part, **changes)
    assert "\n" not in str(error.value)


def test_diffusers_keeps_quiet_about_flax_and_about_nothing_else(sd):
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logging.getLogger("diffusers").addHandler(handler)
    try:
        for part in PARTS:
            flax_networks.shapes(module(sd, part))
        assert records == []
        logging.getLogger("diffusers.models.attention_flax").warning("something else")
        assert [record.getMessage() for record in records] == ["something else"]
    finally:
        logging.getLogger("diffusers").removeHandler(handler)
