"""What splat.py computes, written as Kerbl et al. (2023) write it: no tiles, no stop, all n Gaussians over all pixels.

It is the definition that the fast kernel is tested against, gradients by plain autodiff included, and it shares with it
only the constants and the spherical harmonics. Memory is b n h w floats: for small images.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from lods_jax import cameras
from lods_jax.numerics import normalize
from lods_jax.rendering.splat import ALPHA_CAP, ALPHA_CUT, FRUSTUM, LOW_PASS, NEAR, radiance
from lods_jax.types import Camera, Render
