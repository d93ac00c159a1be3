"""Many prompts: each has a folder of its own; a batch skips what is done, goes on with what is begun and survives what fails."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lods_jax.cli import main
from lods_jax.config import Config, dump
from lods_jax.core.errors import UserError
from lods_jax.runs import batch, run
from lods_jax.runs.run_directory import locked, read_run
from tests.toy import TINY, final, same
from tests.toy import batch as run_batch


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_the_shares_of_an_array_of_jobs_are_a_partition(n):
    shares = [batch.share(range(7), f"{i}/{n}") for i in range(1, n + 1)]
    assert sorted(i for share in shares for i in share) == list(range(7))


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/0"])
def test_a_share_that_is_none_is_refused(shard):
    with pytest.raises(UserError, match="shard must read like 1/4"):
        batch.share([1], shard)


ALIKE = [
    "a mug",
    "a mug!",
    "a mug?",
    "A mug",
    "a-mug",
    "a mug 2",
    "a mug-2",
    "一只红色的杯子",
    "一辆蓝色的汽车",
    "prompt",
    "!",
    70 * "x",
    71 * "x",
]


def test_no_two_prompts_have_one_folder(tmp_path):
    assert len({folder for _, folder in batch.folders(ALIKE, tmp_path)}) == len(ALIKE)


def test_the_folder_of_a_prompt_hangs_on_no_other_line(tmp_path):
    alone = {prompt: batch.folders([prompt], tmp_path)[0][1] for prompt in ALIKE}
    assert dict(batch.folders(ALIKE[::-1], tmp_path)) == alone


def test_the_words_of_a_plain_prompt_are_its_folder(tmp_path):
    assert batch.folders(["a red mug"], tmp_path) == [("a red mug", tmp_path / "a-red-mug")]


@given(st.text(max_size=80))
def test_any_prompt_is_the_name_of_a_folder(prompt):
    name = batch.folder_name(prompt.encode(errors="replace").decode())
    assert re.fullmatch("[a-z0-9][a-z0-9-]{0,70}", name)


def begun(folder, state, **settings):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump(Config(**settings)))
    (folder / "run.json").write_text(json.dumps({"state": state}))


@pytest.fixture
def calls(monkeypatch):
    """The runs that a batch begins, in place of running them; a prompt with the word fails is one that does."""
    seen = []

    def call(name):
        def run_one(config, folder, once):
            seen.append((name, config.prompt))
            if "fails" in config.prompt:
                raise RuntimeError("RESOURCE_EXHAUSTED:\nout of memory")
            if name == "start":
                begun(folder, "finished", prompt=config.prompt, steps=config.steps)
            return 130 if "stops" in config.prompt else 0

        return run_one

    for name in ("start", "resume"):
        monkeypatch.setattr(run, name, call(name))
    return seen


def test_a_batch_skips_what_is_finished_goes_on_with_what_is_begun_and_stops_at_a_signal(tmp_path, calls):
    jobs = batch.folders(["one", "two", "it stops", "four"], tmp_path)
    for (prompt, folder), state in zip(jobs[:2], ("finished", "running"), strict=True):
        begun(folder, state, prompt=prompt, steps=5)
    assert batch.run_all(Config(steps=5), jobs) == 130
    assert calls == [("resume", "two"), ("start", "it stops")]


def test_what_fails_is_recorded_and_ends_no_other_and_the_same_command_tries_it_again(tmp_path, calls, capsys):
    jobs = batch.folders(["one", "it fails", "three", "a teapot"], tmp_path)

    def check(prompt):
        if "teapot" in prompt:
            raise UserError("p.txt, line 4: this prior has never seen the words teapot")

    assert batch.run_all(Config(steps=5), jobs, check) == 1
    assert calls == [("start", "one"), ("start", "it fails"), ("start", "three")]
    said = capsys.readouterr().out.splitlines()
    assert "failed    2 of 4, 'it fails': RESOURCE_EXHAUSTED: out of memory" in said
    assert said[-1].startswith("failed    2 of 4 prompts: 'it fails', 'a teapot'")
    ends = [read_run(folder).end for _, folder in jobs]
    assert ends == [
        "finished",
        "failed: RESOURCE_EXHAUSTED: out of memory",
        "finished",
        "failed: p.txt, line 4: this prior has never seen the words teapot",
    ]
    calls.clear()
    assert batch.run_all(Config(steps=5), jobs) == 1  # the prior has learned the word; the other fails again
    assert calls == [("resume", "it fails"), ("resume", "a teapot")]


def test_a_failure_is_not_written_into_the_folder_of_another_process(tmp_path, calls, capsys):
    [(_, folder)] = jobs = batch.folders(["it fails"], tmp_path)
    with locked(folder):
        assert batch.run_all(Config(), jobs) == 1
    assert {path.name for path in folder.iterdir()} == {".lock"}
    assert "not recorded" in capsys.readouterr().out


def test_other_settings_and_other_things_are_refused_before_anything_begins(tmp_path, calls):
    jobs = batch.folders(["one", "two"], tmp_path)
    begun(jobs[1][1], "finished", prompt="two", steps=6)
    with pytest.raises(UserError, match=r"two holds a run of other settings \(steps: 6 -> 5\): pass another --out"):
        batch.run_all(Config(steps=5), jobs)
    (jobs[0][1]).mkdir()
    (jobs[0][1] / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="one is there already"):
        batch.run_all(Config(steps=6), jobs)
    assert calls == []


def test_a_damaged_folder_fails_its_own_prompt_alone(tmp_path, calls):
    jobs = batch.folders(["one", "two"], tmp_path)
    begun(jobs[0][1], "finished", prompt="one")
    (jobs[0][1] / "config.yaml").write_text("steps: many")
    assert batch.run_all(Config(), jobs) == 1
    assert calls == [("start", "two")]
    assert (jobs[0][1] / "config.yaml").read_text() == "steps: many"


@pytest.mark.slow
def test_the_runs_of_a_batch_after_the_first_compile_nothing_and_end_as_they_would_alone(toy, tmp_path):
    """Refinement, diagnosis and previews are compiled once, as the step is: compilations of each run would add up in memory."""
    first, *later = run_batch(TINY, ["a toy", "a thing", "a top"], tmp_path / "out")
    assert {"jit(gaussian_refine)", "jit(diagnose)"} <= {*first}
    assert later == [[], []]
    assert main([*TINY, "--out", str(tmp_path / "alone")]) == 0
    same(final(tmp_path / "out" / "a-thing"), final(tmp_path / "alone"))
