"""Files of prompts: what is read, what is refused, and that a batch goes on where it was stopped."""

import json

import pytest

from lods_jax.config import Config, dump
from lods_jax.core.errors import UserError
from lods_jax.runs import batch, run
from lods_jax.tabletop.dataset import parse_caption


def written(tmp_path, name, text):
    file = tmp_path / name
    file.write_text(text)
    return file


def test_a_text_has_a_prompt_a_line_and_each_counts_once(tmp_path):
    file = written(tmp_path, "p.txt", "# a set\na red mug\n\n  a blue car \na red mug\n")
    assert batch.read_prompts(file) == ["a red mug", "a blue car"]


def test_a_library_is_every_string_in_the_json(tmp_path):
    file = written(tmp_path, "p.json", json.dumps({"dreamfusion": ["a corgi", "a hamburger"], "more": {"x": ["a cat"]}}))
    assert batch.read_prompts(file) == ["a corgi", "a hamburger", "a cat"]


def test_the_shipped_set_is_of_the_world_that_the_prior_knows():
    prompts = batch.read_prompts("tabletop")
    assert len(prompts) == 24
    captions = [parse_caption(prompt) for prompt in prompts]
    assert {str(caption) for caption in captions} == set(prompts)
    assert all(sum(c.kind == kind for c in captions) == 2 for kind in {c.kind for c in captions})
    assert all(sum(c.color == color for c in captions) == 3 for color in {c.color for c in captions})


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("p.txt", "# nothing\n\n", "holds no prompt"),
        ("p.json", "{", "is not JSON"),
        ("p.json", '{"a": 1}', "holds no prompt"),
        ("p.txt", "x" * (batch.MOST + 1), "a file of prompts may have 1000000"),
    ],
)
def test_a_file_without_prompts_is_refused(tmp_path, name, text, says):
    with pytest.raises(UserError, match=says):
        batch.read_prompts(written(tmp_path, name, text))


def test_a_missing_file_is_refused_with_the_sets_that_there_are(tmp_path):
    with pytest.raises(UserError, match="no set of that name: tabletop"):
        batch.read_prompts(tmp_path / "nothing.txt")


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "p.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not UTF-8 text"):
        batch.read_prompts(tmp_path / "p.txt")


def test_words_pick_the_one_prompt_that_has_them():
    prompts = ["a zoomed out photo of a hamburger", "a corgi, a hamburger and a cat", "a corgi"]
    assert batch.pick(prompts, "lib:zoomed_hamburger") == prompts[0]
    for name, says in (("lib:hamburger", "2 prompts have these words"), ("lib:dog", "no prompt has these words")):
        with pytest.raises(UserError, match=says):
            batch.pick(prompts, name)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_the_shares_of_an_array_of_jobs_are_a_partition(n):
    shares = [batch.share(range(7), f"{i}/{n}") for i in range(1, n + 1)]
    assert sorted(i for share in shares for i in share) == list(range(7))


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/0"])
def test_a_share_that_is_none_is_refused(shard):
    with pytest.raises(UserError, match="shard must read like 1/4"):
        batch.share([1], shard)


def test_prompts_that_read_alike_have_folders_of_their_own(tmp_path):
    names = [folder.name for _, folder in batch.folders(["a mug!", "a mug?", "a car"], tmp_path)]
    assert names == ["a-mug", "a-mug-2", "a-car"]


def test_a_batch_skips_what_is_finished_goes_on_with_what_is_begun_and_stops_at_a_signal(tmp_path, monkeypatch):
    config, calls = Config(steps=5), []
    jobs = batch.folders(["one", "two", "three", "four"], tmp_path)
    for (prompt, folder), state in zip(jobs[:2], ("finished", "running"), strict=True):
        folder.mkdir()
        (folder / "config.yaml").write_text(dump(Config(prompt=prompt, steps=5)))
        (folder / "run.json").write_text(json.dumps({"state": state}))
    monkeypatch.setattr(run, "resume", lambda config, folder, compile: calls.append(("resume", config.prompt)) or 0)
    monkeypatch.setattr(run, "start", lambda config, folder, compile: calls.append(("start", config.prompt)) or 130)
    assert batch.run_all(config, jobs) == 130
    assert calls == [("resume", "two"), ("start", "three")]


def test_a_folder_of_another_configuration_is_not_gone_on_with(tmp_path):
    [(_, folder)] = jobs = batch.folders(["one"], tmp_path)
    folder.mkdir()
    (folder / "config.yaml").write_text(dump(Config(prompt="one", steps=6)))
    with pytest.raises(UserError, match="holds a run of another configuration"):
        batch.run_all(Config(steps=5), jobs)
