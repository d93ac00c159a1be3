"""How far is the Gaussian rasterizer from gsplat's CUDA kernels, and what bounds it on a GPU?

    pip install gsplat==1.5.3            # beside a PyTorch for CUDA; it compiles its kernels at the first use, in minutes
    python -m experiments.benchmarks.against_gsplat            # a GPU: about 2 minutes after that
    python -m experiments.benchmarks.against_gsplat --sides ours --sizes 64:1000 --settings "tiles, 512 x 32"      # a CPU
    python -m experiments.benchmarks.against_gsplat --sides slices         # for a TPU v5e that is not there (extra `tpu`)

Both sides render the thick shell of `rasterizer.py`: colour, expected depth and opacity of one view; backward takes the same
cotangents of these to means, quaternions, scales, opacities and colours. Milliseconds are medians of calls that end when the
device has finished, after one that compiles. Images and gradients are compared, so that the work is the same work. Each side runs
in a process of its own. A row that is finished is a line in --out; a second call goes on.

Ours is timed in both its forms, tiles in lock-step and a kernel over segments, at several of their static settings. `steps`
counts the turns of its loop, one after the other, if no tile ends early; `bins` is projection and sorting alone.
"""

import argparse
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np

from experiments.benchmarks.rasterizer import shell
from lods_jax.runs.run_directory import append, truncate_log

TOPOLOGY = "v5e:2x2"
NAMES = ("means", "quats", "scales", "opacities", "colors")
KERNEL = re.compile(r"= \S+ (?:fusion|custom-call|sort|scatter|gather|reduce|dot|copy)\(")


class Settings(NamedTuple):
    """Static settings of our rasterizer: the `Pace` of its tiles, or of the kernel over segments rows read at once and warps."""

    lockstep: int = 16
    chunk: int = 16
    unrolled: bool = False
    warps: int = 0  # 0 for no kernel


SETTINGS = {
    "tiles, 512 x 32": Settings(512, 32, True),
    "segments, 8 rows, 1 warp": Settings(chunk=8, warps=1),
    "segments, 4 rows, 1 warp": Settings(chunk=4, warps=1),
    "segments, 8 rows, 2 warps": Settings(chunk=8, warps=2),
    "segments, 8 rows, 4 warps": Settings(chunk=8, warps=4),
    "tiles, 2048 x 32": Settings(2048, 32, True),
    "tiles, 512 x 16": Settings(512, 16, True),
    "tiles, 512 x 16, looped": Settings(512, 16),
    "tiles, 16 x 16, looped": Settings(),  # the pace of a CPU
    "tiles, 128 x 32": Settings(128, 32, True),
}


def cotangents(pixels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of colour, expected depth and opacity of one view."""
    rng = np.random.default_rng(1)
    return tuple(rng.normal(size=(1, pixels, pixels, c)).astype(np.float32) for c in (3, 1, 1))


def median_ms(call: Callable[[], Any], seconds: float) -> tuple[float, int]:
    """The median time of a call that waits for its end, and the number of calls."""
    call()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times)), len(times)


def keep(folder: Path, side: str, pixels: int, arrays: dict[str, np.ndarray]) -> dict[str, float]:
    """Keeps the images and gradients of a side; how far they are from those of the other side, if these are there."""
    np.savez(folder / f"{side}-{pixels}.npz", **arrays)
    other = folder / f"{'gsplat' if side == 'ours' else 'ours'}-{pixels}.npz"
    if not other.exists():
        return {}
    theirs = np.load(other)
    found = {f"largest difference of {name}": float(np.abs(arrays[name] - theirs[name]).max()) for name in ("rgb", "opacity")}
    apart = lambda a, b: float(np.linalg.norm(a - b) / np.linalg.norm(b))  # noqa: E731
    found |= {f"mean difference of {name}": float(np.abs(arrays[name] - theirs[name]).mean()) for name in ("rgb", "opacity")}
    return found | {f"relative error of d {name}": apart(arrays[f"d {name}"], theirs[f"d {name}"]) for name in NAMES}


# --- ours -------------------------------------------------------------------------------------------------------------------
@contextmanager
def using(settings: Settings) -> Iterator[None]:
    """Makes the rasterizer that is traced inside take these settings, which are constants of its modules."""
    from lods_jax.scenes import gaussian_rasterizer, gaussian_segments, gaussian_tiles

    pace = gaussian_tiles.Pace(settings.lockstep, settings.chunk, settings.unrolled)
    with ExitStack() as stack:
        stack.enter_context(patch.object(gaussian_rasterizer, "pace", lambda: pace))
        stack.enter_context(patch.multiple(gaussian_segments, CHUNK=settings.chunk, WARPS=settings.warps))
        stack.enter_context(patch.object(gaussian_rasterizer, "platform", lambda: "gpu" if settings.warps else "tpu"))
        yield


def lowered(
    pixels: int, n: int, settings: Settings, place: Callable[[Any], Any] = lambda x: x
) -> tuple[dict[str, Any], dict[str, Any], tuple]:
    """Our rasterizer at the settings in use: {what: program} for arguments as `place` makes them, its counts, the arguments."""
    import jax
    import jax.numpy as jnp

    from lods_jax.core.cameras import turntable
    from lods_jax.scenes import gaussian_rasterizer as ours

    theta, camera, options = jax.tree.map(jnp.asarray, shell(n)), turntable(1), {"height": pixels, "width": pixels}

    def binned(theta, capacity):
        ellipses = ours.project(theta["means"], theta["quats"], theta["scales"], camera.c2w[0], camera.fov_y[0], pixels, pixels)
        return ours.bin_tiles(ellipses, theta["opacities"], pixels, pixels, capacity, settings.lockstep)

    @jax.jit
    def count(theta):
        """The number of pairs, and the longest tile of each group."""
        _, bins, _, total = binned(theta, 24 * n)
        return total, jnp.max(bins.end - bins.start, 1)

    total, longest = (np.asarray(x) for x in count(theta))

    def forward(theta):
        render = ours.rasterize(**theta, background=jnp.ones(3), camera=camera, capacity=int(1.1 * total), **options)
        return render.rgb, render.depth, render.opacity

    def both(theta, cotangent):
        images, pull = jax.vjp(forward, theta)
        return images, pull(cotangent)[0]

    arguments = theta, jax.tree.map(jnp.asarray, cotangents(pixels))
    placed = jax.tree.map(place, arguments)
    programs = {
        "bins": jax.jit(lambda theta: binned(theta, int(1.1 * total))).lower(placed[0]),
        "forward": jax.jit(lambda theta: forward(theta)).lower(placed[0]),
        "forward and backward": jax.jit(lambda theta, cotangent: both(theta, cotangent)).lower(*placed),
    }
    turns = -(-longest // settings.chunk)
    steps = int(np.max(turns) if settings.warps else np.sum(turns))
    return programs, {"pairs": int(total), "groups": len(longest), "steps": steps}, arguments


def ours(args: argparse.Namespace, done: set) -> None:
    """Rows of our rasterizer. All of it is traced, then compiled side by side, then timed."""
    import jax

    jax.config.update("jax_enable_compilation_cache", False)
    device, jobs = jax.devices()[0].device_kind, []
    for name in args.settings:
        for pixels, n in args.sizes:
            with using(SETTINGS[name]):
                jobs += [(name, pixels, n, *lowered(pixels, n, SETTINGS[name]))] if ("ours", name, pixels) not in done else []

    def compiled(program):
        began = time.perf_counter()
        return program.compile(), time.perf_counter() - began

    with ThreadPoolExecutor(args.threads) as pool:
        waiting = [{what: pool.submit(compiled, program) for what, program in job[3].items()} for job in jobs]
        programs = [{what: future.result() for what, future in row.items()} for row in waiting]
    for (name, pixels, n, _, counts, (theta, cotangent)), found in zip(jobs, programs, strict=True):
        row = {"side": "ours", "settings": name, "pixels": pixels, "gaussians": n, "device": device, **counts}
        for what, (program, seconds) in found.items():
            given = (theta, cotangent) if what == "forward and backward" else (theta,)
            ms, calls = median_ms(lambda: jax.block_until_ready(program(*given)), args.seconds)  # noqa: B023 (called at once)
            row |= {f"{what}, ms": ms, f"{what}, calls": calls, f"{what}, compiled in s": seconds, **analysis(what, program)}
        images, gradient = found["forward and backward"][0](theta, cotangent)
        arrays = dict(zip(("rgb", "depth", "opacity"), images, strict=True)) | {f"d {k}": gradient[k] for k in NAMES}
        tell(args.out, row | keep(args.images, "ours", pixels, {k: np.asarray(x) for k, x in arrays.items()}))


def analysis(what: str, program: Any) -> dict[str, float]:
    """What XLA says of a compiled program; of a loop it counts one turn."""
    cost, memory = program.cost_analysis(), program.memory_analysis()
    found = {"kernels in the program": len(KERNEL.findall(program.as_text())), "GFLOP": cost.get("flops", 0) / 1e9}
    found |= {"GB": cost.get("bytes accessed", 0) / 1e9, "temporaries in MB": memory.temp_size_in_bytes / 1e6}
    return {f"{what}, {name}": value for name, value in found.items()}


def slices(args: argparse.Namespace, done: set) -> None:
    """Rows of our rasterizer, compiled for a TPU that is not there."""
    import jax
    from jax.sharding import SingleDeviceSharding

    from lods_jax.core.devices import traced_for
    from lods_jax.training.cost import slice_of

    tpu = slice_of(TOPOLOGY)[0]
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=SingleDeviceSharding(tpu))  # noqa: E731
    for name in args.settings:
        for pixels, n in args.sizes:
            if (TOPOLOGY, name, pixels) in done or SETTINGS[name].warps:  # the kernel is for GPUs
                continue
            with using(SETTINGS[name]), traced_for("tpu"):
                programs, counts, _ = lowered(pixels, n, SETTINGS[name], place)
            row = {"side": TOPOLOGY, "settings": name, "pixels": pixels, "gaussians": n, "device": tpu.device_kind, **counts}
            for what, program in programs.items():
                row |= analysis(what, program.compile())
            tell(args.out, row)


# --- gsplat -----------------------------------------------------------------------------------------------------------------
def gsplat(args: argparse.Namespace, done: set) -> None:
    """Rows of gsplat."""
    import jax
    import torch
    from gsplat import rasterization

    from lods_jax.core.cameras import turntable

    jax.config.update("jax_platforms", "cpu")  # the GPU is PyTorch's
    c2w, fov_y = (np.asarray(x[0]) for x in (turntable(1).c2w, turntable(1).fov_y))
    cuda = lambda x: torch.tensor(np.asarray(x, np.float32), device="cuda")  # noqa: E731
    for pixels, n in args.sizes:
        if ("gsplat", "", pixels) in done:
            continue
        focal = pixels / 2 / np.tan(fov_y / 2)
        intrinsics = cuda([[[focal, 0, pixels / 2], [0, focal, pixels / 2], [0, 0, 1]]])
        view = {"viewmats": cuda(np.linalg.inv(c2w)[None]), "Ks": intrinsics, "backgrounds": cuda(np.ones((1, 3)))}
        theta = {name: cuda(x).requires_grad_() for name, x in shell(n).items()}
        cotangent = [cuda(x) for x in cotangents(pixels)]
        row = {"side": "gsplat", "settings": "", "pixels": pixels, "gaussians": n, "device": torch.cuda.get_device_name()}

        def forward(theta=theta, view=view, pixels=pixels):
            # Not packed, which is faster where all Gaussians are seen, and refuses a background.
            drawn, alphas, _ = rasterization(**theta, **view, width=pixels, height=pixels, render_mode="RGB+ED", packed=False)
            return drawn[..., :3], drawn[..., 3:], alphas

        def timed_forward(forward=forward):
            with torch.no_grad():
                forward()
            torch.cuda.synchronize()

        def timed_both(forward=forward, theta=theta, cotangent=cotangent):
            grads = torch.autograd.grad(forward(), list(theta.values()), cotangent)
            torch.cuda.synchronize()
            return grads

        for name, call in (("forward", timed_forward), ("forward and backward", timed_both)):
            row[f"{name}, ms"], row[f"{name}, calls"] = median_ms(call, args.seconds)
        images = [x.detach().cpu().numpy() for x in forward()]
        arrays = dict(zip(("rgb", "depth", "opacity"), images, strict=True))
        arrays |= {f"d {name}": x.cpu().numpy() for name, x in zip(theta, timed_both(), strict=True)}
        tell(args.out, row | keep(args.images, "gsplat", pixels, arrays))


def run_apart(sides: Sequence[Callable[[argparse.Namespace, set], None]], args: argparse.Namespace, done: set) -> None:
    """Runs each side in a process of its own: PyTorch and JAX each want the device for themselves."""
    for side in sides:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            pool.submit(side, args, done).result()


def tell(path: Path, row: dict) -> None:
    """Appends a finished row, and prints its numbers."""
    append(path, row)
    times = " ".join(f"{name} {row[name]:.3f}" for name in row if name.endswith(", ms"))
    errors = " ".join(f"{name} {value:.2g}" for name, value in row.items() if "difference" in name or "error" in name)
    figures = " ".join(f"{name} {value:.4g}" for name, value in row.items() if row["side"] == TOPOLOGY and ", " in name)
    print(f"{row['side']} {row['settings']} {row['pixels']} px: {times} {errors} {figures}", flush=True)


def table(rows: list[dict]) -> str:
    """Milliseconds by side and settings, as Markdown; a pair of columns for each size."""
    sizes = sorted({(row["pixels"], row["gaussians"]) for row in rows if row["side"] != TOPOLOGY})
    timed = {(f"{row['side']}, {row['settings']}".removesuffix(", "), row["pixels"]): row for row in rows}
    heads = [f"{pixels} px, {n:,}: {what}" for pixels, n in sizes for what in ("forward", "with backward", "steps")]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name in ("gsplat", *(f"ours, {settings}" for settings in SETTINGS)):
        cells = []
        for pixels, _ in sizes:
            row = timed[name, pixels]
            cells += [f"{row['forward, ms']:.2f}", f"{row['forward and backward, ms']:.2f}", str(row.get("steps", ""))]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = lambda text: tuple(int(number) for number in text.split(":"))  # noqa: E731
    parser.add_argument("--sizes", type=size, nargs="+", default=[(256, 20_000), (512, 50_000)], help="pixels:Gaussians")
    sides = {"gsplat": gsplat, "ours": ours, "slices": slices}
    parser.add_argument("--sides", nargs="+", choices=sides, default=["gsplat", "ours"])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=[*SETTINGS])
    parser.add_argument("--seconds", type=float, default=1.0, help="for every time")
    parser.add_argument("--threads", type=int, default=8, help="that compile")
    parser.add_argument("--images", type=Path, default=Path("outputs/experiments/against_gsplat"), help="where they are kept")
    parser.add_argument("--out", type=Path, default=Path("outputs/experiments/against_gsplat.jsonl"))
    args = parser.parse_args()
    for folder in (args.images, args.out.parent):
        folder.mkdir(parents=True, exist_ok=True)
    done = {(row["side"], row["settings"], row["pixels"]) for row in truncate_log(args.out)}
    run_apart([sides[side] for side in args.sides], args, done)


if __name__ == "__main__":
    main()
