"""How fast is the tabletop world on this machine? Renders, training samples and generated samples per second; medians.

python experiments/benchmarks/tabletop.py       # about 4 minutes, most of it compilation
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lods_jax.core.paths import TABLETOP
from lods_jax.tabletop import denoising, prior_batches, train_prior
from lods_jax.tabletop.architectures import networks
from lods_jax.tabletop.fitting import make_step, optimizer
from lods_jax.tabletop.streams import fresh_renders
from lods_jax.training.distributed import start_jax


def per_second(f: Callable[[int], object], items: int, repeats: int = 5) -> float:
    """Median rate of f(i), which makes `items` items; the first call compiles and does not count."""
    jax.block_until_ready(f(0))
    seconds = []
    for i in range(1, repeats + 1):
        begin = time.perf_counter()
        jax.block_until_ready(f(i))
        seconds.append(time.perf_counter() - begin)
    return items / statistics.median(seconds)


def main() -> None:
    start_jax()
    tx, seed = optimizer("muon"), 0
    arch, fits, _ = train_prior.resume_from(TABLETOP, tx, seed)
    size, nets = arch.size, networks(arch.size)
    vae, unet = fits["vae"].ema, jax.tree.map(jnp.copy, fits["unet"].ema)  # the training step donates its state
    renders = fresh_renders(jax.random.key(1), 0, size)
    print(f"{jax.device_count()} {jax.default_backend()} device(s)\n{'what':44} per second")
    rate = per_second(lambda i: fresh_renders(jax.random.key(i), i, size).rgb, len(renders.rgb))
    print(f"{f'renders, {size} px, all kinds, 2 x 2 rays a pixel':44} {rate:8.1f}")
    rate = per_second(lambda i: prior_batches.encode(size, vae, renders.rgb[:56]), 56)
    print(f"{'VAE encodings':44} {rate:8.1f}")

    ids = np.repeat(prior_batches.caption_ids()[1][None], 64, 0)
    batch = np.asarray(jax.random.normal(jax.random.key(0), (64, 16, 16, 4))), ids
    step, fit = make_step(train_prior.recipe_of("unet", nets), tx), fits["unet"]

    def train(i):
        nonlocal fit
        fit, _ = step(fit, batch, jax.random.key(i), 0.0)
        return fit

    print(f"{'U-Net training samples, batch 64':44} {per_second(train, 64):8.1f}")
    sample = partial(denoising.sample_latents, size, s=4.0, shape=(16, 16, 4), steps=30)
    eight = jnp.asarray(ids[:8])
    rate = per_second(lambda i: prior_batches.decode(size, vae, sample(unet, eight, eight, jax.random.key(i))), 8)
    print(f"{'images, 30 DDIM steps with guidance, batch 8':44} {rate:8.1f}")


if __name__ == "__main__":
    main()
