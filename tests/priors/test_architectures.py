"""The architectures of published models: their sizes are public, and were not computed here."""

import jax
import pytest

from lods_jax.priors import flax_networks
from lods_jax.priors.architectures import write_configs
from lods_jax.priors.diffusers_folder import read_config
from lods_jax.priors.prompt_encoder import context_shape


@pytest.mark.parametrize(
    ("name", "unet", "text"),
    [
        ("stable-diffusion-2-1-base", 865_910_724, 340_387_840),
        ("stable-diffusion-v1-5", 859_520_964, 123_060_480),
        ("mvdream-sd2.1-diffusers", 867_572_164, 340_387_840),  # of its PyTorch source, with the same names and shapes
        ("stable-diffusion-xl-base-1.0", 2_567_463_684, 123_060_480),
    ],
)
def test_the_networks_have_as_many_parameters_as_the_published_ones(tmp_path, name, unet, text):
    folder = write_configs(tmp_path, name)
    count = lambda network: sum(leaf.size for leaf in jax.tree.leaves(flax_networks.shapes(network)))  # noqa: E731
    assert count(flax_networks.unet(read_config(folder / "unet/config.json"))) == unet
    assert count(flax_networks.vae(read_config(folder / "vae/config.json"))) == 83_653_863
    assert count(flax_networks.text_encoder(read_config(folder / "text_encoder/config.json"))) == text


def test_sdxls_second_text_encoder_is_of_its_size_and_a_text_has_a_row_for_the_pooled_vector(tmp_path):
    folder = write_configs(tmp_path, "stable-diffusion-xl-base-1.0")
    encoder = flax_networks.text_encoder(read_config(folder / "text_encoder_2/config.json"), projection=True)
    assert sum(leaf.size for leaf in jax.tree.leaves(flax_networks.shapes(encoder))) == 694_659_840
    assert context_shape(folder) == (78, 2048)


def test_an_architecture_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="only stable-diffusion-2-1-base, "):
        write_configs(tmp_path, "sdxl")
