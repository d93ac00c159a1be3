"""Which objective edits images best? True renders, edited by their captions and held against the true result.

    python experiments/editing_2d.py               # 6 settings x 4 edits x 3 images x 2 runs, about 25 minutes on 2 cores
    python experiments/editing_2d.py --full        # 8 edits, 6 images

Two edits change the colour, one the pattern, one the kind; the images are of other proportions and from other cameras each. All
settings start from the latents of the image and take 200 steps of Adam (0.05). LODS-DDS is our reading of the paper, which shows
edits and gives no recipe: LODS, whose unconditional branch is fitted to the image first (200 steps).

  attribute   share of the edits in which the classifier reads what was to change as asked
  rest        share of what was to stay (of kind, colour, pattern, view) that it reads as before
  outside     PSNR against the image, as the VAE shows it, outside both objects, in dB: how much the edit leaves alone
  truth       PSNR against the true result where there is one, the same object in the new colour or pattern, in dB

Interquartile means over edits and images with 95 % bootstrap intervals. Finished jobs are in rows.jsonl and are not done again;
table.md and grid.png come at the end.
"""

import argparse
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import binary_dilation

from lods_jax.core.cameras import VIEWS, sample_orbit
from lods_jax.core.files import replacing
from lods_jax.core.images import grid, write_png
from lods_jax.core.paths import TABLETOP_64
from lods_jax.core.statistics import bootstrap, interquartile_mean
from lods_jax.distillation.objectives import OBJECTIVES
from lods_jax.priors.sampling import prior_with_texts
from lods_jax.runs.evaluate import format_number
from lods_jax.runs.generate import edited
from lods_jax.runs.run_directory import append, truncate_log
from lods_jax.tabletop.classifier import classify, load_classifier
from lods_jax.tabletop.dataset import Caption, parse_caption, render_caption
from lods_jax.tabletop.objects import COLORS, KINDS, PATTERNS
from lods_jax.training.distill_2d import DistillConfig
from lods_jax.training.distributed import start_jax

EDITS = (
    ("a red mug, front view", "a blue mug, front view"),
    ("a green robot, front view", "a yellow robot, front view"),
    ("a purple house, side view", "a purple striped house, side view"),
    ("an orange mushroom, front view", "an orange snowman, front view"),
)
MORE = (
    ("a blue chair, side view", "a green chair, side view"),
    ("a pink car, side view", "a red car, side view"),
    ("a red snowman, front view", "a red checkered snowman, front view"),
    ("a yellow rocket, side view", "a yellow mug, side view"),
)
FIGURES = {
    "attribute": "asked attribute",
    "rest": "the rest",
    "outside": "PSNR outside the object, dB",
    "truth": "PSNR to the true result, dB",
}
RUNS = 2


class Setting(NamedTuple):
    label: str
    objective: str
    s: float
    fit_first: int = 0


SETTINGS = (
    Setting("SDS s=7.5", "sds", 7.5),
    Setting("DDS s=7.5", "dds", 7.5),
    Setting("LODS-DDS s=7.5", "lods-embedding", 7.5, 200),
    Setting("LODS-DDS s=100", "lods-embedding", 100.0, 200),
    Setting("LODS-DDS, LoRA, s=7.5", "lods-lora", 7.5, 200),
    Setting("LODS s=7.5, not fitted first", "lods-embedding", 7.5),
)


@cache
def scene(caption: str, number: int) -> tuple[Caption, np.ndarray]:
    """A caption, and image `number` of it, RGBA on white."""
    parsed = parse_caption(caption)
    camera = sample_orbit(jax.random.split(jax.random.key(number), 64), jnp.arange(64), 64)
    row = np.flatnonzero(np.asarray(camera.view) == VIEWS.index(parsed.view))[:1]
    one = jax.tree.map(lambda x: x[row], camera)
    return parsed, np.asarray(render_caption(parsed, one, variation=(0.2 + 0.3 * number) % 1.0))[0]


def attributes(read) -> np.ndarray:
    """What the classifier reads, [n 4]: kind, colour, pattern, view."""
    return np.stack([read.kind, read.color, read.pattern, read.view], 1)


def wanted(caption: Caption) -> np.ndarray:
    kind, color = KINDS.index(caption.kind), list(COLORS).index(caption.color)
    return np.array([kind, color, PATTERNS.index(caption.pattern), VIEWS.index(caption.view)])


def psnr(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float:
    """dB, over the pixels of a mask [h w], b being one image or as many as a [n h w 3]."""
    return float(-10 * np.log10(np.mean((a - b)[:, where] ** 2)))


def figures(params, rgb: np.ndarray, shown: np.ndarray, source: str, target: str, number: int) -> dict[str, float]:
    before, image = scene(source, number)
    after, truth = scene(target, number)
    read, changes = attributes(classify(params, rgb.astype(np.float32))), wanted(before) != wanted(after)
    right = read == wanted(after)
    outside = ~binary_dilation((image[..., 3] > 0) | (truth[..., 3] > 0), iterations=3)
    return {
        "attribute": float(right[:, changes].mean()),
        "rest": float(right[:, ~changes].mean()),
        "outside": psnr(rgb, shown, outside),
        "truth": psnr(rgb, truth[None, ..., :3], np.ones_like(outside)) if before.kind == after.kind else float("nan"),
    }


def cell(x: np.ndarray) -> str:
    x = x[~np.isnan(x)]
    low, high = bootstrap(x)
    return f"{format_number(interquartile_mean(x))} ({format_number(low)} to {format_number(high)})"


def table(rows: list[dict[str, Any]]) -> str:
    """Interquartile means with 95 % bootstrap intervals over edits and images, as Markdown."""
    lines = ["| | n | " + " | ".join(FIGURES.values()) + " |", "|---" * (len(FIGURES) + 2) + "|"]
    for setting in SETTINGS:
        own = [row for row in rows if row["label"] == setting.label]
        # What has no true result is NaN, which JSON has as null.
        cells = [cell(np.array([row[name] for row in own], float)) for name in FIGURES]
        lines.append(f"| {setting.label} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    start_jax()
    edits, images = (EDITS + MORE, 6) if args.full else (EDITS, 3)
    out = args.out or Path("outputs/experiments/editing_2d" + ("-full" if args.full else ""))
    (out / "images").mkdir(parents=True, exist_ok=True)
    params, rows = load_classifier(), truncate_log(out / "rows.jsonl")
    done = {(row["label"], row["source"], row["image"]) for row in rows}
    prior, weights, _ = prior_with_texts(TABLETOP_64, True, {})
    through_vae = jax.jit(lambda rgb: prior.decode(weights, prior.encode(weights, rgb, jax.random.key(0))))
    for number, (source, target) in product(range(images), edits):
        _, rgba = scene(source, number)
        plain = np.asarray(through_vae(jnp.asarray(rgba[None, ..., :3])))
        for setting in SETTINGS:
            if (setting.label, source, number) in done:
                continue
            objective = OBJECTIVES[setting.objective](s=setting.s)
            recipe = DistillConfig(200, fit_first=setting.fit_first)
            rgb = edited(TABLETOP_64, objective, rgba[..., :3], source, target, RUNS, recipe, seed=number)[-1]
            np.save(out / "images" / f"{setting.label}, {source}, {number}.npy", rgb[0].astype(np.float16))
            row: dict[str, Any] = {"label": setting.label, "source": source, "target": target, "image": number}
            rows.append(row | figures(params, rgb, plain, source, target, number))
            append(out / "rows.jsonl", rows[-1])
            print(setting.label, source, number, {k: format_number(rows[-1][k]) for k in FIGURES}, flush=True)
    with replacing(out / "table.md") as partial:
        partial.write_text(table(rows) + "\n")
    pictures = []
    for source, target in edits:
        files = [out / "images" / f"{setting.label}, {source}, 0.npy" for setting in SETTINGS]
        pictures += [scene(source, 0)[1][..., :3], *(np.load(file) for file in files), scene(target, 0)[1][..., :3]]
    write_png(out / "grid.png", grid(np.stack(pictures).astype(np.float32), len(SETTINGS) + 2), scale=2)
    print(table(rows))


if __name__ == "__main__":
    main()
