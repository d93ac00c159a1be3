"""How far is the learned score from the best one? Error of the tabletop U-Net per timestep against the closed form.

    python experiments/learned_score.py            # 4,032 renders, about 5 minutes on 2 cores
    python experiments/learned_score.py --full     # 20,160 renders

The closed form is the posterior mean over the latents of N captioned renders (`priors/exact.py`): the best denoiser of just these
N images. Where its largest posterior weight is near 1 it has recognised the very image, which no network that generalises can or
should do; below that the gap between the two curves is what the network gets wrong. Appends to learned_score.json, plots to
learned_score.png.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lods_jax.cli.checks import prior_folder
from lods_jax.core.noise_schedule import add_noise, eps_to_v, velocity
from lods_jax.core.types import Cond
from lods_jax.priors.captioned_images import posterior, posterior_mean
from lods_jax.priors.stable_diffusion import stable_diffusion
from lods_jax.tabletop.captioned import captioned_renders
from lods_jax.tabletop.dataset import parse_caption
from lods_jax.training.distributed import start_jax

TIMES = np.linspace(20, 999, 16).round().astype(int)
BATCH, DRAWS = 48, 4


def measure(folder: Path, parts: int) -> dict:
    """v-errors of the learned and the exact denoiser on the same noised latents, per timestep."""
    prior = stable_diffusion(folder)
    weights = prior.init(jax.random.key(0))
    rgb, features, words = captioned_renders(parts, 64)
    encode = jax.jit(prior.encode)
    z = np.concatenate([encode(weights, x, jax.random.key(1)) for x in np.split(rgb, len(rgb) // BATCH)])
    # The exact prior maps images x in [0, 1] to latents 2 x - 1: this way its latents are ours.
    exact = posterior_mean((z + 1) / 2, features, words)
    exact_weights = exact.init(jax.random.key(0))

    @jax.jit
    def errors(weights, exact_weights, z, tokens, logits, t, key):
        t, noise = jnp.full(len(z), t), jax.random.normal(key, z.shape)
        z_t, v = add_noise(prior.noise_schedule, z, noise, t), velocity(prior.noise_schedule, z, noise, t)
        learned = eps_to_v(prior.noise_schedule, prior.predict(weights, {}, z_t, t, Cond(tokens)), z_t, t)
        best = eps_to_v(prior.noise_schedule, exact.predict(exact_weights, {}, z_t, t, Cond(logits)), z_t, t)
        top = posterior(exact_weights, {}, z_t, t, Cond(logits)).max(-1).mean()
        return jnp.stack([jnp.mean((learned - v) ** 2), jnp.mean((best - v) ** 2), jnp.mean((learned - best) ** 2), top])

    rng, rows = np.random.default_rng(0), []
    for t in TIMES:
        draws = []
        for draw in range(DRAWS):
            pick = rng.integers(len(z), size=BATCH)
            named = [[word for word, on in zip(words, features[i], strict=True) if on] for i in pick]
            tokens = prior.embed(weights, [caption(names) for names in named])
            logits = exact.embed(exact_weights, [" ".join(names) for names in named])
            draws.append(np.asarray(errors(weights, exact_weights, z[pick], tokens, logits, t, jax.random.key(draw))))
        rows.append(np.mean(draws, 0).tolist())
    learned, best, gap, top = zip(*rows, strict=True)
    return {"t": TIMES.tolist(), "learned": learned, "exact": best, "gap": gap, "top_weight": top, "renders": len(z)}


def caption(names: list[str]) -> str:
    """The caption of a render's features, as the learned prior saw it."""
    return str(parse_caption(" ".join(name for name in names if name != "plain")))


def plot(result: dict, file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for name, label in (("learned", "U-Net"), ("exact", "closed form"), ("gap", "U-Net - closed form")):
        left.plot(result["t"], result[name], label=label, marker=".")
    left.set(xlabel="timestep", ylabel="mean squared v-error", ylim=(0, None), title=f"{result['renders']} renders")
    remembered = [t for t, weight in zip(result["t"], result["top_weight"], strict=True) if weight > 0.95]
    left.axvspan(0, max(remembered, default=0), color="0.92", label="closed form has recognised the image")
    left.legend()
    right.plot(result["t"], result["top_weight"], marker=".", color="black")
    right.set(xlabel="timestep", ylabel="largest posterior weight", ylim=(0, 1.02), title="memory of the closed form")
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prior", default="tabletop-64", help="tabletop-64, or a folder made by lods train-prior")
    parser.add_argument("--out", type=Path, default=Path("outputs/experiments"))
    parser.add_argument("--full", action="store_true")
    args = parser.parse_args()
    start_jax()
    args.out.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    result = measure(prior_folder(args.prior), parts=30 if args.full else 6)
    result |= {"prior": args.prior, "seconds": round(time.monotonic() - begin)}
    file = args.out / "learned_score.json"
    runs = json.loads(file.read_text()) if file.exists() else []
    file.write_text(json.dumps([*runs, result], indent=1) + "\n")
    plot(result, args.out / "learned_score.png")
    print(f"{'t':>4} {'U-Net':>8} {'exact':>8} {'gap':>8} {'top weight':>10}")
    for row in zip(*(result[k] for k in ("t", "learned", "exact", "gap", "top_weight")), strict=True):
        print("{:4d} {:8.4f} {:8.4f} {:8.4f} {:10.3f}".format(*row))


if __name__ == "__main__":
    main()
