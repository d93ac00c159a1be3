"""The mismatch that LODS is about: how far the guided prediction is from the noise, at good images and on the way there.

    python experiments/cfg_gap.py          # about 10 minutes on 2 cores

A diffusion model is trained until its prediction meets the noise; guidance asks it for s e[y] + (1 - s) e[u], which does not. The
gap is the root mean square of that difference to the noise. On the left: at 32 true renders of the caption, per timestep, for
several guidance scales, with the empty text as the unconditional branch, and with an embedding that has learned these renders
(300 steps of the loss of LODS). On the right: along 2-D distillation, at the current images, with the branch that the objective
has at that time, all at s = 7.5 and over the same timesteps and noise, so that curves compare.

Writes cfg_gap.json and cfg_gap.png.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from generation_2d import truth

from lods_jax.core.files import replacing
from lods_jax.core.noise_schedule import add_noise
from lods_jax.core.paths import TABLETOP_64
from lods_jax.core.types import Query
from lods_jax.distillation.objectives import OBJECTIVES
from lods_jax.distillation.prompts import prompt_table
from lods_jax.distillation.scores import predict_noise
from lods_jax.priors.sampling import latent_shape, prior_with_texts
from lods_jax.training.distill_2d import DistillConfig, distill, fit_on, in_latents
from lods_jax.training.distributed import start_jax

PROMPT, IMAGES, STEPS, EVERY = "a red mug, front view", 32, 300, 20
SCALES, TIMES = (1.0, 2.0, 7.5, 30.0, 100.0), np.linspace(20, 980, 13).round().astype(int)
RUNS = {
    "SDS s=1": ("sds", 1.0),
    "SDS s=7.5": ("sds", 7.5),
    "SDS s=100": ("sds", 100.0),
    "LODS-embedding s=1000": ("lods-embedding", 1000.0),
    "LODS-LoRA s=1000": ("lods-lora", 1000.0),
}
NULL = Query("null")


def gap_of(prior, weights, texts, branch: Query):
    """(psi, z [n h w c], key) -> the gap per scale and timestep, [scales times], over all images, one noise each."""

    @jax.jit
    def gap(weights, texts, psi, z, key):
        rows = {name: jnp.broadcast_to(table[0], (len(z), *table[0].shape)) for name, table in texts.items()}

        def at(t, key):
            noise, t = jax.random.normal(key, z.shape), jnp.full(len(z), t)
            queries = {"y": Query("prompt"), "u": branch}
            e = predict_noise(
                partial(prior.predict, weights), psi, queries, {"render": add_noise(prior.noise_schedule, z, noise, t)}, rows, t
            )
            error = lambda s: jnp.sqrt(jnp.mean((s * e["y"] + (1 - s) * e["u"] - noise) ** 2))  # noqa: E731
            return jnp.stack([error(s) for s in SCALES])

        return jax.lax.map(lambda x: at(*x), (jnp.asarray(TIMES), jax.random.split(key, len(TIMES)))).T

    return lambda psi, z, key: np.asarray(gap(weights, texts, psi, z, key))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/experiments/cfg_gap"))
    args = parser.parse_args()
    start_jax()
    args.out.mkdir(parents=True, exist_ok=True)
    prior, weights, texts = prior_with_texts(TABLETOP_64, True, prompt_table(PROMPT, with_view=False))
    key = jax.random.key(0)
    good = jax.jit(prior.encode)(weights, jnp.asarray(truth(PROMPT, IMAGES)[..., :3]), key)
    latents = in_latents(prior)

    objective = OBJECTIVES["lods-embedding"](1000.0)
    learned = objective.queries[objective.trained_query]
    psi = prior.init_psi(weights, key, texts["null"][0], [learned])
    psi = fit_on(latents, weights, objective, texts, good, psi, optax.adam(0.03, b2=0.99), key, STEPS)
    at_good = {
        "empty text": gap_of(prior, weights, texts, NULL)({}, good, key),
        "learned embedding": gap_of(prior, weights, texts, learned)(psi, good, key),
    }
    for branch, table in at_good.items():
        print(f"at true renders, {branch}: " + ", ".join(f"s={s:g} {x:.3f}" for s, x in zip(SCALES, table.mean(1), strict=True)))

    along, start = {}, 0.1 * jax.random.normal(key, (8, *latent_shape(prior, weights)))
    for label, (name, s) in RUNS.items():
        objective = OBJECTIVES[name](s)
        measure = gap_of(prior, weights, texts, objective.queries[objective.trained_query] if objective.trained_query else NULL)
        curve = []
        for i, (state, _) in enumerate(distill(latents, weights, objective, texts, start, DistillConfig(STEPS)), 1):
            if i % EVERY == 0:
                curve.append(float(measure(state.psi, state.theta["x"], key)[SCALES.index(7.5)].mean()))
        along[label] = curve
        print(f"along {label}: {curve[0]:.3f} first, {curve[-1]:.3f} at the end", flush=True)
    result = {"times": TIMES.tolist(), "scales": SCALES, "at_good": {k: x.tolist() for k, x in at_good.items()}, "along": along}
    with replacing(args.out / "cfg_gap.json") as file:
        file.write_text(json.dumps(result) + "\n")
    plot(at_good, along, args.out / "cfg_gap.png")


def plot(at_good: dict[str, np.ndarray], along: dict[str, list[float]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for i, s in enumerate(SCALES):
        (line,) = left.semilogy(TIMES, at_good["empty text"][i], label=f"s = {s:g}")
        left.semilogy(TIMES, at_good["learned embedding"][i], "--", color=line.get_color())
    left.set(xlabel="timestep", ylabel="gap", title="at true renders; dashed: learned unconditional branch")
    left.legend(fontsize=8)
    for label, curve in along.items():
        right.plot(EVERY * np.arange(1, len(curve) + 1), curve, label=label, marker=".")
    right.set(xlabel="step", ylabel="gap at s = 7.5", title="along the optimisation", yscale="log")
    right.legend(fontsize=8)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
