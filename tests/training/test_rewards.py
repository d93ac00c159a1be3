"""A CLIP of the user's as the judge of a run."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from lods_jax.cli import main
from lods_jax.config import load
from lods_jax.core.cameras import VIEWS
from lods_jax.distillation.parallel import over_devices
from lods_jax.runs.provenance import made_with
from lods_jax.runs.run_directory import read_run
from lods_jax.training import checkpoint, loop
from lods_jax.training.build import build
from tests.toy import TINY

CLIP = Path(__file__).resolve().parents[1] / "data" / "clip"
FLAGS = ["--steps", "2", "--checkpoint.every", "2", "--output.log-every", "1", "--objective", "sds"]
FLAGS += ["--objective.reward", str(CLIP), "--objective.noises", "2", "--objective.noise-weights", "preference"]


@pytest.fixture(scope="module")
def judged(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("judged") / "run"
    assert main([*TINY, *FLAGS, "--out", str(folder)]) == 0
    return folder


def test_a_run_asks_the_clip_of_a_folder(judged):
    lines = [json.loads(line) for line in (judged / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["score_rms"]) and line["score_rms"] > 0 for line in lines)
    assert json.loads((judged / "run.json").read_text())["predictions_per_view"] == 2 * 2


def test_what_it_compares_with_is_the_prompt_of_each_view_and_its_weights_are_no_part_of_the_compiled_step(judged):
    components = build(load(judged / "config.yaml"))
    asked = components.texts["reward"]
    assert asked.shape[:2] == (len(VIEWS), 1)
    np.testing.assert_allclose(np.linalg.norm(asked, axis=-1), 1, atol=1e-5)
    assert len({tuple(np.asarray(row)) for row in asked[:, 0]}) == len(VIEWS)
    step, views = over_devices(loop.train_step(components, loop.largest_shapes(components)), "jit", components.plan.batch)
    given = loop.first_state(components), components.weights, components.texts, components.reference, jax.random.key(0)
    baked = jax.make_jaxpr(step)(*given, views).consts
    weights = {x.shape for x in jax.tree.leaves(components.reference.reward) if x.size > 1000}
    assert weights
    assert not weights & {np.shape(x) for x in baked}


def test_a_checkpoint_and_a_run_tell_the_hash_of_the_clip(judged):
    components = build(load(judged / "config.yaml"))
    _, meta = checkpoint.restore(judged / "checkpoints", loop.state_shapes(components))
    assert meta["inputs"]["the CLIP of the reward"] == components.inputs["the CLIP of the reward"]
    sha256 = components.inputs["the CLIP of the reward"]
    assert len(sha256) == 64
    assert f"SHA-256 of the CLIP {sha256[:16]}" in dict(made_with(read_run(judged)))["reward"]


def test_a_folder_that_is_no_clip_is_refused_in_a_line(toy, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main([*TINY, *FLAGS, "--objective.reward", str(tmp_path / "empty"), "--out", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert "config.json is missing: expected a CLIP as transformers saves it" in err
    assert err.count("\n") == 1
