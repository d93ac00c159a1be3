"""A run in seconds: a prior in closed form of the name "toy", a tiny scene, and what tests ask of the folder that it leaves."""

import json

import jax
import numpy as np

from lods_jax.cli import main
from lods_jax.config import load
from lods_jax.runs import run
from lods_jax.training import checkpoint, loop
from lods_jax.training.build import build
from lods_jax.training.compilation import compilations

TINY = [
    "text-to-3d", "a thing", "--anyway", "--prior", "toy", "--steps", "8", "--batch", "2", "--resolution", "16",
    "--output.size", "32", "--output.frames", "4", "--output.log-every", "2", "--gaussians.capacity", "64",
    "--gaussians.init-count", "40", "--gaussians.init-scale", "0.2", "--gaussians.refine.every", "2", "--checkpoint.every", "4",
    "--checkpoint.keep", "9",
]  # fmt: skip


def final(folder, step=8):
    config = load(folder / "config.yaml")
    components = build(config, folder)
    state, _ = checkpoint.restore(folder / "checkpoints", loop.state_shapes(components))
    assert int(state.step) == step
    return state


def batch(flags, prompts, out):
    """Runs a batch through the command line; gives the names of what each run compiled."""
    names = []

    def start(*args):
        with compilations() as spans:
            code = started(*args)
        names.append([span.name for span in spans if span.stage == "backend_compile"])
        return code

    started, run.start = run.start, start
    file = out.with_suffix(".txt")
    file.write_text("\n".join(prompts))
    command, _, *rest = flags
    try:
        assert main([command, "--prompts", str(file), "--out", str(out), *rest]) == 0
    finally:
        run.start = started
    return names


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


TOY = """
from lods_jax import cli
from lods_jax.distillation.prompts import view_prompts
from lods_jax.priors.gaussian import gaussian
from lods_jax.priors import registry
means = {text: 0.3 + 0.2 * i for i, text in enumerate([*view_prompts("a thing"), "a thing", ""])}
means |= {text: 0.8 for thing in ("a toy", "a top") for text in (*view_prompts(thing), thing)}
toy = registry.RegisteredPrior(lambda **options: gaussian(means, 0.5), "a Gaussian for each prompt")
registry.register_prior("toy", lambda: toy)
"""
