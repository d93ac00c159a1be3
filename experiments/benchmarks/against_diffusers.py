"""How long do steps with Stable Diffusion 2.1 at its full size take, beside the same computation in PyTorch diffusers?

    python -m experiments.benchmarks.against_diffusers                      # a GPU of 80 GB: 3 minutes, most of them compiling
    python -m experiments.benchmarks.against_diffusers --sides count        # operations alone, on any machine
    python -m experiments.benchmarks.against_diffusers --sides chip         # memory on a TPU chip: 15 minutes, extra `tpu`
    python -m experiments.benchmarks.against_diffusers --prior tabletop-64 --batch 2 --dtype float32 --attentions plain   # a CPU

  forward     noise predictions of the score: two for a view, of 64 x 64 latents
  sds         one step on a batch of 512 px images: encode, two predictions a view, back through the encoder, Adam
  lods-lora   the same with a LoRA of rank 4 on one of the two, and its denoising loss with the way back through the U-Net

The scene is the images themselves, so that what is compared is the prior and not a renderer; the step is that of `lods_jax`, and
in PyTorch the same lines by hand, with scaled_dot_product_attention. Weights are random, from the published configurations, and
nothing is computed twice (remat off) on either side. Milliseconds are medians of calls that end when the device has finished,
after one that compiles. Each side runs in a process of its own. A row that is finished is a line in --out; a second call goes on.

`count` are the operations of XLA's analysis of the program as it is traced with plain attention, on a CPU. `chip` are the
temporaries of our side compiled for the TPU chip that stands in for a GPU in `--dry-run --device-memory`.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from experiments.benchmarks.against_gsplat import median_ms, run_apart
from lods_jax.core.paths import WEIGHTS
from lods_jax.runs.run_directory import append, truncate_log

STEPS = ("sds", "lods-lora")
SCALE, LORA, RANK = {"sds": 100.0, "lods-lora": 1000.0}, 0.5, 4  # guidance, of the LoRA


@contextmanager
def prior_folder(name: str) -> Iterator[Path]:
    """A folder with the configurations of a prior: the shipped one, or a published one's."""
    from lods_jax.priors.architectures import write_configs

    with tempfile.TemporaryDirectory() as folder:
        shipped = WEIGHTS / name.removeprefix("tabletop-")
        yield shipped if shipped.exists() else write_configs(Path(folder), name)


def settings(folder: Path) -> tuple[dict, dict, int, int]:
    """The configurations of U-Net and autoencoder, and the edges of latents and images."""
    unet, vae = (json.loads((folder / part / "config.json").read_text()) for part in ("unet", "vae"))
    return unet, vae, unet["sample_size"], unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)


# --- ours -------------------------------------------------------------------------------------------------------------------
def programs(args: argparse.Namespace, attention: str, abstract: bool = False) -> Iterator[tuple[str, Callable[[], tuple]]]:
    """(name, function that makes the jitted program and its arguments) of our side, for random weights or, abstract, shapes."""
    import jax
    import jax.numpy as jnp
    from flax.traverse_util import flatten_dict

    from experiments.benchmarks.full_size import drawn, step_of
    from lods_jax.core.types import Cond
    from lods_jax.priors.stable_diffusion import stable_diffusion

    with prior_folder(args.prior) as folder:
        prior = stable_diffusion(folder, jnp.dtype(args.dtype), strict=False, untrained=True, attention=attention)
        unet, _, latent, edge = settings(folder)
    shapes = {part: own for part, own in jax.eval_shape(prior.init, jax.random.key(0)).items() if part != "text"}
    weights = shapes if abstract else random(tuple(flatten_dict(shapes).items()))
    width, b = unet["cross_attention_dim"], 2 * args.batch

    def forward():
        predict = lambda weights, z, t, tokens: prior.predict(weights, {}, z, t, Cond(tokens=tokens))  # noqa: E731
        z, tokens = (jax.random.normal(jax.random.key(1), shape) for shape in ((b, latent, latent, 4), (b, 77, width)))
        return jax.jit(predict), (weights, z, jnp.arange(b) * 50, tokens)

    def step(name):
        start = jax.ShapeDtypeStruct((args.batch, edge, edge, 3), jnp.float32)
        made, arguments = step_of(prior, weights, name, start, width=width)
        return made, arguments if abstract else drawn(prior, weights, name, arguments)

    yield "forward", forward
    for name in STEPS:
        yield name, lambda name=name: step(name)


@cache
def random(shapes: tuple) -> Any:
    """Numbers for weights, (path, shape) pairs, of the size that networks start with. One block of them serves all, for speed."""
    import jax
    import numpy as np
    from flax.traverse_util import unflatten_dict

    block = np.random.default_rng(0).standard_normal(2**20 + 7, np.float32)

    def leaf(path, x):
        if path[-1] in ("scale", "bias"):
            return np.full(x.shape, float(path[-1] == "scale"), x.dtype)
        return np.resize(block / np.float32(np.prod(x.shape[:-1]) ** 0.5), x.shape).astype(x.dtype)

    return jax.device_put(unflatten_dict({path: leaf(path, x) for path, x in shapes}))


def ours(args: argparse.Namespace, done: set) -> None:
    """Rows of our steps. All are traced, then compiled side by side, then timed."""
    import jax

    jax.config.update("jax_enable_compilation_cache", False)
    jobs = []
    for attention in args.attentions:
        for name, make in programs(args, attention):
            if (f"lods_jax, {attention}", name) not in done and (name == "forward" or attention == args.attentions[0]):
                program, arguments = make()
                jobs.append((attention, name, program.lower(*arguments), arguments))

    def compiled(program):
        began = time.perf_counter()
        return program.compile(), time.perf_counter() - began

    with ThreadPoolExecutor(args.threads) as pool:
        waiting = [pool.submit(compiled, program) for _, _, program, _ in jobs]
        for (attention, name, *_), future in zip(jobs, waiting, strict=True):
            _, seconds = future.result()
            print(f"compiled {name} with {attention} attention in {seconds:.0f} s", flush=True)
    for (attention, name, _, arguments), future in zip(jobs, waiting, strict=True):
        program, seconds = future.result()
        ms, calls = median_ms(lambda: jax.block_until_ready(program(*arguments)), args.seconds)  # noqa: B023 (called at once)
        memory = program.memory_analysis()
        row = {"side": f"lods_jax, {attention}", "what": name, "ms": ms, "calls": calls, "compiled in s": seconds}
        row |= {"temporaries, GiB": memory.temp_size_in_bytes / 2**30, "device": jax.devices()[0].device_kind}
        tell(args, row)


def count(args: argparse.Namespace, done: set) -> None:
    """Rows of operations."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    for name, make in programs(args, "plain", abstract=True):
        if ("count", name) not in done:
            program, arguments = make()
            tell(args, {"side": "count", "what": name, "TFLOP": program.lower(*arguments).cost_analysis()["flops"] / 1e12})


def chip(args: argparse.Namespace, done: set) -> None:
    """Rows of temporaries, compiled for the TPU chip that stands in for a GPU."""
    import jax
    from jax.sharding import SingleDeviceSharding

    from lods_jax.core.devices import traced_for
    from lods_jax.training.ahead_of_time import QUICKLY
    from lods_jax.training.cost import STAND_IN, slice_of

    tpu = slice_of(STAND_IN)[0]
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=SingleDeviceSharding(tpu))  # noqa: E731
    for name, make in programs(args, "fused", abstract=True):
        if ("chip", name) not in done:
            program, arguments = make()
            with traced_for("tpu"):
                low = program.lower(*jax.tree.map(place, arguments))
            memory = low.compile(compiler_options=QUICKLY).memory_analysis()
            row = {"side": "chip", "what": name, "temporaries, GiB": memory.temp_size_in_bytes / 2**30}
            tell(args, row | {"device": tpu.device_kind})


# --- PyTorch ----------------------------------------------------------------------------------------------------------------
def pytorch(args: argparse.Namespace, done: set) -> None:
    """Rows of PyTorch diffusers, eager."""
    import torch

    from experiments.benchmarks.steps_in_torch import make_steps

    on = "cuda" if torch.cuda.is_available() else "cpu"
    wait = torch.cuda.synchronize if on == "cuda" else lambda: None
    name_of = torch.cuda.get_device_name() if on == "cuda" else "cpu"
    with prior_folder(args.prior) as folder:
        unet, vae, latent, edge = settings(folder)
    for layout in args.layouts:
        calls = make_steps(unet, vae, latent, edge, args.batch, getattr(torch, args.dtype), on, layout == "channels last")
        for name, call in calls.items():
            if (f"PyTorch, {layout}", name) in done:
                continue

            def run(call=call):
                call()
                wait()

            began = time.perf_counter()
            run()
            first = time.perf_counter() - began
            ms, n = median_ms(run, args.seconds)
            peak = torch.cuda.max_memory_allocated() / 2**30 if on == "cuda" else None
            row = {"side": f"PyTorch, {layout}", "what": name, "ms": ms, "calls": n, "first call in s": first, "peak, GiB": peak}
            tell(args, row | {"device": name_of})


def tell(args: argparse.Namespace, row: dict) -> None:
    """Appends a finished row, and prints it."""
    row |= {"prior": args.prior, "views": args.batch, "dtype": args.dtype}
    append(args.out, row)
    print(", ".join(f"{name} {value:.4g}" if isinstance(value, float) else str(value) for name, value in row.items()), flush=True)


def table(rows: list[dict]) -> str:
    """Milliseconds and TFLOP a second by side, as Markdown."""
    counted = {row["what"]: row["TFLOP"] for row in rows if row["side"] == "count"}
    timed = {(row["side"], row["what"]): row["ms"] for row in rows if "ms" in row}
    heads = [f"{what}, {operations:.1f} TFLOP" for what, operations in counted.items()]
    lines = ["| milliseconds (TFLOP a second) | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for side in dict.fromkeys(side for side, _ in timed):
        found = {what: timed.get((side, what)) for what in counted}
        cells = [f"{ms:.1f} ({1e3 * counted[what] / ms:.0f})" if ms else "" for what, ms in found.items()]
        lines.append(f"| {side} | {' | '.join(cells)} |")
    return "\n".join(lines)


def memory_table(rows: list[dict]) -> str:
    """Temporaries of our steps as a GPU has them and as the TPU chip in its place does, as Markdown."""
    found = {(row["side"], row["what"]): row["temporaries, GiB"] for row in rows if "temporaries, GiB" in row}
    whats = [what for side, what in found if side == "chip"]
    lines = [f"| temporaries, GiB | {' | '.join(whats)} |", "|---" * (len(whats) + 1) + "|"]
    for label, side in (("a GPU", "lods_jax, fused"), ("the TPU chip in its place", "chip")):
        lines.append(f"| {label} | {' | '.join(f'{found[side, what]:.2f}' for what in whats)} |")
    ratios = [f"{found['lods_jax, fused', what] / found['chip', what]:.2f}" for what in whats]
    return "\n".join([*lines, f"| ratio | {' | '.join(ratios)} |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="stable-diffusion-2-1-base", help="a published architecture, or tabletop-64")
    parser.add_argument("--batch", type=int, default=8, help="views")
    parser.add_argument("--dtype", default="bfloat16")
    sides = {"ours": ours, "pytorch": pytorch, "count": count, "chip": chip}
    parser.add_argument("--sides", nargs="+", choices=sides, default=["pytorch", "ours"])
    parser.add_argument("--attentions", nargs="+", default=["fused", "plain"], help="the first also for steps")
    parser.add_argument("--layouts", nargs="+", choices=("channels first", "channels last"), default=["channels last"])
    parser.add_argument("--seconds", type=float, default=2.0, help="for every time")
    parser.add_argument("--threads", type=int, default=4, help="that compile")
    parser.add_argument("--out", type=Path, default=Path("outputs/experiments/against_diffusers.jsonl"))
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    done = {(row["side"], row["what"]) for row in truncate_log(args.out)}
    run_apart([sides[side] for side in args.sides], args, done)


if __name__ == "__main__":
    main()
