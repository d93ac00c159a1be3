"""Which objective makes better images? 2-D generation in the latents of the shipped prior, against renders of the caption.

    python experiments/generation_2d.py                    # 11 settings x 2 prompts x 8 particles, about 20 minutes on 2 cores
    python experiments/generation_2d.py --configurations   # LODS in seven configurations beside VSD, about 15 minutes
    python experiments/generation_2d.py --seeds 3          # intervals over prompts and seeds; three times as long
    python experiments/generation_2d.py --full             # 8 prompts, 1,000 steps, 3 seeds

Every setting gets the same steps (300), the same Adam on the latents (0.05) and the learning rate of its learned branch that
`distil.Recipe` gives; nothing was tuned. Figures are of the 8 images of a prompt: what the classifier reads, KID in its features
to 120 renders of the caption from cameras of the asked view, saturation minus theirs, diversity (the mean distance between
particles in the classifier's features, as a share of that between renders), and noise predictions for one image. DDIM samples
of the prior stand beside them. Means over prompts and seeds, with the range. Finished jobs are in rows.jsonl and are not done
again; a table and a grid come at the end.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from lods_jax.core.cameras import VIEWS, sample_orbit
from lods_jax.core.files import replacing
from lods_jax.core.images import grid, write_png
from lods_jax.core.paths import TABLETOP_64
from lods_jax.distillation.objectives import OBJECTIVES
from lods_jax.distillation.prompts import prompt_table
from lods_jax.priors.sampling import latent_shape, prior_with_texts, text_to_image
from lods_jax.runs.evaluate import format_number
from lods_jax.runs.run_directory import append, truncate_log
from lods_jax.tabletop import metrics
from lods_jax.tabletop.classifier import classify, load_classifier
from lods_jax.tabletop.dataset import parse_caption, render_caption
from lods_jax.tabletop.objects import COLORS, KINDS
from lods_jax.training.distill_2d import DistillConfig, distill, in_latents
from lods_jax.training.distributed import start_jax

N = 8
PROMPTS = ("a red mug, front view", "a green robot, front view")
MORE = ("a blue chair, side view", "a yellow car, side view", "an orange house, front view", "a purple mushroom, back view")
MORE += ("a pink snowman, front view", "a white rocket, side view")
FIGURES = {
    "kid": "KID",
    "kind": "classifier reads the kind",
    "color": "the colour",
    "view": "the view",
    "saturation": "saturation minus renders'",
    "diversity": "diversity",
    "predictions": "predictions per image",
    "seconds": "seconds",
}


class Setting(NamedTuple):
    """An objective, and how it is run. Without an objective: DDIM samples."""

    label: str
    objective: str | None
    options: Mapping[str, float] = MappingProxyType({})
    rank: int = 4
    recipe: Mapping[str, Any] = MappingProxyType({})


SETTINGS = (
    Setting("DDIM samples", None),
    Setting("SDS s=1", "sds", {"s": 1.0}),
    Setting("SDS s=7.5", "sds", {"s": 7.5}),
    Setting("SDS s=100", "sds", {"s": 100.0}),
    Setting("CSD", "csd"),
    Setting("NFSD s=7.5", "nfsd", {"s": 7.5}),
    Setting("VSD s=7.5", "vsd", {"s": 7.5}),
    Setting("ISM s=7.5", "ism", {"s": 7.5}),
    Setting("SDI s=7.5", "sdi", {"s": 7.5}),
    Setting("LODS-embedding s=1000", "lods-embedding", {"s": 1000.0}),
    Setting("LODS-LoRA s=1000", "lods-lora", {"s": 1000.0}),
)
CONFIGURATIONS = (
    Setting("LODS-embedding s=1000", "lods-embedding", {"s": 1000.0}),
    Setting("LODS-embedding, shared noise", "lods-embedding", {"s": 1000.0}, recipe={"fit_shares_noise": True}),
    # In turns a step is of one kind: as many steps of the scene take twice as many of both.
    Setting("LODS-embedding, in turns", "lods-embedding", {"s": 1000.0}, recipe={"schedule": (1, 1)}),
    Setting("LODS-LoRA, rank 1", "lods-lora", {"s": 1000.0}, rank=1),
    Setting("LODS-LoRA s=1000", "lods-lora", {"s": 1000.0}),
    Setting("LODS-LoRA, rank 16", "lods-lora", {"s": 1000.0}, rank=16),
    Setting("LODS-LoRA, shared noise", "lods-lora", {"s": 1000.0}, recipe={"fit_shares_noise": True}),
    Setting("VSD s=7.5", "vsd", {"s": 7.5}),
)


def images(setting: Setting, prompt: str, n_steps: int, seed: int) -> tuple[np.ndarray, float]:
    """[n h w 3] of a setting, and the seconds that it took once it was compiled."""
    if setting.objective is None:
        began = time.monotonic()
        return text_to_image(TABLETOP_64, prompt, N, N * seed, 4.0, 30), time.monotonic() - began
    prior, weights, texts = prior_with_texts(TABLETOP_64, True, prompt_table(prompt, with_view=False), setting.rank)
    start = 0.1 * jax.random.normal(jax.random.key(seed), (N, *latent_shape(prior, weights)))
    recipe = DistillConfig(n_steps * (2 if "schedule" in setting.recipe else 1), **setting.recipe)
    objective = OBJECTIVES[setting.objective](**setting.options)
    steps = distill(in_latents(prior), weights, objective, texts, start, recipe, seed)
    jax.block_until_ready(next(steps))
    began = time.monotonic()
    *_, (state, _) = steps
    z = jax.block_until_ready(state.theta["x"])
    return np.asarray(jax.jit(prior.decode)(weights, z)), time.monotonic() - began


def truth(prompt: str, n: int = 120) -> np.ndarray:
    """Renders of the caption, RGBA: cameras of its view, many proportions, white and grey backgrounds as in the data set."""
    caption = parse_caption(prompt)
    camera = sample_orbit(jax.random.split(jax.random.key(7), 16 * n), jnp.arange(16 * n), 16 * n)
    rows = np.flatnonzero(np.asarray(camera.view) == VIEWS.index(caption.view))[:n]
    parts = np.array_split(rows, 5)
    looks = [(0.1, 1.0), (0.3, 0.4), (0.5, 1.0), (0.7, 0.7), (0.9, 1.0)]
    return np.concatenate(
        [
            np.asarray(render_caption(caption, jax.tree.map(lambda x: x[part], camera), background=grey, variation=v))  # noqa: B023
            for part, (v, grey) in zip(parts, looks, strict=True)
        ]
    )


def spread(features: np.ndarray) -> float:
    """Mean distance between two of them."""
    distance = np.linalg.norm(features[:, None] - features[None], axis=-1)
    return distance.sum() / (len(features) * (len(features) - 1))


def figures(rgb: np.ndarray, prompt: str, params) -> dict[str, float]:
    caption, true = parse_caption(prompt), truth(prompt)
    read, real = classify(params, rgb.astype(np.float32)), classify(params, true[..., :3].astype(np.float32)).features
    rms = np.sqrt(np.mean(real**2))
    flat = lambda rgb: metrics.saturation(rgb, np.ones(rgb.shape[:-1]))  # noqa: E731
    return {
        "kind": float(np.mean(read.kind == KINDS.index(caption.kind))),
        "color": float(np.mean(read.color == list(COLORS).index(caption.color))),
        "view": float(np.mean(read.view == VIEWS.index(caption.view))),
        "kid": metrics.kid(read.features / rms, real / rms),
        "saturation": flat(rgb) - flat(true[..., :3]),
        "diversity": float(spread(read.features) / spread(real)),
    }


def predictions(setting: Setting, steps: int) -> float:
    """Noise predictions for one image."""
    if setting.objective is None:
        return 2.0 * 30
    objective = OBJECTIVES[setting.objective]()
    inverting = {"ism": 4, "sdi": 8}.get(setting.objective, 0)  # of the inversions' four steps
    fit = objective.trained_query is not None and "fit_shares_noise" not in setting.recipe
    return float((len(objective.queries) + fit + inverting) * steps)


def table(settings: Sequence[Setting], rows: list[dict[str, Any]]) -> str:
    """Means and ranges over the jobs of each setting; KID by prompt too, since prompts differ more than settings."""
    prompts = [prompt for prompt in PROMPTS + MORE if any(row["prompt"] == prompt for row in rows)]
    heads = [f"KID, {prompt.partition(',')[0]}" for prompt in prompts] + list(FIGURES.values())
    lines = ["| | n | " + " | ".join(heads) + " |", "|---" * (len(heads) + 2) + "|"]
    for setting in settings:
        own = [row for row in rows if row["label"] == setting.label]
        columns = [[row["kid"] for row in own if row["prompt"] == prompt] for prompt in prompts]
        columns += [[row.get(name, np.nan) for row in own] for name in FIGURES]
        lines.append(f"| {setting.label} | {len(own)} | {' | '.join(map(mean_and_range, columns))} |")
    return "\n".join(lines)


def mean_and_range(x: Sequence[float]) -> str:
    """ "1.2 (1.1 to 1.3)"; the value alone where all are alike."""
    mean, low, high = (format_number(float(f(x))) for f in (np.nanmean, np.nanmin, np.nanmax))
    return mean if low == high else f"{mean} ({low} to {high})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--configurations", action="store_true")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    start_jax()
    steps, prompts = (1000, PROMPTS + MORE) if args.full else (300, PROMPTS)
    seeds = args.seeds or (3 if args.full else 1)
    settings, name = (CONFIGURATIONS, "configurations") if args.configurations else (SETTINGS, "table")
    out = args.out or Path("outputs/experiments/generation_2d" + ("-full" if args.full else ""))
    (out / "images").mkdir(parents=True, exist_ok=True)
    file, params = out / "rows.jsonl", load_classifier()
    rows = truncate_log(file)
    done = {(row["label"], row["prompt"], row["seed"]) for row in rows}
    for seed, prompt, setting in product(range(seeds), prompts, settings):
        if (setting.label, prompt, seed) in done:
            continue
        rgb, seconds = images(setting, prompt, steps, seed)
        write_png(out / "images" / f"{setting.label}, {prompt}, {seed}.png", grid(rgb, N))
        row = {"label": setting.label, "prompt": prompt, "seed": seed, "steps": steps, "seconds": round(seconds, 1)}
        rows.append(row | {"predictions": predictions(setting, steps)} | figures(rgb, prompt, params))
        append(file, rows[-1])
        print(setting.label, prompt, seed, {k: format_number(rows[-1][k]) for k in FIGURES}, flush=True)
    with replacing(out / f"{name}.md") as partial:
        partial.write_text(table(settings, rows) + "\n")
    files = [out / "images" / f"{setting.label}, {p}, 0.png" for setting in settings for p in prompts[:2]]
    write_png(out / f"{name}.png", grid(np.stack([np.asarray(Image.open(path)) for path in files])[:, :, :256], 2))
    print(table(settings, rows))


if __name__ == "__main__":
    main()
