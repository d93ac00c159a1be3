"""A tiny random Stable Diffusion, and what PyTorch's diffusers and the official LODS code answered on it in float32.

`tests/data/lods_parity`: sd is the folder (U-Net 32, 64; VAE 16, 32; CLIP 3 layers of 32). arrays.npz is NCHW, b = 2:
  eps_cond, eps_uncond   the U-Net at latents_noisy, t, with emb_cond_vd, emb_uncond
  text_emb               the text encoder at input_ids
  vae_mean, vae_logvar   the VAE at 2 image01 - 1;  vae_encode_latents = 0.18215 (mean + exp(logvar / 2) vae_noise)
  vae_decode_image01     clip(decode(latents / 0.18215) / 2 + 0.5, 0, 1)
  resize_*               torch interpolate(bilinear, align_corners=False) of resize_in
Float32 against float64 PyTorch differs by 3e-6 here.
"""

from pathlib import Path

import jax
import numpy as np
import pytest

DATA = Path(__file__).resolve().parents[1] / "data" / "lods_parity"


@pytest.fixture(scope="session")
def sd() -> Path:
    return DATA / "sd"


@pytest.fixture(scope="session")
def arrays() -> dict[str, jax.Array]:
    """The arrays of the fixture, images and latents as NHWC."""
    stored = np.load(DATA / "arrays.npz")
    channels_last = {name: x.transpose(0, 2, 3, 1) if x.ndim == 4 else x for name, x in stored.items()}
    return {name: jax.numpy.asarray(x) for name, x in channels_last.items()}


@pytest.fixture(scope="session")
def folders() -> Path:
    """Folders and adapters that PyTorch's programs wrote: see test_diffusers_folder.py."""
    return DATA.parent / "sd_folders"


@pytest.fixture(scope="session")
def torch_arrays(folders) -> dict[str, jax.Array]:
    """PyTorch's numbers for `folders`, images and latents as NHWC."""
    stored = np.load(folders / "arrays.npz")
    return {name: jax.numpy.asarray(x.transpose(0, 2, 3, 1) if x.ndim == 4 else x) for name, x in stored.items()}


@pytest.fixture(scope="session")
def prior(sd):
    from lods_jax.priors.stable_diffusion import stable_diffusion

    return stable_diffusion(sd)


@pytest.fixture(scope="session")
def weights(prior):
    return prior.init(jax.random.key(0))


@pytest.fixture(autouse=True)
def _exact_products():
    """Products in full float32 on every device: the tolerances are those of float32."""
    with jax.default_matmul_precision("highest"):
        yield
