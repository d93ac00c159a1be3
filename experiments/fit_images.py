"""Renderer and refinement alone: a tabletop object from 48 pictures of it, no prior, measured on 16 views that were held back.

    python experiments/fit_images.py                 # the eight kinds with a front, about 25 minutes on 2 cores
    python experiments/fit_images.py --kinds mug     # 3 minutes
    python experiments/fit_images.py --kinds robot --refinement relocate --capacity 2048
    python experiments/fit_images.py --scene nerf --size 64 --steps 600          # half an hour

128 px, known cameras and known grey background, at most 4,096 Gaussians from a random ball, or a NeRF of the size
`TINY`. What counts is the PSNR inside the true mask grown by 4 px. Finished kinds are in outputs/fit_images/results.jsonl and are
not done again.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from scipy.ndimage import binary_dilation

from lods_jax.core.cameras import sample_orbit
from lods_jax.core.images import grid, write_png
from lods_jax.core.types import Camera, Scene, TrainState
from lods_jax.distillation.train_step import apply_gradients
from lods_jax.scenes.densification import DensifyStrategy, densify, relocate
from lods_jax.scenes.gaussians import gaussians
from lods_jax.scenes.nerf import nerf, update_occupancy_grid
from lods_jax.scenes.radiance_field import TINY
from lods_jax.tabletop.dataset import render_caption
from lods_jax.tabletop.objects import COMPOSITE
from lods_jax.training.distributed import start_jax

GREY, TRAIN, UNSEEN, GROWN = 0.6, 48, 16, 4
FIELD = TINY._replace(sharpness=10.0, blob=3.0)  # pictures pull steadily, and want a harder surface than scores do: 0.3 dB


@dataclass(frozen=True)
class Args:
    kinds: tuple[str, ...] = COMPOSITE
    color: str = "red"
    pattern: str = "striped"
    scene: Literal["gaussians", "nerf"] = "gaussians"
    size: int = 128
    steps: int = 1500
    batch: int = 3
    capacity: int = 4096
    count: int = 1024
    refinement: Literal["densify", "relocate"] = "densify"
    """Clone, split and prune, or MCMC-style relocation."""
    statistic: Literal["mean-of-norms", "mean-of-absolute"] = "mean-of-norms"
    """What clones and splits are chosen by (`gaussians.gaussians`)."""
    seed: int = 0
    lr: dict[str, float] = field(
        default_factory=lambda: (
            {"means": 4e-3, "quats": 5e-3, "log_scales": 1e-2, "opacity_logits": 4e-2, "sh": 2e-2}
            | {"tables": 2e-2, "density": 5e-3, "color": 5e-3}
        )
    )
    """Of each leaf of either kind of scene."""
    out: Path = Path("outputs/fit_images")


def settings(args: Args) -> dict:
    """What a result hangs on."""
    return {name: value for name, value in asdict(args).items() if name not in ("kinds", "out")}


def optimizer(args: Args) -> optax.GradientTransformation:
    """Adam with one rate per parameter, all falling to a twentieth."""
    return optax.chain(
        optax.scale_by_adam(b2=0.99, eps=1e-15),
        optax.scale_by_schedule(optax.exponential_decay(1.0, args.steps, 0.05)),
        optax.stateless(lambda updates, _: {k: jax.tree.map(lambda u: -args.lr[k] * u, update) for k, update in updates.items()}),  # noqa: B023
    )


def pick(camera: Camera, rows: jax.Array) -> Camera:
    return jax.tree.map(lambda x: x[rows], camera)


def make_scene(args: Args, room: int, stratified: bool = True) -> Scene:
    options = {"height": args.size, "width": args.size, "background": lambda key: jnp.full(3, GREY)}
    if args.scene == "nerf":
        return nerf(room=room, field=FIELD, samples=args.size, stratified=stratified, **options)
    options |= {"capacity": args.capacity, "count": args.count, "size": 0.05, "statistic": args.statistic}
    return gaussians(intersections=room, **options)


def fit(args: Args, truth: np.ndarray, camera: Camera) -> tuple[TrainState, Callable]:
    """The scene after args.steps, and camera -> Render of it."""
    tx, strategy = optimizer(args), DensifyStrategy(fraction=0.2, grow_scale3d=0.02, prune_opacity=0.02)
    key = jax.random.key(args.seed)
    full = args.size**3 if args.scene == "nerf" else 16 * args.capacity
    theta, aux = make_scene(args, full).init(key)
    zero = jnp.zeros((), jnp.int32)
    state = TrainState(zero, theta, aux, {}, tx.init(theta), (), zero)

    @cache
    def compiled(room: int) -> Callable:
        scene = make_scene(args, room)

        @jax.jit
        def step(state, truth, camera):
            rows = jax.random.choice(jax.random.fold_in(key, state.step), TRAIN, (args.batch,), replace=False)
            keys = jax.random.split(jax.random.fold_in(key, state.step), args.batch)

            def loss(theta, means2d_probe):
                render = scene.render(theta, state.aux, pick(camera, rows), keys, means2d_probe)
                return jnp.mean(jnp.abs(render.rgb - truth[rows])), render

            grad = jax.value_and_grad(loss, (0, 1), has_aux=True)
            (value, render), (g_theta, means2d_grad) = grad(state.theta, scene.means2d_probe(state.aux, args.batch))
            theta, opt = apply_gradients(tx, g_theta, state.theta, state.opt_theta)
            aux = scene.update_stats(state.aux, means2d_grad, render)
            return state.replace(step=state.step + 1, theta=theta, aux=aux, opt_theta=opt), value

        return step

    rule = partial(densify, strategy=strategy) if args.refinement == "densify" else partial(relocate, dead=0.005, growth=0.15)
    refined = jax.jit(lambda key, state: rule(key, state, tx))
    refreshed = jax.jit(lambda key, state: state.replace(aux=update_occupancy_grid(key, FIELD, state.theta, state.aux)))
    room = full >> 1 if args.scene == "nerf" else full
    for i in range(args.steps):
        state, _ = compiled(room)(state, truth, camera)
        if args.scene == "nerf" and i % 16 == 8:
            room = next(full >> k for k in (5, 4, 3, 2, 1, 0) if k == 0 or 1.25 * int(state.aux["total"]) < full >> k)
            state = refreshed(jax.random.fold_in(key, i), state)
        elif args.scene == "gaussians" and i % 75 == 74 and i < 0.7 * args.steps:
            state = refined(jax.random.fold_in(key, i), state)

    @jax.jit
    def render(camera):
        scene = make_scene(args, full, stratified=False)
        return scene.render(state.theta, state.aux, camera, jax.random.split(key, UNSEEN), scene.means2d_probe(state.aux, UNSEEN))

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
        "parts": int(state.aux["alive" if args.scene == "gaussians" else "occupied"].sum()),
        "seconds": round(seconds, 1),
        "settings": settings(args),
    }


def main(args: Args) -> None:
    start_jax()
    file = args.out / "results.jsonl"
    args.out.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    print(f"{'kind':>10} {'PSNR, dB':>9} {'parts':>10} {'seconds':>8}")
    for kind in args.kinds:
        row = next((row for row in rows if row["kind"] == kind and row["settings"] == settings(args)), None)
        if row is None:
            row = run(args, kind)
            with file.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
        print(f"{kind:>10} {row['psnr']:9.2f} {row['parts']:10,} {row['seconds']:8.1f}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args))
