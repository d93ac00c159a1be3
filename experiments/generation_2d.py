"""Which objective makes better images? 2-D generation in the latents of the shipped prior, judged against renders of the caption.

    python experiments/generation_2d.py              # 11 settings x 2 prompts x 8 particles, about 20 minutes on 2 cores
    python experiments/generation_2d.py --full       # 8 prompts, 1,000 steps

Every setting gets the same steps (300), the same Adam on the latents (0.05) and the learning rate of its learned branch that
`distil.Recipe` gives; nothing was tuned. Figures are of the 8 images of a prompt: what the judge reads, KID in its features to
120 renders of the caption from cameras of the asked view, saturation minus theirs, diversity (the mean distance between particles
in the judge's features, as a share of that between renders), and noise predictions for one image. DDIM samples of the prior stand
beside them. Means over prompts, with the range. Finished jobs are in rows.jsonl and are not done again; table.md and grid.png
come at the end.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from lods_jax.build import OBJECTIVES
from lods_jax.cameras import VIEWS, sample_orbit
from lods_jax.cli import start_jax
from lods_jax.config import TABLETOP
from lods_jax.distil import Recipe
from lods_jax.evaluate import shown
from lods_jax.folder import append, rewind
from lods_jax.generate import distilled, text_to_image
from lods_jax.io.files import replacing
from lods_jax.io.image import grid, write_png
from lods_jax.tabletop import metrics
from lods_jax.tabletop.dataset import parse_caption, render_caption
from lods_jax.tabletop.judge import judge, load_judge
from lods_jax.tabletop.objects import COLORS, KINDS

N, SEED = 8, 0
PROMPTS = ("a red mug, front view", "a green robot, front view")
MORE = ("a blue chair, side view", "a yellow car, side view", "an orange house, front view", "a purple mushroom, back view")
MORE += ("a pink snowman, front view", "a white rocket, side view")
SETTINGS = (
    ("DDIM samples", None, {}),
    ("SDS s=1", "sds", {"s": 1.0}),
    ("SDS s=7.5", "sds", {"s": 7.5}),
    ("SDS s=100", "sds", {"s": 100.0}),
    ("CSD", "csd", {}),
    ("NFSD s=7.5", "nfsd", {"s": 7.5}),
    ("VSD s=7.5", "vsd", {"s": 7.5}),
    ("ISM s=7.5", "ism", {"s": 7.5}),
    ("SDI s=7.5", "sdi", {"s": 7.5}),
    ("LODS-embedding s=1000", "lods-embedding", {"s": 1000.0}),
    ("LODS-LoRA s=1000", "lods-lora", {"s": 1000.0}),
)
FIGURES = ("kind", "color", "view", "kid", "saturation", "diversity", "predictions")


def images(name: str | None, options: dict, prompt: str, steps: int) -> np.ndarray:
    """[n h w 3] of a setting."""
    if name is None:
        return text_to_image(TABLETOP, prompt, N, SEED, 4.0, 30)
    return distilled(TABLETOP, OBJECTIVES[name](**options), prompt, N, Recipe(steps), SEED)[-1]


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
    read, real = judge(params, rgb.astype(np.float32)), judge(params, true[..., :3].astype(np.float32)).features
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


def predictions(name: str | None, steps: int) -> float:
    """Noise predictions for one image."""
    if name is None:
        return 2.0 * 30
    objective = OBJECTIVES[name]()
    inverting = {"ism": 4, "sdi": 8}.get(name, 0)  # of the inversions' four steps
    return float((len(objective.queries) + (objective.fit is not None) + inverting) * steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    start_jax()
    steps, prompts = (1000, PROMPTS + MORE) if args.full else (300, PROMPTS)
    out = args.out or Path("outputs/experiments/generation_2d" + ("-full" if args.full else ""))
    (out / "images").mkdir(parents=True, exist_ok=True)
    file, params = out / "rows.jsonl", load_judge()
    rows = rewind(file)
    for prompt in prompts:
        for label, name, options in SETTINGS:
            if any((row["label"], row["prompt"]) == (label, prompt) for row in rows):
                continue
            rgb = images(name, options, prompt, steps)
            write_png(out / "images" / f"{label}, {prompt}.png", grid(rgb, N))
            row = {"label": label, "prompt": prompt, "steps": steps, "predictions": predictions(name, steps)}
            rows.append(row | figures(rgb, prompt, params))
            append(file, rows[-1])
            print(label, prompt, {k: shown(rows[-1][k]) for k in FIGURES}, flush=True)
    lines = ["| | " + " | ".join(FIGURES) + " |", "|---" * (len(FIGURES) + 1) + "|"]
    for label, _, _ in SETTINGS:
        own = [row for row in rows if row["label"] == label]
        columns = [np.array([row[name] for row in own]) for name in FIGURES]
        cells = [f"{shown(float(x.mean()))} ({shown(float(x.min()))} to {shown(float(x.max()))})" for x in columns]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    with replacing(out / "table.md") as partial:
        partial.write_text("\n".join(lines) + "\n")
    pictures = [np.asarray(Image.open(out / "images" / f"{label}, {p}.png")) for label, _, _ in SETTINGS for p in prompts[:2]]
    write_png(out / "grid.png", grid(np.stack(pictures)[:, :, :256], 2))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
