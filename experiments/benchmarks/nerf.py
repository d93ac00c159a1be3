"""How long does a view of the radiance field take, and what does skipping empty space gain? Medians on one core.

    python experiments/benchmarks/nerf.py            # two sizes, four occupancies, about 3 minutes

One view of 64 x 64 rays with 64 samples each, 262,144 in all, of which a random share of the occupancy grid's cells leaves
100, 25, 10 or 5 % to be evaluated (and as many slots for them). Forward renders colour, opacity and depth; backward takes a
cotangent of all three to tables and layers. The shares are timed in turns, so that a busy machine slows all of them.
"""

import argparse
import os
import time
from functools import partial

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from lods_jax.core.cameras import turntable
from lods_jax.scenes.nerf import nerf
from lods_jax.scenes.radiance_field import OFFICIAL, TINY, FieldConfig

EDGE, SHARES = 64, (1.0, 0.25, 0.1, 0.05)
SIZES = {"tiny": TINY, "official": OFFICIAL}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of every timing")
    rounds = parser.parse_args().rounds
    print(f"{'field':>24} {'occupied':>9} {'fwd, ms':>9} {'fwd+bwd, ms':>12} {'gain':>6} {'gain':>6}")
    for name, field in SIZES.items():
        calls = [call for share in SHARES for call in compiled(field, share)]
        times = [[] for _ in calls]
        for _ in range(rounds):
            for call, spent in zip(calls, times, strict=True):
                start = time.perf_counter()
                jax.block_until_ready(call())
                spent.append(1e3 * (time.perf_counter() - start))
        middle = np.median(times, 1).reshape(len(SHARES), 2)
        for share, ms in zip(SHARES, middle, strict=True):
            gain = middle[0] / ms
            text = f"{name}, {field.levels} x 2^{field.log2_rows}"
            print(f"{text:>24} {share:9.0%} {ms[0]:9.0f} {ms[1]:12.0f} {gain[0]:5.1f}x {gain[1]:5.1f}x", flush=True)


def compiled(field: FieldConfig, share: float) -> tuple:
    """Forward, and forward + backward, at an occupancy; each has run once."""
    capacity = int(share * EDGE**3)
    scene = nerf(height=EDGE, width=EDGE, capacity=capacity, field=field, samples=EDGE, background=lambda key: jnp.ones(3))
    theta, aux = scene.init(jax.random.key(0))
    cells = jax.random.uniform(jax.random.key(1), aux["occupied"].shape) < share
    aux = aux | {"occupied": cells, "density": jnp.zeros(cells.shape)}  # nothing hides anything
    camera, keys = turntable(1), jax.random.split(jax.random.key(2), 1)

    def forward(theta, aux):
        render = scene.render(theta, aux, camera, keys, {})
        return render.rgb, render.opacity, render.depth

    def both(theta, aux):
        images, pull = jax.vjp(lambda theta: forward(theta, aux), theta)
        return pull(images)

    runs = tuple(partial(jax.jit(function), theta, aux) for function in (forward, both))
    jax.block_until_ready([run() for run in runs])
    return runs


if __name__ == "__main__":
    main()
