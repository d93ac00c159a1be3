"""Does every preset of text-to-3d for Stable Diffusion fit? Its step at full size, for devices that are not there. Nothing runs.

    pip install -e '.[tpu]'
    python experiments/benchmarks/dry_runs.py                # every row, a process each; hours on 2 cores, 7 GiB, SDXL twice that
    python experiments/benchmarks/dry_runs.py --devices 24GiB --presets sd21-nerf-lods-lora

A row is what `lods text-to-3d ... --dry-run` finds with `--topology v5e:2x4` or `--device-memory 24GiB`: the first memory plan
of `--prior.memory auto` that fits. Weights are shapes alone, so that no folder of Stable Diffusion is needed. A row that is
finished is a line in --out; a second call goes on.
"""

import argparse
import math
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

from lods_jax import config as configs
from lods_jax.cli.dry_run import device_memory
from lods_jax.config import Config
from lods_jax.core.errors import UserError
from lods_jax.runs.run_directory import append, truncate_log
from lods_jax.training import build, cost, planning

TPU, GPU = "v5e:2x4", "24GiB"
VIEWS = {  # of a chip of the slice: one, or the group that the prior denoises together; a GPU has the batch of the preset
    "sd21-gaussians-lods-embedding": 1,
    "sd21-gaussians-lods-lora": 1,
    "sd21-gaussians-lods-embedding-paper": 1,
    "sd21-gaussians-lods-embedding-official": 1,
    "sd21-nerf-lods-embedding": 1,
    "sd21-nerf-lods-lora": 1,
    "sd21-nerf-lods-embedding-official": 1,
    "sd21-nerf-lods-lora-official": 1,
    "mvdream-gaussians-lods-lora": 4,
    "mvdream-nerf-lods-embedding": 4,
    "mvdream-nerf-sds": 4,
    "sdxl-gaussians-lods-lora": 1,
}
ONE_BY_ONE = {(GPU, "sdxl-gaussians-lods-lora")}  # no plan with more fits, and the first takes 17 GiB to compile


def config_of(device: str, preset: str) -> Config:
    """A preset as it is shipped, with a batch that eight chips can share."""
    config = replace(configs.load(preset), prompt="a red mug")
    if (device, preset) in ONE_BY_ONE:
        config = replace(config, prior=replace(config.prior, view_chunk=1))
    return replace(config, batch=8 * VIEWS[preset]) if device == TPU else config


def compiled(device: str, preset: str) -> dict:
    """One row, in a process of its own: what a compilation leaves behind is gone with it."""
    config, began = config_of(device, preset), time.monotonic()
    if device == TPU:
        devices, memory, margin = cost.slice_of(device), math.inf, 1.0
    else:
        devices, memory, margin = cost.slice_of(cost.STAND_IN)[:1], device_memory(device), cost.GPU_MARGIN
    components = build.build_abstract(config)
    row = {"device": device, "preset": preset, "views": config.batch // len(devices)}
    try:
        planned = planning.find_plan(config, components, memory, devices, margin)
        row |= cost.cost_of(components, planned.ahead)._asdict() | {"plan": planned.said}
    except UserError as error:
        row |= {"error": str(error)}
    return row | {"seconds": time.monotonic() - began}


def table(rows: list[dict], device: str) -> str:
    """The rows of one device, as Markdown; a GPU has nobody to talk to."""
    talks = ["collectives"] if device == TPU else []
    titles = ["preset", "views", "weights and state, GiB", "step, GiB", "TFLOP", *talks, "memory plan", "compiled in"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in [row for row in rows if row["device"] == device]:
        cells = [f"`{row['preset']}`", str(row["views"])]
        if "error" in row:
            cells += [*[""] * (3 + len(talks)), f"does not fit: {row['error']}"]
        else:
            cells += [f"{row[part] / cost.GIB:.2f}" for part in ("arguments", "temporary")] + [f"{row['operations'] / 1e12:.2f}"]
            cells += [", ".join(f"{n} {kind}" for kind, n in sorted(row["collectives"].items())) or "none"] if talks else []
            cells.append(row["plan"])
        cells.append(f"{row['seconds']:.0f} s")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", nargs="+", choices=(TPU, GPU), default=(TPU, GPU))
    parser.add_argument("--presets", nargs="+", choices=VIEWS, default=tuple(VIEWS))
    parser.add_argument("--out", type=Path, default=Path("outputs/experiments/dry_runs.jsonl"))
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    done = {(row["device"], row["preset"]): row for row in truncate_log(args.out)}
    asked = [(device, preset) for device in args.devices for preset in args.presets]
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        for own in [row for row in asked if row not in done]:
            done[own] = pool.submit(compiled, *own).result()
            append(args.out, done[own])
            print(table([done[own]], own[0]).splitlines()[-1], flush=True)
    for device in args.devices:
        print(f"\n{device}\n\n{table([done[row] for row in asked], device)}")


if __name__ == "__main__":
    main()
