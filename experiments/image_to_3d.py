"""One picture in, an object out: how near to the true object, and what does each part of the method add?

    python experiments/image_to_3d.py             # 3 pictures with Gaussians, 1 with NeRF, about 40 minutes on 2 cores
    python experiments/image_to_3d.py --presets   # 6 pictures; today's default, at s = 1000, on single views, and the one before
    python experiments/image_to_3d.py --full      # 24 pictures x 3 seeds with both: a day
    python experiments/image_to_3d.py --examples  # writes examples/*.png, and runs nothing

The pictures show tabletop objects of the kinds with a front, in proportions and from cameras that are drawn at random; the
caption is read by the classifier and its embedding fitted to the picture, as `lods image-to-3d` does without a prompt; the
camera is given.
Figures are of 16 other views, against renders of the very object: PSNR on white, silhouette IoU, and the kind, colour and view
that the classifier reads; `picture` is the PSNR in the picture's own view. Pictures and figures have the size of the prior.

Rows differ in the objective of the text branch (SDS, LODS), in whether the prior of poses is asked too, and in the kind of scene,
all with the 64-pixel prior. --presets compares whole presets on the 128-pixel prior; pictures 24 and 27 were tuned on.
Everything lies in --out: a folder for each run, rows.jsonl with a line for each finished run, table.md and grid.png. A second
call goes on where the first was stopped.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from lods_jax import config as configs
from lods_jax.config import Config, ObjectiveConfig
from lods_jax.core.cameras import TABLETOP, orbit_camera, sample_orbit
from lods_jax.core.cutouts import over, unmultiplied
from lods_jax.core.files import replacing
from lods_jax.core.images import grid, read_rgba, write_png
from lods_jax.core.types import Camera
from lods_jax.runs import run
from lods_jax.runs.evaluate import cell, shared_renderer
from lods_jax.runs.restore import restore_scene
from lods_jax.runs.run_directory import append, read_run, truncate_log
from lods_jax.tabletop.classifier import classify, load_classifier
from lods_jax.tabletop.dataset import Caption, captions, render_caption
from lods_jax.tabletop.metrics import janus_index
from lods_jax.tabletop.objects import COLORS, COMPOSITE, KINDS
from lods_jax.training import image_to_3d
from lods_jax.training.compilation import Once, memory
from lods_jax.training.distributed import start_jax

FIGURES = {
    "picture": "PSNR in the picture's view, dB",
    "psnr": "PSNR in other views, dB",
    "iou": "silhouette IoU",
    "kind": "classifier reads the kind",
    "color": "classifier reads the colour",
    "view": "classifier reads the view",
    "janus": "Janus: sides and backs read as a front",
    "seconds": "seconds of optimisation",
}
OBJECTIVES = {"SDS": ObjectiveConfig("sds", 7.5), "LODS": ObjectiveConfig("lods-embedding", 100.0)}
EXAMPLES = {"mug": ("a red mug", 35.0, 20.0), "house": ("a yellow house", 20.0, 15.0)}


# --- pictures with a truth ------------------------------------------------------------------------------------------------------
def thing(i: int) -> tuple[Caption, np.ndarray, Camera]:
    """Picture i: what it shows, in which proportions, and from where. Kinds in turn, one in three from the held-out captions."""
    rng = np.random.default_rng([1, i])
    kind = COMPOSITE[i % len(COMPOSITE)]
    choices = [c for c in captions("unseen" if i % 3 == 2 else "seen") if c.kind == kind and c.pattern == "plain"]
    caption = choices[rng.integers(len(choices))]
    camera = sample_orbit(jax.random.key(i)[None], np.zeros(1, np.int32), 1, TABLETOP._replace(overhead=0.0))
    return caption, rng.random(4).astype(np.float32), jax.tree.map(np.asarray, camera)


def others(camera: Camera) -> Camera:
    """16 views at the distance of a camera, none of them its own: eight azimuths between 22.5 degree steps, two elevations."""
    azimuth = np.tile(np.arange(8) * np.pi / 4 + np.pi / 8, 2).astype(np.float32)
    elevation = np.repeat(np.deg2rad([5.0, 35.0]), 8).astype(np.float32)
    alike = lambda x: np.full(16, x[0], np.float32)  # noqa: E731
    return jax.tree.map(np.asarray, orbit_camera(azimuth, elevation, alike(camera.radius), alike(camera.fov_y)))


def take(caption: Caption | str, proportions: float | np.ndarray, camera: Camera, size: int, file: Path) -> None:
    """Writes what one camera sees, with alpha."""
    flat = np.asarray(render_caption(caption, camera, size, background=0.0, variation=proportions))[0]
    write_png(file, unmultiplied(flat))


def figures(folder: Path, i: int, size: int) -> dict[str, float]:
    """How near the object of a run is to that of picture i."""
    ran, (caption, proportions, camera) = read_run(folder), thing(i)
    scene, render_fn = restore_scene(ran), shared_renderer(ran, size)
    eyes = others(camera)
    seen, own = (render_fn(scene["theta"], scene["aux"], x) for x in (eyes, camera))
    truth = np.asarray(render_caption(caption, eyes, size, variation=proportions))
    read = classify(load_classifier(), np.asarray(seen.rgb, np.float32))
    ours, true = seen.opacity[..., 0] > 0.5, truth[..., 3] > 0.5
    kept = read_rgba(folder / image_to_3d.COPY)
    return {
        "picture": psnr(own.rgb[0], over(kept, 1.0)),
        "psnr": float(np.mean([psnr(a, b) for a, b in zip(seen.rgb, truth[..., :3], strict=True)])),
        "iou": float(np.mean((ours & true).sum((1, 2)) / np.maximum((ours | true).sum((1, 2)), 1))),
        "kind": float(np.mean(read.kind == KINDS.index(caption.kind))),
        "color": float(np.mean(read.color == list(COLORS).index(caption.color))),
        "view": float(np.mean(read.view == eyes.view)),
        "janus": janus_index(read, eyes.view),
        "seconds": ran.metrics[-1]["seconds"],
    }


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((a - b) ** 2)))


# --- runs -----------------------------------------------------------------------------------------------------------------------
def settings(scene: str, text: str, pose: bool) -> Config:
    """The configuration of a row: the default preset of the kind of scene, and what the row changes."""
    base = configs.load(f"image-{scene}-lods-embedding")
    return replace(
        base,
        prior=replace(base.prior, name="tabletop-64"),  # whose table this is
        objective=OBJECTIVES[text],
        zero123=replace(base.zero123, name="tabletop" if pose else "none"),
        output=replace(base.output, size=128, frames=8, preview_every=0, log_every=50),
    )


ROWS = {
    "SDS": ("gaussians", "SDS", False),
    "LODS": ("gaussians", "LODS", False),
    "SDS and pose": ("gaussians", "SDS", True),
    "LODS and pose": ("gaussians", "LODS", True),
    "NeRF, SDS and pose": ("nerf", "SDS", True),
    "NeRF, LODS and pose": ("nerf", "LODS", True),
}
PRESETS = {  # preset, prior, and a guidance scale where it is not the preset's
    "now": ("image-views-gaussians-lods-lora", "tabletop-views", None),
    "now, s = 1000": ("image-views-gaussians-lods-lora", "tabletop-views", 1000.0),
    "now, single views": ("image-gaussians-lods-lora", "tabletop-128", None),
    "before": ("image-gaussians-lods-embedding", "tabletop-128", None),
}


class Plan(NamedTuple):
    """What is run.

    Attributes:
        rows: {row of the table: configuration}.
        pictures: of each row.
        size: edge of pictures and of figures, pixels.
    """

    rows: dict[str, Config]
    pictures: dict[str, range]
    size: int


def plan(full: bool, presets: bool) -> Plan:
    """The runs that flags ask for."""
    if presets:
        rows = {}
        for name, (preset, prior, scale) in PRESETS.items():
            config = configs.load(preset)
            output = replace(config.output, frames=8, preview_every=0, log_every=50)
            objective = replace(config.objective, guidance_scale=scale or config.objective.guidance_scale)
            rows[name] = replace(config, prior=replace(config.prior, name=prior), objective=objective, output=output)
        return Plan(rows, dict.fromkeys(PRESETS, range(6)), 128)
    few = {name: range(1 if scene == "nerf" else 3) for name, (scene, *_) in ROWS.items()}
    return Plan({name: settings(*row) for name, row in ROWS.items()}, dict.fromkeys(ROWS, range(24)) if full else few, 64)


COMPILED: dict[str, Once] = defaultdict(memory)  # by configuration: texts and pictures are arguments of a step


def shared(config: Config) -> Once:
    """What runs that differ in prompt, seed and picture alone compile once."""
    p = replace(config.image, file="", azimuth=0.0, elevation=0.0, radius=None, fov_y=45.0)
    return COMPILED[configs.dump(replace(config, prompt="", seed=0, image=p))]


def run_one(config: Config, i: int, seed: int, size: int, folder: Path) -> dict[str, float]:
    """One run, from where it is, and its figures."""
    if (folder / "config.yaml").exists():
        code = run.resume(own := configs.load(folder / "config.yaml"), folder, shared(own))
    else:
        caption, proportions, camera = thing(i)
        file = folder.parent / f"picture-{i}.png"
        take(caption, proportions, camera, size, file)
        azimuth, elevation, fov_y = (float(np.rad2deg(x[0])) for x in (camera.azimuth, camera.elevation, camera.fov_y))
        p = replace(config.image, file=str(file), azimuth=azimuth, elevation=elevation, fov_y=fov_y, frame="as-is")
        p = replace(p, radius=float(camera.radius[0]))
        config, _ = image_to_3d.resolve_image_config(replace(config, image=p, seed=seed))
        code = run.start(config, folder, shared(config))
    if code:
        raise SystemExit(code)
    return figures(folder, i, size)


def table(rows: list[dict]) -> str:
    """Interquartile means with 95 % bootstrap intervals over pictures and seeds, as Markdown."""
    names = [name for name in (*ROWS, *PRESETS) if any(row["row"] == name for row in rows)]
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for figure, label in FIGURES.items():
        values = [np.array([row[figure] for row in rows if row["row"] == name]) for name in names]
        lines.append(f"| {label} | " + " | ".join(cell(x) for x in values) + " |")
    n = [str(sum(row["row"] == name for row in rows)) for name in names]
    return "\n".join([*lines, "| n | " + " | ".join(n) + " |"]) + "\n"


def show(rows: list[dict], names: Iterable[str], size: int, out: Path) -> None:
    """The truth and then a line for each row of the table; for each picture the picture and the same four sides."""
    blank = np.ones((5, size, size, 3), np.float32)
    runs = {(row["row"], row["picture_number"]): read_run(Path(row["run"])) for row in rows if row["seed"] == 0}
    lines = {name: [] for name in ("truth", *names)}
    for i in sorted({i for _, i in runs}):
        caption, proportions, camera = thing(i)
        four = jax.tree.map(lambda x: x[[0, 2, 4, 6]], others(camera))
        truth = np.asarray(render_caption(caption, four, size, variation=proportions))[..., :3]
        lines["truth"].append(np.concatenate([blank[:1], truth]))
        for name in names:
            if (name, i) not in runs:
                lines[name].append(blank)
                continue
            ran = runs[name, i]
            scene, kept = restore_scene(ran), read_rgba(ran.path / image_to_3d.COPY)
            seen = shared_renderer(ran, size)(scene["theta"], scene["aux"], four)
            lines[name].append(np.concatenate([over(kept, 1.0)[None], seen.rgb]))
    tiles = np.concatenate([np.concatenate(line) for line in lines.values()])
    write_png(out / "grid.png", grid(tiles, len(tiles) // len(lines)), scale=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--presets", action="store_true")
    parser.add_argument("--examples", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.examples:
        for name, (text, azimuth, elevation) in EXAMPLES.items():
            p = configs.ImageConfig(azimuth=azimuth, elevation=elevation)
            take(text, 0.3, image_to_3d.camera_of(p, TABLETOP), 256, Path("examples") / f"{name}.png")
        return
    start_jax(4)
    made = plan(args.full, args.presets)
    out = args.out or Path("outputs/experiments/image_to_3d", "presets" if args.presets else "full" if args.full else "default")
    done = {row["run"]: row for row in truncate_log(out / "rows.jsonl")}
    rows = []
    for seed in range(3 if args.full else 1):
        for name, pictures in made.pictures.items():
            for i in pictures:
                folder = out / name / f"{i}-{seed}"
                if str(folder) not in done:
                    row = {"run": str(folder), "row": name, "picture_number": i, "seed": seed}
                    row |= run_one(made.rows[name], i, seed, made.size, folder)
                    append(out / "rows.jsonl", row)
                    done[str(folder)] = row
                rows.append(done[str(folder)])
    text = table(rows)
    with replacing(out / "table.md") as file:
        file.write_text(text)
    show(rows, list(made.rows), made.size, out)
    print(text)


if __name__ == "__main__":
    main()
