"""What a train step takes on a TPU slice that is not there: memory, operations, collectives. Nothing runs.

    pip install -e '.[tpu]'
    python experiments/benchmarks/slices.py               # every row, a process each; 45 minutes on 2 cores, 7 GiB
    python experiments/benchmarks/slices.py --only LoRA   # rows whose name contains this

The step is compiled ahead of time by libtpu, as `lods text-to-3d ... --dry-run --topology v5e:2x4` does. Weights are shapes
alone, so that no folder of Stable Diffusion is needed. A row that is finished is a line in --out; a second call goes on.
"""

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

from lods_jax import config as configs
from lods_jax.config import Config, ObjectiveConfig
from lods_jax.core.errors import UserError
from lods_jax.runs.run_directory import append, truncate_log
from lods_jax.training import build, cost

TOPOLOGY = "v5e:2x4"
LORA, EMBEDDING, NERF = "sd21-gaussians-lods-lora", "sd21-gaussians-lods-embedding", "sd21-nerf-lods-lora"


def preset(name: str, prior: dict | None = None, **changes) -> Callable[[], Config]:
    """A preset without Perp-Neg, rematerialised and at one resolution, with `changes` of its own and of its prior."""

    def made():
        config = replace(configs.load(name), **({"prompt": "a red mug", "perp_neg": False} | changes))
        flags = {"memory": "manual", "remat": True} | (prior or {})
        return replace(config, resolution_after=config.resolution, prior=replace(config.prior, **flags))

    return made


# batch is of all eight chips.
ROWS: dict[str, Callable[[], Config]] = {
    "tabletop, Gaussians 64 px, LODS-embedding": preset("gaussians-lods-embedding", {"remat": False}, batch=8),
    "Gaussians 512 px, SDS": preset(EMBEDDING, objective=ObjectiveConfig("sds", 100.0)),
    "Gaussians 512 px, LODS-embedding": preset(EMBEDDING),
    "Gaussians 512 px, LODS-LoRA": preset(LORA),
    "Gaussians 512 px, LODS-LoRA, Perp-Neg": preset(LORA, perp_neg=True),
    "Gaussians 512 px, LODS-LoRA, no remat": preset(LORA, {"remat": False}),
    "Gaussians 512 px, LODS-LoRA, four views": preset(LORA, batch=32),
    "Gaussians 512 px, LODS-LoRA, four views, VAE sliced": preset(LORA, {"vae_slicing": True}, batch=32),
    "NeRF 256 px, LODS-LoRA": preset(NERF, batch=8),
    "NeRF 512 px, LODS-LoRA": preset(NERF, resolution=512, batch=8),
    "NeRF 512 px, LODS-LoRA, Perp-Neg": preset(NERF, resolution=512, batch=8, perp_neg=True),
}


def compiled(name: str) -> dict:
    """One row, in a process of its own: what a compilation leaves behind is gone with it."""
    config, began, devices = ROWS[name](), time.monotonic(), cost.slice_of(TOPOLOGY)
    components = (build.build if config.prior.name == "tabletop" else build.build_abstract)(config)
    try:
        found = cost.estimate(config, components, devices)._asdict()
    except UserError as error:
        found = {"error": str(error)}
    return {"row": name, "views": config.batch // len(devices), "seconds": time.monotonic() - began, **found}


def table(rows: list[dict]) -> str:
    lines = ["| step | views a chip | weights and state, GiB | step, GiB | TFLOP | collectives | compiled in |", "|---" * 7 + "|"]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['row']} | {row['views']} | | {row['error']} | | | {row['seconds']:.0f} s |")
            continue
        memory = f"{row['arguments'] / cost.GIB:.2f} | {row['temporary'] / cost.GIB:.2f} | {row['operations'] / 1e12:.2f}"
        calls = ", ".join(f"{n} {kind}" for kind, n in row["collectives"].items())
        lines.append(f"| {row['row']} | {row['views']} | {memory} | {calls} | {row['seconds']:.0f} s |")
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
