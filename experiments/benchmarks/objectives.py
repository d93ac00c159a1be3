"""What a step of each objective costs, relative to SDS: operations as XLA counts them, and time.

    python experiments/benchmarks/objectives.py          # the shipped prior, batch 4, about 6 minutes on 2 cores

In latents the step is the prior and two Adam updates; through the encoder it also encodes 64 px images and pulls back. All steps
are timed in turn, ROUNDS times; the ratio of a round is to SDS in the same round, and medians are printed. Shared: score and fit
share timestep and noise (`fit_shares_noise`).
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lods_jax.core.cameras import sample_orbit
from lods_jax.core.paths import TABLETOP_64
from lods_jax.core.types import Prior
from lods_jax.distillation.objectives import OBJECTIVES
from lods_jax.distillation.parallel import fused_step
from lods_jax.distillation.prompts import prompt_table
from lods_jax.distillation.train_step import init_state, make_train_step
from lods_jax.priors.sampling import latent_shape
from lods_jax.priors.stable_diffusion import stable_diffusion
from lods_jax.scenes.images import image_batch
from lods_jax.training.distill_2d import in_latents

BATCH, ROUNDS = 4, 15


class Job(NamedTuple):
    objective: str
    shared: bool = False
    rank: int = 4

    def __str__(self):
        return self.objective + (", shared" if self.shared else "") + (f", rank {self.rank}" if self.rank != 4 else "")


SDS = Job("sds")
JOBS = [Job(name) for name in OBJECTIVES] + [Job(name, shared=True) for name in ("lods-embedding", "lods-lora", "vsd")]
JOBS += [Job("lods-lora", rank=1), Job("lods-lora", rank=16)]


class Step(NamedTuple):
    run: Callable
    args: tuple
    operations: float
    mib: float  # of temporary memory
    learned: int  # parameters


def compiled_step(world: Callable[[int], Prior], weights, texts, start, reference, job: Job) -> Step:
    """The step of an objective on particles. `world` gives the prior whose adapters have a rank."""
    prior, objective, scene, tx = world(job.rank), OBJECTIVES[job.objective](), image_batch(start), optax.adam(1e-2)
    psi = prior.init_psi(weights, jax.random.key(0), texts["null"][0], objective.trained_queries)
    build = make_train_step(
        scene,
        prior,
        objective,
        cameras=lambda keys, views: sample_orbit(keys, views, BATCH),
        window=lambda step: (20, 980),
        tx_theta=tx,
        tx_psi=tx,
        batch=BATCH,
        fit_shares_noise=job.shared,
    )
    state = init_state(scene, psi, tx, tx, jax.random.key(1))
    args = (state, weights, texts, reference, jax.random.key(2), jnp.arange(BATCH))
    step = jax.jit(fused_step(build)).lower(*args).compile()
    mib = step.memory_analysis().temp_size_in_bytes / 2**20
    return Step(step, args, step.cost_analysis()["flops"], mib, sum(x.size for x in jax.tree.leaves(psi)))


def main() -> None:
    prior = stable_diffusion(TABLETOP_64)
    weights = prior.init(jax.random.key(0))
    table = prompt_table("a red mug", with_view=False, source="a blue mug")
    texts = {name: prior.embed(weights, list(rows)) for name, rows in table.items()}
    latents = jax.random.normal(jax.random.key(3), (BATCH, *latent_shape(prior, weights)))
    at_rank = lambda rank: stable_diffusion(TABLETOP_64, rank=rank)  # noqa: E731
    for title, world, start in (
        ("in latents", lambda rank: in_latents(at_rank(rank)), latents),
        ("through the encoder", at_rank, jnp.full((BATCH, 64, 64, 3), 0.5)),
    ):
        steps = {job: compiled_step(world, weights, texts, start, latents, job) for job in JOBS}
        seconds = {job: [] for job in JOBS}
        for _ in range(ROUNDS):
            for job, step in steps.items():
                began = time.perf_counter()
                jax.block_until_ready(step.run(*step.args))
                seconds[job].append(time.perf_counter() - began)
        print(f"{title:<24}{'operations':>12}{'time':>8}{'time / operations':>20}{'ms':>8}{'MiB':>8}{'learned':>10}")
        for job, step in steps.items():
            operations = step.operations / steps[SDS].operations
            ratio = np.median(np.array(seconds[job]) / np.array(seconds[SDS]))
            row = f"  {job!s:<22}{operations:12.2f}{ratio:8.2f}{ratio / operations:20.2f}{1e3 * np.median(seconds[job]):8.0f}"
            print(f"{row}{step.mib:8.1f}{step.learned:10,}")


if __name__ == "__main__":
    main()
