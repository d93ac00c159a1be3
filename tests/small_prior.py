"""A tabletop prior of one small block with random weights, for the tests of its trainers."""

from pathlib import Path

import jax
import pytest

from lods_jax.priors import flax_networks
from lods_jax.tabletop import architectures, train_prior
from lods_jax.tabletop.architectures import ARCHITECTURES, Architecture, architecture, networks

SIZE = 16  # pixels; no prior has this size outside of tests
# More channels than a norm has groups: what a camera adds to all of a channel is gone with the mean of a group of one channel.
BLOCK = {"block_out_channels": [64], "down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"]}


def add_architecture(patch: pytest.MonkeyPatch) -> None:
    """Adds the architecture of SIZE, with latents of 8 x 8."""
    of = architecture(64)
    unet, text = of.unet | BLOCK | {"sample_size": 8}, of.text | {"num_hidden_layers": 1}
    patch.setitem(ARCHITECTURES, SIZE, Architecture(SIZE, 8, architectures._vae(SIZE, (8, 8)), unet, text))


def write_prior(out: Path) -> None:
    """Writes a prior of single images."""
    nets = networks(SIZE)
    weights = {part: flax_networks.init(getattr(nets, part), jax.random.key(i)) for i, part in enumerate(("vae", "unet", "text"))}
    train_prior.write_folder(out, architecture(SIZE), weights, {"samples": {"vae": 0, "unet": 0}})
