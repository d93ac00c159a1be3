"""The gates of the tabletop prior: what it must pass before its weights ship, measured with fixed seeds and unchosen samples.

Caption swap asks whether the network listens: on unseen renders, by how much does the loss rise when one word of the caption is
wrong, as a share of the loss with the right one? The classifier is asked whether samples show what their captions say, and how
good the objects in them are.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lods_jax.core.cameras import VIEWS
from lods_jax.core.images import grid, write_png
from lods_jax.core.noise_schedule import add_noise, eps_to_v, velocity, x0_to_v
from lods_jax.core.types import Cond, Prior
from lods_jax.priors import sampling as generate
from lods_jax.priors.stable_diffusion import stable_diffusion
from lods_jax.tabletop.architectures import size_of
from lods_jax.tabletop.classifier import ClassifierOutput, classify, load_classifier
from lods_jax.tabletop.damage import NOTHING
from lods_jax.tabletop.dataset import Caption, Renders, caption_of, captions
from lods_jax.tabletop.objects import COLORS, COMPOSITE, KINDS, PATTERNS
from lods_jax.tabletop.streams import fresh_renders
from lods_jax.tabletop.train_classifier import accuracy_on_renders

SCALE, STEPS = 4.0, 30  # guidance scale and DDIM steps of every sample that is judged
SEEDS = 96
CHUNK = 48
# (name of the figure, smallest value that passes)
GATES = {
    "vae psnr [dB]": 31.0,
    "caption swap: color": 1.15,
    "caption swap: kind": 0.78,
    "caption swap: view": 0.28,
    "samples: kind": 0.98,
    "samples: color": 1.0,
    "samples: pattern": 0.97,
    "samples: view": 0.96,
    "classifier: kind": 0.97,
    "classifier: color": 0.97,
    "classifier: view": 0.90,
    "classifier: none": 0.95,
    "classifier: ranking: all": 0.95,
}


def sample_captions(split: str, n: int = SEEDS) -> list[Caption]:
    """The caption of each seed 0..n-1: kinds in turn, views in turn where there is a front, colour and pattern drawn.

    Args:
        split: "seen", "unseen" or "all".
        n: number of captions.

    Returns:
        Captions.
    """
    rng = np.random.default_rng(0)
    by_kind = {kind: [c for c in captions(split) if c.kind == kind] for kind in KINDS}
    result = []
    for i in range(n):
        choices = by_kind[KINDS[i % len(KINDS)]]
        picked = choices[rng.integers(len(choices))]
        view = VIEWS[(i // len(KINDS)) % len(VIEWS)] if picked.kind in COMPOSITE else None
        result.append(picked._replace(view=view))
    return result


def wrong(rng: np.random.Generator, labels: np.ndarray, attribute: str) -> Caption:
    """The caption of a render with one attribute replaced by another; kinds with a front by kinds with a front.

    Args:
        rng: of the choice.
        labels: row of `Renders.labels`.
        attribute: "kind", "color" or "view".

    Returns:
        The wrong caption.
    """
    right = caption_of(labels)
    like = COMPOSITE if right.kind in COMPOSITE else tuple(k for k in KINDS if k not in COMPOSITE)
    values = {"kind": like, "color": tuple(COLORS), "view": VIEWS}[attribute]
    others = [v for v in values if v != getattr(right, attribute)]
    return right._replace(**{attribute: others[rng.integers(len(others))]})


def caption_swap(prior: Prior, weights: Any, renders: Renders, draws: int = 4) -> dict[str, tuple[float, float]]:
    """Rise of the v-loss with a wrong colour, kind or view, as a share of the right caption's loss, and its standard error.

    Each render meets the same pairs of timestep (one from each of equal strata) and noise under all captions.

    Args:
        prior: to measure.
        weights: its parameters.
        renders: unseen ones.
        draws: pairs per render.

    Returns:
        {attribute: (rise, standard error)}, and "correct": (loss, standard error).
    """
    rng, n = np.random.default_rng(0), len(renders.rgb)
    front = np.isin(renders.labels[:, 0], [KINDS.index(k) for k in COMPOSITE])
    losses = denoising_losses(prior, weights, renders.rgb, draws, rng)
    correct = losses([str(caption_of(row)) for row in renders.labels])
    result = {"correct": (float(correct.mean()), float(correct.std() / n**0.5))}
    for attribute in ("color", "kind", "view"):
        asked = front if attribute == "view" else np.ones(n, bool)
        rise = (losses([str(wrong(rng, row, attribute)) for row in renders.labels]) - correct)[asked]
        base = correct[asked].mean()
        result[attribute] = (float(rise.mean() / base), float(rise.std() / len(rise) ** 0.5 / base))
    return result


def denoising_losses(
    prior: Prior, weights: Any, rgb: np.ndarray, draws: int, rng: np.random.Generator
) -> Callable[..., np.ndarray]:
    """Encodes images, and draws pairs of timestep (one from each of equal strata) and noise, which all conditions meet.

    Args:
        prior: to measure; images are in groups of its `views`, each with one timestep.
        weights: its parameters.
        rgb: byte images [n h w 3].
        draws: pairs per image.
        rng: of the timesteps.

    Returns:
        (texts, camera-to-world matrices [n 16] or None) -> mean squared error of the velocity of each image [n].
    """
    n = len(rgb)
    # The last chunk is filled up with repetitions; they are cut off again below.
    rows = np.concatenate([np.arange(n), np.arange(-n % CHUNK) % n])
    chunks = [slice(i, i + CHUNK) for i in range(0, len(rows), CHUNK)]
    encode = jax.jit(prior.encode)
    latents = [encode(weights, rgb[rows[c]] / np.float32(255), jax.random.key(1)) for c in chunks]

    @jax.jit
    def loss(weights, z, tokens, camera, t, key):
        noise = jax.random.normal(key, z.shape)
        z_t = add_noise(prior.noise_schedule, z, noise, t)
        # Without signal, the velocity follows from the clean latents alone.
        ask, convert = (prior.predict_x0, x0_to_v) if prior.predict_x0 else (prior.predict, eps_to_v)
        v = convert(prior.noise_schedule, ask(weights, {}, z_t, t, Cond(tokens, camera=camera)), z_t, t)
        return jnp.mean((v - velocity(prior.noise_schedule, z, noise, t)) ** 2, (1, 2, 3))

    strata = np.arange(draws)[:, None] + rng.random((draws, len(rows) // prior.views))
    times = (strata * 1000 / draws).astype(np.int32).repeat(prior.views, 1)

    def losses(texts: list[str], camera: np.ndarray | None = None) -> np.ndarray:
        tokens = _embed(prior, weights, [texts[i] for i in rows])
        seen = [None if camera is None else camera[rows[c]] for c in chunks]
        per_draw = [
            [loss(weights, z, tokens[c], seen[i], times[d, c], jax.random.key(1000 * d + i))
             for i, (z, c) in enumerate(zip(latents, chunks, strict=True))]
            for d in range(draws)
        ]  # fmt: skip
        return np.mean([np.concatenate(x) for x in per_draw], 0)[:n]

    return losses


def _embed(prior, weights, texts):
    """Tokens of many texts; each distinct text is encoded once."""
    distinct = sorted(set(texts))
    tokens = np.asarray(prior.embed(weights, distinct))
    return tokens[[distinct.index(t) for t in texts]]


def sampler(prior: Prior, weights: Any) -> Callable[[list[str], list[int]], np.ndarray]:
    """Builds a sampler: DDIM with SCALE and STEPS from the noise of each seed, in chunks of one size.

    Args:
        prior: to sample.
        weights: its parameters.

    Returns:
        (texts, seeds) -> images [n h w 3]; w is that of all views side by side.
    """
    run = jax.jit(partial(generate.sample, prior, s=SCALE, steps=STEPS))

    def sample(texts, seeds):
        fill = -len(texts) % CHUNK
        tokens = _embed(prior, weights, [*texts, *texts[:1] * fill])
        null = np.repeat(_embed(prior, weights, [""]), CHUNK, 0)
        keys = jax.vmap(jax.random.key)(jnp.asarray([*seeds, *seeds[:1] * fill]))
        chunks = [run(weights, tokens[i : i + CHUNK], null, keys[i : i + CHUNK]) for i in range(0, len(tokens), CHUNK)]
        return np.concatenate(chunks)[: len(texts)]

    return sample


def agreement(read: ClassifierOutput, asked: list[Caption]) -> dict[str, float]:
    """Shares of images that read as the asked kind, colour, pattern, and view where one was asked; and their mean quality.

    Args:
        read: by the classifier.
        asked: a caption per image.

    Returns:
        {attribute: share}.
    """
    kind, color, pattern = (
        np.array([values.index(getattr(c, name)) for c in asked])
        for name, values in (("kind", KINDS), ("color", list(COLORS)), ("pattern", PATTERNS))
    )
    with_view = np.array([c.view is not None for c in asked])
    view = np.array([VIEWS.index(c.view or "side") for c in asked])
    right = {"kind": read.kind == kind, "color": read.color == color, "pattern": read.pattern == pattern}
    shares = {name: float(r.mean()) for name, r in right.items()} | {"view": float((read.view == view)[with_view].mean())}
    return shares | {"quality": float(read.quality.mean())}


def report(folder: Path, out: Path) -> dict[str, Any]:
    """Measures the gates of a folder of `lods train-prior`, prints them, and writes gates.json, samples.png and renders.png.

    Args:
        folder: of the prior.
        out: folder to write to.

    Returns:
        {figure: value}.
    """
    prior = stable_diffusion(folder)
    weights, classifier_params = prior.init(jax.random.key(0)), load_classifier()
    figures = evaluate(prior, weights, classifier_params, size_of(folder), out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "gates.json").write_text(json.dumps(figures | {"gates": GATES}, indent=2) + "\n")
    print(table(figures))
    print(f"written: {out / 'gates.json'}, {out / 'samples.png'}, {out / 'renders.png'}")
    return figures


def evaluate(prior: Prior, weights: Any, classifier_params: Any, size: int, out: Path) -> dict[str, Any]:
    """All figures of the gates; writes the first 24 samples and 24 renders as images.

    Args:
        prior: to measure.
        weights: its parameters.
        classifier_params: from `load_classifier`.
        size: edge of the images, pixels.
        out: folder to write to.

    Returns:
        {figure: value}.
    """
    renders = fresh_renders(jax.random.key(123), 0, size)
    renders = Renders(*(x[:512] for x in renders))
    figures: dict[str, Any] = {"vae psnr [dB]": vae_psnr(prior, weights, renders.rgb[:480])}
    swap = caption_swap(prior, weights, renders)
    figures["caption swap: loss"] = swap["correct"][0]
    for attribute in ("color", "kind", "view"):
        figures[f"caption swap: {attribute}"], figures[f"caption swap: {attribute} +-"] = swap[attribute]
    sample = sampler(prior, weights)
    for split, prefix in (("seen", "samples"), ("unseen", "samples, unseen triples")):
        asked = sample_captions(split)
        images = sample([str(c) for c in asked], list(range(SEEDS)))
        read = classify(classifier_params, images)
        figures |= {f"{prefix}: {name}": x for name, x in agreement(read, asked).items()}
        if split == "seen":
            write_png(out / "samples.png", grid(images[:24], 12), scale=128 // size)
            write_png(out / "renders.png", grid(renders.rgb[:24], 12), scale=128 // size)
            figures["captions"] = [str(c) for c in asked[:24]]
            names = zip(read.kind[:24], read.color[:24], read.view[:24], strict=True)
            figures["read"] = [f"{list(COLORS)[c]} {(*KINDS, 'none')[k]}, {VIEWS[v]}" for k, c, v in names]
    real = accuracy_on_renders(classifier_params)
    figures |= {f"classifier: {name}": x for name, x in real.items()}
    # Wrecks are a matter of degree, and stand beside the gate; an image of nothing must not pass for an object.
    figures["classifier: none"] = min(real[f"none: {name}"] for name in NOTHING)
    return figures


def vae_psnr(prior: Prior, weights: Any, rgb: np.ndarray) -> float:
    """Peak signal-to-noise ratio of decoded latents.

    Args:
        prior: to measure.
        weights: its parameters.
        rgb: byte images [n h w 3].

    Returns:
        Decibels, over all pixels.
    """
    there_and_back = jax.jit(lambda w, x: prior.decode(w, prior.encode(w, x, jax.random.key(0))))
    x = np.asarray(rgb / np.float32(255))
    decoded = np.concatenate([there_and_back(weights, x[i : i + CHUNK]) for i in range(0, len(x), CHUNK)])
    return float(-10 * np.log10(np.mean((decoded - x) ** 2)))


def table(figures: dict[str, Any], gates: Mapping[str, float] = GATES) -> str:
    """The figures as text, with the gates that they must pass."""
    lines = [f"{'figure':34} {'value':>8} {'gate':>8}", "-" * 60]
    for name, value in figures.items():
        if isinstance(value, float):
            gate = gates.get(name)
            verdict = "" if gate is None else f"{gate:8.3g}   " + ("pass" if value >= gate else "MISSED")
            lines.append(f"{name:34} {value:8.4g} {verdict}")
    return "\n".join(lines)
