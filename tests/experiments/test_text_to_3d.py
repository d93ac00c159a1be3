"""The table of objectives: that a killed experiment goes on where it was, and what its numbers are made of."""

import json

import numpy as np
import pytest

from lods_jax.tabletop.dataset import held_out, parse_caption


@pytest.fixture(scope="module")
def module(experiment):
    return experiment("text_to_3d")


def jobs(module, tmp_path):
    config = module.settings("tabletop", 3, module.TRIALS["CSD"][0])
    return [("CSD", prompt, seed, config) for seed in (1, 2) for prompt in ("a red car", "a blue chair")]


@pytest.fixture
def counted(module, monkeypatch):
    """Runs that take no time: their KID counts them, and the third one is killed."""
    made = []

    def run_one(config, folder):
        if len(made) == 2 and not (folder / "again").exists():
            folder.mkdir(parents=True)
            (folder / "again").touch()
            raise KeyboardInterrupt
        made.append(folder)
        return {"run": str(folder), "kid": float(len(made)), "prompt": config.prompt, "seed": config.seed}

    monkeypatch.setattr(module, "run_one", run_one)
    return made


def test_a_killed_experiment_goes_on_and_does_nothing_twice(module, counted, tmp_path):
    todo = jobs(module, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        module.go_through(todo, tmp_path)
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"run": "half a li')
    rows = module.go_through(todo, tmp_path)
    assert [row["kid"] for row in rows] == [1, 2, 3, 4]
    assert len(counted) == 4
    assert module.go_through(todo, tmp_path) == rows
    assert len(counted) == 4


def test_rows_are_on_disk_one_by_one(module, counted, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        module.go_through(jobs(module, tmp_path), tmp_path)
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line)["method"] for line in lines] == ["CSD", "CSD"]


def test_every_method_has_as_many_trials(module):
    assert len({len(trials) for trials in module.TRIALS.values()}) == 1
    assert len(module.EXACT_LODS) == len(module.TRIALS["SDS"])
    for chosen in module.CHOSEN.values():
        assert set(chosen) == set(module.TRIALS)


def test_prompts_of_the_table_are_not_those_of_the_tuning(module):
    assert not set(module.TUNING) & set(module.PROMPTS + module.MORE + module.SHOWN)
    unseen = lambda prompt: held_out(*parse_caption(prompt)[:3])  # noqa: E731
    assert [prompt for prompt in module.PROMPTS if unseen(prompt)] == ["a red car", "a pink rocket"]
    assert not any(unseen(prompt) for prompt in module.SHOWN)


def test_objectives_differ_in_their_trial_alone(module):
    a, b = (module.settings("tabletop", 10, module.TRIALS[name][0]) for name in ("SDS", "CSD"))
    from lods_jax.config import leaves

    pairs = zip(leaves(a), leaves(b), strict=True)
    assert {name for (name, _, x), (_, _, y) in pairs if x != y} == {"objective.name", "objective.guidance_scale"}


def test_the_table_pairs_runs_of_the_same_prompt_and_seed(module):
    rng = np.random.default_rng(0)
    rows = [
        {"method": method, "prompt": prompt, "seed": seed, "kid": base + shift}
        for prompt in "ab"
        for seed in (1, 2)
        for base in [rng.uniform(0, 5)]
        for method, shift in (("SDS", 0.0), ("CSD", 0.25))
    ]
    text = module.table(rows, ["SDS", "CSD"])
    assert "| KID minus that of SDS, paired | 0 (0 to 0) | 0.25 (0.25 to 0.25) |" in text
    assert "| n | 4 | 4 |" in text


def test_a_sheet_shows_the_prompts_of_a_bench_that_every_method_has(module, monkeypatch, tmp_path):
    runs = [("now", "a red car", 1), ("now", "a blue chair", 1), ("before", "a blue chair", 1), ("before", "a red car", 2)]
    (tmp_path / "shards" / "1-of-1").mkdir(parents=True)
    lines = [json.dumps({"run": f"runs/{i}", "method": m, "prompt": p, "seed": s}) for i, (m, p, s) in enumerate(runs)]
    (tmp_path / "shards" / "1-of-1" / "rows.jsonl").write_text("\n".join(lines) + "\n")
    shown = []
    monkeypatch.setattr(module, "sides", lambda rows, methods, prompts, size, out: shown.append((methods, prompts)))
    module.sheet(tmp_path, [])
    module.sheet(tmp_path, ["now"])
    assert shown == [(["now", "before"], ("a blue chair",)), (["now"], ("a red car", "a blue chair"))]
