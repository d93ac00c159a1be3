"""How long does a train step with Stable Diffusion 2.1 take at 512 px, and how near is it to what the device can do?

    python -m experiments.benchmarks.sd_step                # 3 objectives x batches of 1 and 4; needs 16 GiB of a GPU or TPU
    python -m experiments.benchmarks.sd_step --batches 1 --rounds 1 --dtype float32 --objectives SDS   # a CPU: 9 GiB
    python -m experiments.benchmarks.sd_step --prior tabletop --resolution 64 --dtype float32        # what it prints, in minutes

The step of `sd21-gaussians-lods-lora` whole, rematerialised: Gaussians, encoder, predictions, both updates; Perp-Neg is off. The
weights are random, so that no folder is needed. The floor is the time that the step's operations, as XLA counts them, would take
at the rate of a large matrix product, measured in the same call; recomputation counts, and of a loop one turn. Medians are
printed.
"""

import argparse
import time
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from experiments.benchmarks.full_size import random_weights
from lods_jax import config as configs
from lods_jax.config import Config, ObjectiveConfig
from lods_jax.training import build, cost, loop
from lods_jax.training.distributed import start_jax

OBJECTIVES = {"SDS": ObjectiveConfig("sds", 100.0), "LODS-embedding": ObjectiveConfig("lods-embedding", 1000.0)}
OBJECTIVES["LODS-LoRA"] = ObjectiveConfig("lods-lora", 1000.0, {"lora": 0.5})
LARGE = {"cpu": 2048}  # edge of the product; 8192 elsewhere


def untrained(config: Config, weights: Any = None) -> build.Components:
    """The parts of a configuration with random weights and texts in place of those of a folder."""
    if config.prior.name == "tabletop":
        return build.build(config)
    components = build.build_abstract(config)
    weights = random_weights(components.weights) if weights is None else weights
    texts = {name: jax.random.normal(jax.random.key(i), x.shape) for i, (name, x) in enumerate(components.texts.items())}
    psi = build.first_psi(config, components.prior, components.objective, weights, texts["null"][0])
    return components._replace(weights=weights, texts=texts, psi=psi)


def rate(dtype: str) -> float:
    """Operations per second of a large matrix product."""
    n = LARGE.get(jax.default_backend(), 8192)
    a = jax.random.normal(jax.random.key(0), (n, n), dtype)
    product = jax.jit(lambda a: a @ a)
    return 2 * n**3 / seconds(lambda: product(a), 5)


def seconds(call: Any, rounds: int) -> float:
    """The median time of a call, which has run before."""
    jax.block_until_ready(call())
    spent = []
    for _ in range(rounds):
        began = time.perf_counter()
        jax.block_until_ready(call())
        spent.append(time.perf_counter() - began)
    return float(np.median(spent))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="stable-diffusion-2-1-base", help="or stable-diffusion-v1-5, or tabletop")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=[*OBJECTIVES])
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    start_jax()
    base = configs.load("sd21-gaussians-lods-lora")
    prior = replace(base.prior, name=args.prior, dtype=args.dtype, memory="manual", remat=True)
    base = replace(base, prompt="a red mug", perp_neg=False, prior=prior, resolution=args.resolution, parallel="jit")
    peak, weights = rate(args.dtype), None
    print(f"{jax.devices()[0].device_kind}: {peak / 1e12:.1f} TFLOP a second in a matrix product of {args.dtype}")
    print("| step | views | ms | GiB | TFLOP | floor, ms | times the floor |\n" + "|---" * 7 + "|")
    for views in args.batches:
        for name in args.objectives:
            config = replace(base, objective=OBJECTIVES[name], batch=views)
            components = untrained(config, weights)
            weights, found = components.weights, cost.estimate(config, components)
            step = loop.compiled(components, components.setup.choose_shapes(config.resolution, None))
            held = [loop.first_state(components)]

            def once(step=step, components=components, held=held):
                held[0], metrics = step(
                    held[0], components.weights, components.texts, None, jax.random.key(0)
                )  # the state is donated
                return metrics

            spent, floor = seconds(once, args.rounds), found.operations / peak
            took = f"{1e3 * spent:.0f} | {found.peak / cost.GIB:.2f} | {found.operations / 1e12:.2f}"
            print(f"| {name} | {views} | {took} | {1e3 * floor:.0f} | {spent / floor:.2f} |", flush=True)


if __name__ == "__main__":
    main()
