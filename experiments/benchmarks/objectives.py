"""What a step of each objective costs, relative to SDS: operations as XLA counts them, and time.

    python experiments/benchmarks/objectives.py          # the shipped prior, batch 4, about 6 minutes on 2 cores

In latents the step is the prior and two Adam updates; through the encoder it also encodes 64 px images and pulls back. All steps
are timed in turn, ROUNDS times; the ratio of a round is to SDS in the same round, and medians are printed. Shared: score and fit
share timestep and noise (`fit_shares_noise`).
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lods_jax.build import OBJECTIVES
from lods_jax.cameras import sample_orbit
from lods_jax.config import TABLETOP
from lods_jax.distil import in_latents, latent_shape
from lods_jax.priors.stable_diffusion import stable_diffusion
from lods_jax.prompts import prompt_table
from lods_jax.scenes.particles import particles
from lods_jax.train import Across, init_state, make_train_step

BATCH, ROUNDS = 4, 15
SHARED = ("lods-embedding", "lods-lora", "vsd")


def compiled_step(prior, weights, texts, start, reference, name: str, shared: bool):
    """(step, its arguments, operations) of an objective on particles."""
    objective, scene, tx = OBJECTIVES[name](), particles(start), optax.adam(1e-2)
    fitted = [objective.queries[objective.fit]] if objective.fit else []
    psi = prior.init_psi(weights, jax.random.key(0), texts["null"][0], fitted)
    build = make_train_step(
        scene,
        prior,
        objective,
        cameras=lambda keys, views: sample_orbit(keys, views, BATCH),
        window=lambda step: (20, 980),
        tx_theta=tx,
        tx_psi=tx,
        batch=BATCH,
        fit_shares_noise=shared,
    )
    state = init_state(scene, psi, tx, tx, jax.random.key(1))
    args = (state, weights, texts, reference, jax.random.key(2), jnp.arange(BATCH))
    step = jax.jit(build(Across())).lower(*args).compile()
    return step, args, step.cost_analysis()["flops"]


def main() -> None:
    prior = stable_diffusion(TABLETOP)
    weights = prior.init(jax.random.key(0))
    table = prompt_table("a red mug", with_view=False, source="a blue mug")
    texts = {name: prior.embed(weights, list(rows)) for name, rows in table.items()}
    latents = jax.random.normal(jax.random.key(3), (BATCH, *latent_shape(prior, weights)))
    jobs = [(name, False) for name in OBJECTIVES] + [(name, True) for name in SHARED]
    for title, world, start in (
        ("in latents", in_latents(prior), latents),
        ("through the encoder", prior, jnp.full((BATCH, 64, 64, 3), 0.5)),
    ):
        steps = {job: compiled_step(world, weights, texts, start, latents, *job) for job in jobs}
        seconds = {job: [] for job in jobs}
        for _ in range(ROUNDS):
            for job, (step, args, _) in steps.items():
                began = time.perf_counter()
                jax.block_until_ready(step(*args))
                seconds[job].append(time.perf_counter() - began)
        print(f"{title:<24}{'operations':>12}{'time':>8}{'time / operations':>20}{'ms':>8}")
        for job in jobs:
            operations = steps[job][2] / steps["sds", False][2]
            ratio = np.median(np.array(seconds[job]) / np.array(seconds["sds", False]))
            name = job[0] + (", shared" if job[1] else "")
            print(f"  {name:<22}{operations:12.2f}{ratio:8.2f}{ratio / operations:20.2f}{1e3 * np.median(seconds[job]):8.0f}")


if __name__ == "__main__":
    main()
