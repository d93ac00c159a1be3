"""What a step costs with Stable Diffusion 2.1-base at its full size, without its weights.

    python experiments/benchmarks/full_size.py          # sizes and operations, some minutes on 2 cores, 2 GiB
    python experiments/benchmarks/full_size.py --run    # also runs one LODS-LoRA step on random weights: 12 GiB, minutes

Parameters are counted from the shapes. Operations are those of XLA's analysis of the step as it is traced, for latents of 64 x 64
and one view, relative to SDS: in latents, and through the encoder of 512 px images. Nothing is compiled for that.
"""

import argparse
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lods_jax.core.cameras import sample_orbit
from lods_jax.core.types import Reference
from lods_jax.distillation.objectives import OBJECTIVES
from lods_jax.distillation.parallel import fused_step
from lods_jax.distillation.train_step import init_state, make_train_step
from lods_jax.priors import flax_networks
from lods_jax.priors.architectures import write_configs
from lods_jax.priors.diffusers_folder import PARTS, read_config
from lods_jax.priors.stable_diffusion import stable_diffusion
from lods_jax.scenes.images import image_batch
from lods_jax.training.distill_2d import in_latents

NAMES = ("sds", "csd", "dds", "lods-embedding", "lods-lora", "vsd")
MAKE = {"unet": flax_networks.unet, "vae": flax_networks.vae, "text": flax_networks.text_encoder}


def step_of(prior, weights, name: str, start, shared: bool = False, width: int = 1024):
    """(step, its arguments) of an objective on the particles that start is the shape of; arrays may be shapes alone."""
    objective, tx, batch = OBJECTIVES[name](), optax.adam(1e-2), start.shape[0]
    tokens = jax.ShapeDtypeStruct((4, 77, width), jnp.float32)
    texts = dict.fromkeys(("prompt", "plain", "null", "source", "empty"), tokens)

    def state(key, weights, tokens, start):
        return init_state(image_batch(start), prior.init_psi(weights, key, tokens, objective.trained_queries), tx, tx, key)

    first = jax.eval_shape(state, jax.random.key(0), weights, jax.ShapeDtypeStruct((77, width), jnp.float32), start)
    build = make_train_step(
        image_batch(jnp.zeros(start.shape)),
        prior,
        objective,
        cameras=lambda keys, views: sample_orbit(keys, views, batch),
        window=lambda step: (20, 980),
        tx_theta=tx,
        tx_psi=tx,
        batch=batch,
        fit_shares_noise=shared,
    )
    edits = any(query.latents == "reference" for query in objective.queries.values())
    reference = Reference(latents=jax.ShapeDtypeStruct((batch, 64, 64, 4), jnp.float32)) if edits else None
    return jax.jit(fused_step(build)), (first, weights, texts, reference, jax.random.key(1), jnp.arange(batch))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = write_configs(Path(folder), "stable-diffusion-2-1-base")
        networks = {part: MAKE[part](read_config(root / where / "config.json")) for part, (where, _) in PARTS.items()}
        prior = stable_diffusion(root, strict=False)
    shapes = {part: flax_networks.shapes(network) for part, network in networks.items()}
    for part, tree in shapes.items():
        print(f"{part:<8}{sum(leaf.size for leaf in jax.tree.leaves(tree)):>14,} parameters")
    latents, image = (jax.ShapeDtypeStruct((1, *shape), jnp.float32) for shape in ((64, 64, 4), (512, 512, 3)))
    jobs = [(name, False) for name in NAMES] + [("lods-embedding", True), ("lods-lora", True), ("vsd", True)]
    print(f"{'':<24}{'in latents':>12}{'TFLOP':>8}{'through VAE':>14}{'TFLOP':>8}")
    sds = {}
    for name, shared in jobs:
        row = f"{name + (', shared' if shared else ''):<24}"
        for title, world, start in (("latents", in_latents(prior), latents), ("vae", prior, image)):
            step, arguments = step_of(world, shapes, name, start, shared)
            operations = step.lower(*arguments).cost_analysis()["flops"]
            sds.setdefault(title, operations)
            row += f"{operations / sds[title]:>12.2f}{operations / 1e12:>8.2f}  "
        print(row, flush=True)
    if args.run:
        run(in_latents(prior), {"unet": random_weights(shapes["unet"])}, latents)


def random_weights(shapes):
    """Of the size that networks start with; leaf by leaf, since all of them at once would take three times the memory."""
    rng = np.random.default_rng(0)

    def draw(path, x):
        if path[-1].key in ("scale", "bias"):
            return jnp.full(x.shape, float(path[-1].key == "scale"), x.dtype)
        return jnp.asarray(rng.standard_normal(x.shape, np.float32) / np.sqrt(np.prod(x.shape[:-1])), x.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def drawn(prior, weights, name: str, arguments: tuple) -> tuple:
    """The arguments of `step_of` with numbers in place of shapes: a scene of zeros, random texts and reference latents."""
    state, _, texts, *others = arguments
    state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state)
    texts = {name: jax.random.normal(jax.random.key(i), x.shape) for i, (name, x) in enumerate(texts.items())}
    objective = OBJECTIVES[name]()
    psi = prior.init_psi(weights, jax.random.key(3), texts["null"][0], objective.trained_queries)
    draw = lambda x: jax.random.normal(jax.random.key(2), x.shape, x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x  # noqa: E731
    return state.replace(psi=psi), weights, texts, *jax.tree.map(draw, tuple(others))


def run(prior, weights, latents) -> None:
    """One LODS-LoRA step on random weights: it ends, and everything in it is finite."""
    step, arguments = step_of(prior, weights, "lods-lora", latents)
    arguments = drawn(prior, weights, "lods-lora", arguments)
    began = time.monotonic()
    new, metrics = step(*arguments)
    jax.block_until_ready(new)
    moved = np.mean([float(jnp.abs(site["up"]).max() > 0) for site in new.psi["lora"].values()])
    learned = sum(x.size for x in jax.tree.leaves(arguments[0].psi))
    print(f"one LODS-LoRA step: {time.monotonic() - began:.0f} s with compilation; {learned:,} parameters learned")
    force, fit = float(metrics["score_rms"]), float(metrics["fit"])
    print(f"skipped {new.skipped}, force {force:.3g}, fit {fit:.3g}, sites that moved {moved:.0%}")


if __name__ == "__main__":
    main()
