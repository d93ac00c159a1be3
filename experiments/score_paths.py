"""Why do whites turn green and pink? Three ways from score to pixels on two objects, and what the autoencoder makes of each.

    python experiments/score_paths.py     # about 20 minutes on 2 cores

The default preset, seed 1, on two of the prompts that it was tuned on; rows differ in `score_path` alone. If a tint is something
that the encoder does not see, then decoding the latents of a tinted render takes the tint away: nothing in latent space asks for
it, and nothing there can mend it. So each object is rendered from eight sides at the prior's 128 pixels, encoded and decoded:

  tint           of the renders: mean error of the Oklab chroma of truly white and grey parts
  tint, decoded  of the renders after encoder and decoder
  lost           root mean square of what encoder and decoder change inside the object; a true object says what is normal

Writes to --out a run folder each, rows.jsonl, figures.jsonl, and paths.jpg: four sides of the renders, and right of them the same
decoded. A second call goes on where the first was stopped.
"""

import argparse
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import numpy as np

import lods_jax
from experiments.text_to_3d import go_through
from lods_jax import config as configs
from lods_jax.config import ScorePathConfig
from lods_jax.core.cameras import TABLETOP
from lods_jax.core.files import replacing
from lods_jax.core.images import grid, write_image
from lods_jax.runs.artifacts import turntable_cameras
from lods_jax.runs.evaluate import shared_renderer
from lods_jax.runs.restore import restore_scene
from lods_jax.runs.run_directory import read_run
from lods_jax.tabletop.appearance import tint, true_views, views
from lods_jax.tabletop.dataset import parse_caption, render_caption
from lods_jax.training.distributed import start_jax

PROMPTS, SIZE, SIDES = ("a purple house", "an orange snowman"), 128, 8
PATHS = {
    "encoder": ScorePathConfig("encoder"),
    "half push-forward": ScorePathConfig("blend"),
    "half reconstruction": ScorePathConfig("blend", through_decoder="reconstruction"),
}
FIGURES = {"kid": "KID", "view": "view", "tint": "tint", "tint decoded": "tint, decoded", "lost": "lost", "speckle": "speckle"}


def jobs() -> list[tuple[str, str, int, configs.Config]]:
    base = configs.load("gaussians-lods-lora")
    base = replace(base, output=replace(base.output, frames=8, preview_every=0, log_every=50))
    return [(name, prompt, 1, replace(base, score_path=path)) for prompt in PROMPTS for name, path in PATHS.items()]


@cache
def autoencoder():
    """Renders -> what the decoder makes of their latents."""
    prior, key = lods_jax.load_prior("tabletop"), jax.random.key(0)
    weights = prior.init(key)
    return jax.jit(lambda rgb: prior.decode(weights, prior.encode(weights, rgb, key)))


def looked_at(prompt: str, rgb: np.ndarray, opacity: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
    """The figures of renders from eight sides, and a line of the picture."""
    true = true_views(parse_caption(prompt), turntable_cameras(TABLETOP, SIDES), SIZE)
    decoded = np.asarray(autoencoder()(rgb))
    inside = opacity > 0.9
    figures = {
        "tint": tint(views(rgb, opacity, true.scale), true),
        "tint decoded": tint(views(decoded, opacity, true.scale), true),
        "lost": float(np.sqrt(np.mean((rgb - decoded)[inside] ** 2))),
    }
    return figures, np.concatenate([rgb[::2], decoded[::2]])


def table(rows: list[dict]) -> str:
    """A line for each object and path, as Markdown."""
    lines = ["| | | " + " | ".join(FIGURES.values()) + " |", "|---" * (len(FIGURES) + 2) + "|"]
    for row in rows:
        cells = [f"{row[name]:.3g}" if name in row else "" for name in FIGURES]
        lines.append(f"| {row['prompt']} | {row['path']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/experiments/score_paths"))
    out = parser.parse_args().out
    start_jax(4)
    runs = {(row["prompt"], row["method"]): row for row in go_through(jobs(), out)}
    cameras, rows, tiles = turntable_cameras(TABLETOP, SIDES), [], []
    for prompt in PROMPTS:
        truth = np.asarray(render_caption(prompt, cameras, SIZE))
        renders = {"the true object": (truth[..., :3], truth[..., 3])}
        for path in PATHS:
            ran = read_run(Path(runs[prompt, path]["run"]))
            scene = restore_scene(ran)
            seen = shared_renderer(ran, SIZE)(scene["theta"], scene["aux"], cameras)
            renders[path] = np.asarray(seen.rgb), np.asarray(seen.opacity)[..., 0]
        for path, (rgb, opacity) in renders.items():
            found, line = looked_at(prompt, rgb, opacity)
            rows.append(runs.get((prompt, path), {}) | {"prompt": prompt, "path": path} | found)
            tiles.append(line)
    with replacing(out / "figures.jsonl") as file:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_image(out / "paths.jpg", grid(np.concatenate(tiles), SIDES))
    print(table(rows))


if __name__ == "__main__":
    main()
