"""What a train step takes on a TPU slice that is not there: memory, operations, collectives. Nothing runs.

    pip install -e '.[tpu]'
    python experiments/benchmarks/slices.py               # every row, a process each; 45 minutes on 2 cores, 7 GiB
    python experiments/benchmarks/slices.py --only LoRA   # rows whose name contains this

The step is compiled ahead of time by libtpu, as `lods text-to-3d ... --dry-run --topology v5e:2x4` does. Weights are shapes
alone, so that no folder of Stable Diffusion is needed. A row that is finished is a line in --out; a second call goes on.
"""

import argparse
import math
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

from lods_jax import config as configs
from lods_jax.config import Config
from lods_jax.core.errors import UserError
from lods_jax.priors.registry import registered
from lods_jax.runs.run_directory import append, truncate_log
from lods_jax.training import build, cost, planning

TOPOLOGY = "v5e:2x4"
LORA, NERF, MVDREAM = "sd21-gaussians-lods-lora", "sd21-nerf-lods-lora", "mvdream-gaussians-lods-lora"


def preset(name: str, views: int, prior: dict | None = None, **changes) -> Callable[[], Config]:
    """A preset with so many views on each of the eight chips, with `changes` of its own and of its prior."""

    def made():
        config = replace(configs.load(name), **({"prompt": "a red mug", "batch": 8 * views} | changes))
        return replace(config, prior=replace(config.prior, **(prior or {})))

    return made


BY_HAND = {"memory": "manual"}
ROWS: dict[str, Callable[[], Config]] = {
    "`gaussians-lods-embedding`, 64 px": preset("gaussians-lods-embedding", 1),
    f"`{LORA}`": preset(LORA, 1),
    f"`{LORA}`, without Perp-Neg": preset(LORA, 1, perp_neg=False),
    f"`{LORA}`, without Perp-Neg, nothing given up": preset(LORA, 4, BY_HAND, perp_neg=False),
    f"`{LORA}`, four views": preset(LORA, 4),
    "`sd21-gaussians-lods-embedding`": preset("sd21-gaussians-lods-embedding", 1),
    f"`{NERF}`": preset(NERF, 1),
    "`sd21-nerf-lods-embedding`": preset("sd21-nerf-lods-embedding", 1),
    f"`{MVDREAM}`": preset(MVDREAM, 4),
    "`mvdream-nerf-sds`": preset("mvdream-nerf-sds", 4),
    "`mvdream-nerf-lods-embedding`": preset("mvdream-nerf-lods-embedding", 4),
    "`sdxl-gaussians-lods-lora`": preset("sdxl-gaussians-lods-lora", 1),
}


def compiled(name: str) -> dict:
    """One row, in a process of its own: what a compilation leaves behind is gone with it."""
    config, began, devices = ROWS[name](), time.monotonic(), cost.slice_of(TOPOLOGY)
    components = (build.build if registered(config.prior.name) else build.build_abstract)(config)
    row = {"row": name, "views": config.batch // len(devices)}
    try:
        if config.prior.memory == "manual":
            found, said = cost.estimate(config, components, devices), planning.unplanned(config, components)
        else:
            planned = planning.find_plan(config, components, math.inf, devices)
            found, said = cost.cost_of(components, planned.ahead), planned.said
        row |= found._asdict() | {"plan": said}
    except UserError as error:
        row |= {"error": str(error)}
    return row | {"seconds": time.monotonic() - began}


def table(rows: list[dict]) -> str:
    lines = [
        "| step | views a chip | weights and state, GiB | step, GiB | TFLOP | collectives | memory plan | compiled in |",
        "|---" * 8 + "|",
    ]
    for row in rows:
        took = f"{row['seconds']:.0f} s"
        if "error" in row:
            lines.append(f"| {row['row']} | {row['views']} | | {row['error']} | | | | {took} |")
            continue
        memory = f"{row['arguments'] / cost.GIB:.2f} | {row['temporary'] / cost.GIB:.2f} | {row['operations'] / 1e12:.2f}"
        calls = ", ".join(f"{n} {kind}" for kind, n in row["collectives"].items())
        lines.append(f"| {row['row']} | {row['views']} | {memory} | {calls} | {row.get('plan', '')} | {took} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--out", type=Path, default=Path("outputs/experiments/slices.jsonl"))
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    done = {row["row"]: row for row in truncate_log(args.out)}
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        for name in ROWS:
            if name not in done and args.only in name:
                done[name] = pool.submit(compiled, name).result()
                append(args.out, done[name])
                print(table([done[name]]).splitlines()[-1], flush=True)
    print(table([done[name] for name in ROWS if name in done]))


if __name__ == "__main__":
    main()
