"""What is in a score? Bias, noise and direction of every objective, where the true gradient is known.

    python experiments/anatomy.py          # about a minute on 2 cores

The prior is one Gaussian per caption of the tabletop world, in 32 principal components: predictions are affine in the noise, so
mean and variance of every residual are exact, from one evaluation without noise and one along each axis. Nothing is trained but
the dial. At an image z and a timestep, the true gradient is that of -log p_t(z | prompt), p_t being the distribution of noised
images of the prompt: the mean residual of SDS at s = 1.

  drift      length of the mean residual over good images, drawn from p(z | prompt), as a share of its length at other images
             (drawn from p(z)): a distribution that is right stays where it is at 0, and is pushed as hard as any other at 1
  noise      standard deviation over the noise, as a multiple of the mean's length, at other images
  cosine     between the mean residual and the true gradient, at other images

Learned branches come twice: as they are at first, and once they know the image they look at (as their mean; the covariance stays
that of their text). The dial shows what lies between: a shift within the first `rank` components, fitted by Adam with the
loss of the library for 300 steps at several learning rates; 0 is the residual of CSD, 1 that of SDS at s = 1.

Everything is averaged over four prompts and weighted by w(t) over timesteps 20 to 980. Writes anatomy.md and anatomy.png.
"""

import argparse
import inspect
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from lods_jax.core.files import replacing
from lods_jax.core.noise_schedule import STABLE_DIFFUSION, add_noise, score_weight
from lods_jax.core.types import Cond, Objective, Query
from lods_jax.distillation.objectives import OBJECTIVES, lods_lora
from lods_jax.distillation.scores import Denoiser, denoising_loss
from lods_jax.distillation.train_step import apply_gradients
from lods_jax.priors.captioned_images import caption_gaussians, caption_moments
from lods_jax.tabletop.captioned import captioned_renders
from lods_jax.tabletop.entry import PARTS
from lods_jax.training.distributed import start_jax

PROMPTS = {  # and what the images show now, for objectives with a source text
    "red mug front": "blue mug front",
    "green robot side": "green house side",
    "blue chair back": "blue chair front",
    "yellow car side": "orange car side",
}
SCALES, TIMES, IMAGES = (1.0, 7.5, 100.0), np.linspace(20, 980, 17).round().astype(int), 32
FIGURES = ("drift", "noise", "cosine")
RATES, RANKS, FIT_STEPS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1), (1, 4, 16, 32), 300


class Gaussians(NamedTuple):
    """One Gaussian per text, in the order of TEXTS: mean, and covariance as axes diag(variances) axes'."""

    mean: Float[Array, "k d"]
    variances: Float[Array, "k d"]
    axes: Float[Array, "k d d"]


TEXTS = ("prompt", "source", "null")
SAME = {"plain": "prompt", "empty": "null"}


def gaussian_of(weights: dict, prior, texts: tuple[str, ...]) -> Gaussians:
    mean, cov = caption_moments(weights, {}, Cond(prior.embed(weights, list(texts))))
    return Gaussians(mean, *(jnp.asarray(x) for x in np.linalg.eigh(np.asarray(cov))))


def index(text: str) -> int:
    return TEXTS.index(SAME.get(text, text))


def eps(g: Gaussians, text: str, mean: Float[Array, "*d"], z_t: Float[Array, "n d"], t: Array) -> Float[Array, "n d"]:
    """The noise that a Gaussian of this mean and of the text's covariance predicts: -sigma times its score."""
    weight = score_weight(STABLE_DIFFUSION, t[None])[0]  # 1 - alpha_bar
    signal, sigma = jnp.sqrt(1 - weight), jnp.sqrt(weight)
    variances, axes = g.variances[index(text)][None], g.axes[index(text)]
    return sigma * ((z_t - signal * mean) @ axes / (signal**2 * variances + sigma**2)) @ axes.T


class Moments(NamedTuple):
    mean: Float[Array, "n d"]  # of the residual over the noise, at each of n images
    variance: Float[Array, ""]  # summed over coordinates; the same for all images


def moments(objective: Objective, learned: bool, g: Gaussians, z: Float[Array, "n d"], reference: Array, t: Array) -> Moments:
    """Exact mean and variance of w(t) residual: the residual is affine in the noise."""
    d = z.shape[1]

    def residual(z, noise):  # [n d] -> [n d]
        many = jnp.full(len(z), t)
        lift = lambda x: jnp.broadcast_to(x, z.shape)[:, None, None]  # noqa: E731  objectives see [b h w c]
        latents = {"render": z, "reference": jnp.broadcast_to(reference, z.shape)}
        noised = {name: add_noise(STABLE_DIFFUSION, x, noise, many) for name, x in latents.items()}
        if objective.inversion:
            ask = lambda text, z_t, t: lift(eps(g, text, g.mean[index(text)][None], z_t[:, 0, 0], t[0]))  # noqa: E731
            z_t, noise_4d = objective.inversion(STABLE_DIFFUSION, ask, lift(z), many, lift(noise))
            noised["render"], noise = z_t[:, 0, 0], noise_4d[:, 0, 0]

        def answer(name, query):
            text = "null" if query.text == "learned" else query.text
            mean = z if learned and name == objective.trained_query else g.mean[index(text)][None]
            return lift(eps(g, text, mean, noised[query.latents], t))

        e = {name: answer(name, query) for name, query in objective.queries.items()}
        return objective.weight(STABLE_DIFFUSION, t[None])[0] * objective.residual(e, lift(noise), many)[:, 0, 0]

    mean = residual(z, jnp.zeros_like(z))
    first = jnp.broadcast_to(z[:1], (d, d))
    along = residual(first, jnp.eye(d)) - residual(first, jnp.zeros((d, d)))
    return Moments(mean, jnp.sum(along**2))


def draw(g: Gaussians, text: str, n: int, key: Array) -> Float[Array, "n d"]:
    scaled = jax.random.normal(key, (n, g.mean.shape[1])) * jnp.sqrt(g.variances[index(text)])[None]
    return g.mean[index(text)][None] + scaled @ g.axes[index(text)].T


def anatomy(objective: Objective, learned: bool, g: Gaussians, key: Array) -> dict[str, dict[str, Array]]:
    """The figures of an objective under one prompt: {figure: {"curve": over timesteps, "total": over all of them}}."""
    # The mean over good images is the residual at their mean: everything is affine.
    good, other = g.mean[index("prompt")][None], draw(g, "null", IMAGES, key)
    over_t = lambda objective, learned, z: jax.vmap(  # noqa: E731
        lambda t: moments(objective, learned, g, z, g.mean[index("source")], t)
    )(jnp.asarray(TIMES))
    at_good, at_other = over_t(objective, learned, good), over_t(objective, learned, other)
    true = over_t(OBJECTIVES["sds"](s=1.0), False, other).mean
    length = lambda x: jnp.sqrt(jnp.mean(jnp.sum(x**2, -1), -1))  # noqa: E731
    norm = lambda x: jnp.maximum(jnp.linalg.norm(x, axis=-1), 1e-12)  # noqa: E731

    def figures(good, other, variance, true):
        size = jnp.maximum(length(other), 1e-12)
        cosine = jnp.mean(jnp.sum(other * true, -1) / (norm(other) * norm(true)), -1)
        return {"drift": length(good) / size, "noise": jnp.sqrt(variance) / size, "cosine": cosine}

    curves = figures(at_good.mean, at_other.mean, at_other.variance, true)
    means = jax.tree.map(lambda x: jnp.mean(x, 0), (at_good.mean, at_other.mean, at_other.variance, true))
    totals = figures(*means)
    return {name: {"curve": curves[name], "total": totals[name]} for name in FIGURES}


def dial(g: Gaussians, key: Array) -> Float[np.ndarray, "ranks rates"]:
    """How far a branch that is fitted at each rank and learning rate has gone from CSD (0) to SDS at s = 1 (1)."""
    z = draw(g, "null", 8, key)[:, None, None]  # eight separate images, each with a branch of its own
    objective = Objective({"a": Query("null", lora=1.0)}, lods_lora().residual, trained_query="a")
    texts = {"null": jnp.broadcast_to(g.mean[index("null")], (64, 1, z.shape[-1]))}
    times = jnp.asarray(TIMES)

    def predict(rank, psi, z_t, t, cond):
        mean = cond.tokens[:, 0] + cond.lora[:, None] * jnp.pad(psi, (0, z.shape[-1] - rank))[None]
        one = lambda mean, z_t, t: eps(g, "null", mean[None], z_t[None], t)[0]  # noqa: E731
        return jax.vmap(one)(mean, z_t[:, 0, 0], t)[:, None, None]

    def fitted(rank, rate, image, key):
        tx, psi = optax.adam(rate, b2=0.99), jnp.zeros(rank)
        many = {"render": jnp.broadcast_to(image, (64, *image.shape))}

        def step(carry, key):
            gradient = jax.grad(denoising_loss)(
                carry[0], objective, Denoiser(partial(predict, rank), STABLE_DIFFUSION), many, texts, jax.random.split(key, 64)
            )
            return apply_gradients(tx, gradient, *carry), None

        (psi, _), _ = jax.lax.scan(step, (psi, tx.init(psi)), jax.random.split(key, FIT_STEPS))
        return jnp.pad(psi, (0, z.shape[-1] - rank))

    def mean_residual(image, mean):  # of e[y] - e[a], averaged over t
        def at(t):
            z_t = jnp.sqrt(1 - score_weight(STABLE_DIFFUSION, t[None])[0]) * image[0]
            y, a = eps(g, "prompt", g.mean[index("prompt")][None], z_t, t), eps(g, "null", mean[None], z_t, t)
            return score_weight(STABLE_DIFFUSION, t[None])[0] * (y - a)[0]

        return jnp.mean(jax.vmap(at)(times), 0)

    def place(rank, rate, image, key):
        null = g.mean[index("null")]
        csd, sds = mean_residual(image, null), mean_residual(image, image[0, 0])
        here = mean_residual(image, null + fitted(rank, rate, image, key))
        return jnp.sum((here - csd) * (sds - csd)) / jnp.sum((sds - csd) ** 2)

    keys = jax.random.split(key, len(z))
    over = jax.vmap(jax.vmap(place, in_axes=(None, None, 0, 0)), in_axes=(None, 0, None, None))
    at_rank = jax.jit(lambda rank: jnp.mean(over(rank, jnp.asarray(RATES), z, keys), 1), static_argnums=0)
    return np.stack([at_rank(rank) for rank in RANKS])


def settings() -> dict[str, tuple[Objective, bool]]:
    """Every objective at its scales, its learned branch untrained and knowing."""
    made = {}
    for name, factory in OBJECTIVES.items():
        if factory().noise:  # moments over random noise say nothing of one that stays
            continue
        for s in SCALES if "s" in inspect.signature(factory).parameters else (None,):
            objective = factory() if s is None else factory(s=s)
            label = name if s is None else f"{name} s={s:g}"
            if objective.trained_query is None:
                made[label] = objective, False
            else:
                made[f"{label}, untrained"], made[f"{label}, learned"] = (objective, False), (objective, True)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/experiments/anatomy"))
    args = parser.parse_args()
    start_jax()
    args.out.mkdir(parents=True, exist_ok=True)
    prior = caption_gaussians(*captioned_renders(PARTS, 32))
    weights = prior.init(jax.random.key(0))
    worlds = [gaussian_of(weights, prior, (prompt, source, "")) for prompt, source in PROMPTS.items()]
    many, keys = jax.tree.map(lambda *x: jnp.stack(x), *worlds), jax.random.split(jax.random.key(0), len(worlds))
    results = {}
    for label, (objective, learned) in settings().items():
        each = jax.jit(jax.vmap(partial(anatomy, objective, learned)))(many, keys)
        results[label] = jax.tree.map(lambda x: np.asarray(x).mean(0), each)
        print(f"{label:<34}" + "".join(f"{name} {results[label][name]['total']:8.3f}   " for name in FIGURES), flush=True)
    turned = np.mean([dial(g, jax.random.key(i)) for i, g in enumerate(worlds)], 0)
    lines = ["| | drift | noise | cosine |", "|---|---|---|---|"]
    totals = {label: " | ".join(f"{r[name]['total']:.3f}" for name in FIGURES) for label, r in results.items()}
    lines += [f"| {label} | {row} |" for label, row in totals.items()]
    lines += ["", "| rank | " + " | ".join(f"lr {rate:g}" for rate in RATES) + " |", "|---" * (len(RATES) + 1) + "|"]
    lines += [f"| {rank} | " + " | ".join(f"{x:.2f}" for x in row) + " |" for rank, row in zip(RANKS, turned, strict=True)]
    with replacing(args.out / "anatomy.md") as file:
        file.write_text("\n".join(lines) + "\n")
    print("\n".join(lines[len(results) + 2 :]))
    plot(results, turned, args.out / "anatomy.png")


def plot(results: dict[str, Any], turned: np.ndarray, file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = {
        "sds s=100": "tab:red", "csd": "tab:orange", "dds s=7.5": "tab:purple", "sdi s=7.5": "tab:brown",
        "vsd s=7.5, learned": "tab:green", "lods-lora s=100, untrained": "tab:cyan", "lods-lora s=100, learned": "tab:blue",
        "sds s=1": "black",
    }  # fmt: skip
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
    names = {"drift": "drift at good images (share)", "noise": "noise / mean", "cosine": "cosine to the true gradient"}
    for axis, (name, title) in zip(axes.flat, names.items(), strict=False):
        for label, color in shown.items():
            dash = "--" if label == "sds s=1" else "-"  # it lies under others
            axis.plot(TIMES, results[label][name]["curve"], dash, color=color, label=label, marker=".")
        axis.set(xlabel="timestep", title=title)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    for rank, row in zip(RANKS, turned, strict=True):
        axes[1, 1].semilogx(RATES, row, marker=".", label=f"rank {rank}")
    axes[1, 1].set(xlabel="learning rate of the branch, 300 steps", title="the dial of LODS: 0 is CSD, 1 is SDS at s = 1")
    axes[1, 1].legend(fontsize=7)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
