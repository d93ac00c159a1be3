"""How long does the rasterizer take? Medians per view of `scenes/gaussian_rasterizer.py`, on one core and on two.

    python experiments/benchmarks/rasterizer.py               # 4 sizes, 2 minutes
    python experiments/benchmarks/rasterizer.py --views 8

The scene is a thick shell of n Gaussians, each of which reaches 7 to 9 tiles. Forward renders colour, opacity and depth;
backward takes a cotangent of all three to every parameter. One core renders the views one after the other; two cores
are two virtual devices of XLA with half of the views each.
"""

import argparse
import json
import os
import subprocess
import sys
import time

import numpy as np

SIZES = ((64, 1_000), (128, 5_000), (256, 20_000), (512, 50_000))  # pixels, Gaussians
FLAGS = "--xla_cpu_multi_thread_eigen=false --xla_force_host_platform_device_count="


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=2, help="cameras per call, an even number")
    parser.add_argument("--seconds", type=float, default=4.0, help="for every cell of the table")
    parser.add_argument("--cores", type=int, help="measure in this process and print JSON, as the table's columns do")
    args = parser.parse_args()
    if args.cores:
        print(json.dumps([measure(*size, args.cores, args.views, args.seconds) for size in SIZES]))
        return

    columns = [column(cores, args) for cores in (1, 2)]
    print(f"{'milliseconds per view':28s}{'1 core':>20s}{'2 cores':>20s}")
    print(f"{'pixels':>8s}{'gaussians':>11s}{'pairs':>9s}" + 2 * f"{'fwd':>10s}{'fwd+bwd':>10s}")
    for (pixels, n), rows in zip(SIZES, zip(*columns, strict=True), strict=True):
        cells = "".join(f"{1e3 * seconds:10.1f}" for row in rows for seconds in row["seconds"])
        print(f"{pixels:8d}{n:11,d}{rows[0]['total']:9,d}{cells}")


def column(cores: int, args: argparse.Namespace) -> list[dict]:
    """The rows of `measure` from a process of its own: XLA reads its flags once."""
    command = [sys.executable, __file__, "--cores", str(cores), "--views", str(args.views), "--seconds", str(args.seconds)]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": FLAGS + str(cores)}
    return json.loads(subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout)


def shell(n: int) -> dict[str, np.ndarray]:
    """A thick shell of n Gaussians, as arguments of `rasterize`."""
    rng = np.random.default_rng(0)
    direction = rng.normal(size=(n, 3))
    arrays = {
        "means": direction / np.linalg.norm(direction, axis=1, keepdims=True) * rng.uniform(0.4, 0.7, size=(n, 1)),
        "quats": rng.normal(size=(n, 4)),
        "scales": np.exp(0.5 * rng.normal(size=(n, 3))) * 2 * n**-0.5,
        "opacities": rng.uniform(0.1, 0.9, size=n),
        "colors": rng.uniform(size=(n, 3)),
    }
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def measure(pixels: int, n: int, cores: int, views: int, seconds: float) -> dict:
    """Median seconds per view, forward and forward + backward, and the pairs of a tile and a Gaussian of one view."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import Mesh, PartitionSpec

    from lods_jax.core.cameras import turntable
    from lods_jax.scenes.gaussian_rasterizer import rasterize

    theta = jax.tree.map(jnp.asarray, shell(n))
    camera, background = turntable(views), jnp.ones((views, 3))
    options = {"height": pixels, "width": pixels}
    count = jax.jit(lambda theta: rasterize(**theta, background=background, camera=camera, capacity=1, **options).extras)
    total = int(count(theta)["total"].max())

    def forward(theta, camera, background):
        render = rasterize(**theta, background=background, camera=camera, capacity=int(1.1 * total), **options)
        return render.rgb, render.opacity, render.depth

    def both(theta, camera, background):
        images, pull = jax.vjp(lambda theta: forward(theta, camera, background), theta)
        return jax.tree.map(lambda g: jax.lax.psum(g, "view"), pull(images)[0])

    mesh, split, whole = Mesh(jax.devices()[:cores], "view"), PartitionSpec("view"), PartitionSpec()

    def median(function, out_specs):
        spread = jax.shard_map(function, mesh=mesh, in_specs=(whole, split, split), out_specs=out_specs, check_vma=False)
        run = jax.jit(spread)
        jax.block_until_ready(run(theta, camera, background))
        times, end = [], time.perf_counter() + seconds
        while len(times) < 5 or time.perf_counter() < end:
            start = time.perf_counter()
            jax.block_until_ready(run(theta, camera, background))
            times.append(time.perf_counter() - start)
        return float(np.median(times)) / views

    return {"total": total, "seconds": [median(forward, split), median(both, whole)]}


if __name__ == "__main__":
    main()
