"""The classifier as a reward, and a run whose noises it weighs."""

import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from lods_jax.cli import main
from lods_jax.config import load
from lods_jax.core.cameras import TABLETOP, turntable
from lods_jax.tabletop.dataset import render_caption
from lods_jax.tabletop.reward import classifier_judge
from lods_jax.training.build import build

TINY = [
    "text-to-3d", "a red mug", "--prior", "exact-gaussians", "--steps", "2", "--batch", "2", "--resolution", "16",
    "--output.size", "32", "--output.frames", "2", "--output.log-every", "1", "--gaussians.capacity", "64", "--objective", "sds",
    "--gaussians.init-count", "40", "--gaussians.init-scale", "0.2", "--objective.reward", "classifier",
    "--objective.noises", "3",
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward") / "run"
    assert main([*TINY, "--out", str(folder)]) == 0
    return folder


def test_the_reward_of_a_true_render_is_highest_under_its_own_caption():
    """Kind, colour and view: the front of a red car."""
    judge = classifier_judge()
    front = np.asarray(render_caption("a red car", turntable(4, orbit=TABLETOP), 128))[:1, ..., :3]
    captions = ["a red car, front view", "a red car", "a blue car", "a red mug", "a red car, back view"]
    rewards = [float(judge.rate(judge.params, jnp.asarray(front), jnp.asarray(judge.embed([text])))[0]) for text in captions]
    assert all(x <= 0 for x in rewards)
    assert rewards[0] == pytest.approx(rewards[1], abs=0.1)
    assert min(rewards[:2]) > max(rewards[2:]) + 1


def test_a_run_with_a_reward_asks_for_every_noise_and_says_so(whole):
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["score_rms"]) and line["score_rms"] > 0 for line in lines)
    assert json.loads((whole / "run.json").read_text())["predictions_per_view"] == 3 * 2


def test_the_reward_is_of_the_prompt_and_of_the_view(whole):
    """Rows of the table "reward": all ask for a red mug, each for its own view."""
    table = np.asarray(build(load(whole / "config.yaml")).texts["reward"])
    assert table.shape[1] == 1
    assert len({tuple(row) for row in table[:, 0]}) == len(table)
    views = len(table)
    assert (table[:, 0, :-views] == table[:1, 0, :-views]).all()
    np.testing.assert_array_equal(table[:, 0, -views:], np.eye(views))


@pytest.mark.parametrize(
    ("prompt", "words", "views"), [("a red mug", "auto", 4), ("a red ball", "auto", 1), ("a red mug", "off", 1)]
)
def test_a_judge_is_asked_for_the_view_though_the_prior_sees_the_cameras(whole, prompt, words, views):
    """Of an object with a front: the prompts of a prior of four views name none."""
    config = load(whole / "config.yaml")
    config = replace(config, prompt=prompt, view_words=words, prior=replace(config.prior, name="tabletop-views"), batch=4)
    components = build(config)
    assert len(np.unique(components.texts["prompt"], axis=0)) == 1
    assert len(np.unique(components.texts["reward"], axis=0)) == views


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--objective.reward", "no/such"], "objective.reward must be none, classifier or the folder of a CLIP, got no/such"),
        (["--prior", "toy", "--anyway"], "objective.reward classifier judges objects of the tabletop world"),
        (["--objective", "lods-lora", "--objective.fit-shares-noise"], "a reward several: pass one of them alone"),
        (["--objective", "ism"], "objective.reward weighs several noises a view, and ism draws none: take it out"),
        (["--objective", "dsd"], "objective.reward weighs several noises a view, and dsd draws none: take it out"),
        (["--objective.noises", "1"], "objective.noises must lie in 2..64, got 1"),
    ],
)
def test_what_a_reward_cannot_weigh_is_refused_in_a_line(toy, tmp_path, capsys, flags, says):
    argv = [*TINY, *flags, "--out", str(tmp_path / "run")]
    if "toy" in flags:
        argv[1] = "a thing"
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
