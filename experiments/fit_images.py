"""Renderer and refinement alone: a tabletop object from 48 pictures of it, no prior, judged on 16 views that were held back.

    python experiments/fit_images.py                 # the eight kinds with a front, about 25 minutes on 2 cores
    python experiments/fit_images.py --kinds mug     # 3 minutes
    python experiments/fit_images.py --kinds robot --refinement relocate --capacity 2048

128 px, known cameras and known grey background, at most 4,096 Gaussians from a random ball. What counts is the PSNR inside the
true mask grown by 4 px. Finished kinds are in outputs/fit_images/results.jsonl and are not done again.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from scipy.ndimage import binary_dilation

from lods_jax.cameras import sample_orbit
from lods_jax.cli import start_jax
from lods_jax.io.image import grid, write_png
from lods_jax.refine import Rules, refine, relocate
from lods_jax.scenes.gaussians import gaussians
from lods_jax.tabletop.dataset import render_caption
from lods_jax.tabletop.objects import COMPOSITE
from lods_jax.train import descend
from lods_jax.types import Camera, TrainState

GREY, TRAIN, UNSEEN, GROWN = 0.6, 48, 16, 4


@dataclass(frozen=True)
class Args:
    kinds: tuple[str, ...] = COMPOSITE
    color: str = "red"
    pattern: str = "striped"
    size: int = 128
    steps: int = 1500
    batch: int = 3
    capacity: int = 4096
    count: int = 1024
    refinement: Literal["densify", "relocate"] = "densify"
    """Clone, split and prune, or MCMC-style relocation."""
    seed: int = 0
    lr: dict[str, float] = field(
        default_factory=lambda: {"means": 4e-3, "quats": 5e-3, "log_scales": 1e-2, "opacity_logits": 4e-2, "sh": 2e-2}
    )
    out: Path = Path("outputs/fit_images")


def settings(args: Args) -> dict:
    """What a result hangs on."""
    return {name: value for name, value in asdict(args).items() if name not in ("kinds", "out")}


def optimizer(args: Args) -> optax.GradientTransformation:
    """Adam with one rate per parameter, all falling to a twentieth."""
    return optax.chain(
        optax.scale_by_adam(b2=0.99, eps=1e-15),
        optax.scale_by_schedule(optax.exponential_decay(1.0, args.steps, 0.05)),
        optax.stateless(lambda updates, _: {name: -args.lr[name] * update for name, update in updates.items()}),
    )


def pick(camera: Camera, rows: jax.Array) -> Camera:
    return jax.tree.map(lambda x: x[rows], camera)


def fit(args: Args, truth: np.ndarray, camera: Camera) -> tuple[TrainState, Callable]:
    """The scene after args.steps, and camera -> Render of it."""
    scene = gaussians(
        height=args.size, width=args.size, intersections=16 * args.capacity, capacity=args.capacity, count=args.count, size=0.05,
        background=lambda key: jnp.full(3, GREY),
    )  # fmt: skip
    tx, rules = optimizer(args), Rules(fraction=0.2, split_size=0.02, prune_opacity=0.02)
    key = jax.random.key(args.seed)
    theta, aux = scene.init(key)
    zero = jnp.zeros((), jnp.int32)
    state = TrainState(zero, theta, aux, {}, tx.init(theta), (), zero)

    @jax.jit
    def step(state, truth, camera):
        rows = jax.random.choice(jax.random.fold_in(key, state.step), TRAIN, (args.batch,), replace=False)
        keys = jax.random.split(key, args.batch)

        def loss(theta, probe):
            render = scene.render(theta, state.aux, pick(camera, rows), keys, probe)
            return jnp.mean(jnp.abs(render.rgb - truth[rows])), render

        grad = jax.value_and_grad(loss, (0, 1), has_aux=True)
        (value, render), (g_theta, g_probe) = grad(state.theta, scene.probe(state.aux, args.batch))
        theta, opt = descend(tx, g_theta, state.theta, state.opt_theta)
        aux = scene.observe(state.aux, g_probe, render)
        return state.replace(step=state.step + 1, theta=theta, aux=aux, opt_theta=opt), value

    rule = partial(refine, rules=rules) if args.refinement == "densify" else partial(relocate, dead=0.005, growth=0.15)
    refined = jax.jit(lambda key, state: rule(key, state, tx))
    for i in range(args.steps):
        state, _ = step(state, truth, camera)
        if i % 75 == 74 and i < 0.7 * args.steps:
            state = refined(jax.random.fold_in(key, i), state)

    @jax.jit
    def render(camera):
        return scene.render(state.theta, state.aux, camera, jax.random.split(key, UNSEEN), scene.probe(state.aux, UNSEEN))

    return state, render


def psnr(ours: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> float:
    """Over the pixels of the mask, all views together."""
    return float(-10 * np.log10(np.mean((ours - truth)[mask] ** 2)))


def run(args: Args, kind: str) -> dict:
    """Fits one kind; returns its row of the table."""
    views = jnp.arange(TRAIN + UNSEEN)
    camera = sample_orbit(jax.random.split(jax.random.key(args.seed), TRAIN + UNSEEN), views % TRAIN, TRAIN)
    rgba = np.asarray(render_caption(f"a {args.color} {args.pattern} {kind}", camera, args.size, background=GREY))
    truth, mask = rgba[..., :3], np.stack([binary_dilation(m > 0.5, np.ones((3, 3)), GROWN) for m in rgba[..., 3]])
    began = time.monotonic()
    state, render = fit(args, truth, pick(camera, views[:TRAIN]))
    jax.block_until_ready(state)
    seconds = time.monotonic() - began
    ours = np.asarray(render(pick(camera, views[TRAIN:])).rgb)
    pairs = np.stack([truth[TRAIN : TRAIN + 8], ours[:8]]).reshape(16, args.size, args.size, 3)
    write_png(args.out / f"{kind}.png", grid(pairs, 8))
    return {
        "kind": kind,
        "psnr": round(psnr(ours, truth[TRAIN:], mask[TRAIN:]), 2),
        "gaussians": int(state.aux["alive"].sum()),
        "seconds": round(seconds, 1),
        "settings": settings(args),
    }


def main(args: Args) -> None:
    start_jax()
    file = args.out / "results.jsonl"
    args.out.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    print(f"{'kind':>10} {'PSNR, dB':>9} {'Gaussians':>10} {'seconds':>8}")
    for kind in args.kinds:
        row = next((row for row in rows if row["kind"] == kind and row["settings"] == settings(args)), None)
        if row is None:
            row = run(args, kind)
            with file.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
        print(f"{kind:>10} {row['psnr']:9.2f} {row['gaussians']:10,} {row['seconds']:8.1f}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args))
