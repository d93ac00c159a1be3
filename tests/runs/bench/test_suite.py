"""Suites from files: what a method is made of, and one line for what is wrong."""

import pytest

from lods_jax.config import load
from lods_jax.core.errors import UserError
from lods_jax.runs.bench import suite as suites
from lods_jax.runs.bench.figures import check_figures
from lods_jax.runs.bench.plan import blocks, config_of, jobs_of, tuning_jobs
from lods_jax.runs.bench.suite import read_suite

LEAST = "prompts: [a red mug]\nmethods: {A: {}, B: {objective: sds}}\n"


def written(tmp_path, text, name="mine.yaml"):
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


@pytest.mark.parametrize("name", [name for name in suites.shipped() if name != "t3bench"])
def test_every_shipped_suite_is_planned(name):
    suite = read_suite(name)
    jobs = jobs_of(suite)
    assert len({job.folder for job in jobs}) == len(jobs)
    check_figures(suite)
    if suite.tuning.prompts:
        assert len(tuning_jobs(suite, suite.baseline, blocks(suite)[0], {})) == 2


def test_t3bench_takes_the_files_that_its_user_has(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"prompts\.single: no file of prompts prompt_single\.txt"):
        read_suite("t3bench")
    for name in ("single", "surr", "multi"):
        written(tmp_path, f"a prompt of {name}\n", f"prompt_{name}.txt")
    assert [job.prompt_set for job in jobs_of(read_suite("t3bench"))][:3] == ["single", "surroundings", "multiple"]


def test_a_method_lies_over_its_scene_and_that_over_the_settings_and_those_over_the_preset(tmp_path):
    text = """
preset: gaussians-sds
settings: {steps: 5, batch: 8, resolution: 32}
scenes: {small: {batch: 2, resolution: 16}}
priors: [tabletop-64]
prompts: [a red mug]
seeds: [7]
methods: {A: {resolution: 24}}
"""
    (job,) = jobs_of(read_suite(written(tmp_path, text)))
    config = job.config
    assert (config.steps, config.batch, config.resolution) == (5, 2, 24)
    assert config.objective == load("gaussians-sds").objective
    assert (config.prompt, config.seed, config.prior.name) == ("a red mug", 7, "tabletop-64")


def test_a_value_of_tuning_lies_over_the_method_and_holds_for_both_phases_of_a_schedule(tmp_path):
    suite = read_suite(written(tmp_path, LEAST))
    values = {"regularizers.sparsity": "3", "objective.guidance_scale": "9"}
    config = config_of(suite, "B", "", "", values)
    assert config.regularizers.sparsity == (3, 3)
    assert (config.objective.name, config.objective.guidance_scale) == ("sds", 9)


def test_a_base_gives_what_a_suite_leaves_out(tmp_path):
    written(tmp_path, LEAST + "seeds: [4]\n", "base.yaml")
    suite = read_suite(written(tmp_path, "base: base.yaml\nseeds: [5]\nmethods: {C: {objective: csd}}\n"))
    assert list(suite.methods) == ["A", "B", "C"]
    assert suite.seeds == (5,)
    assert suite.baseline == "A"


def test_a_file_beside_the_suite_is_meant_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    written(tmp_path / "there", "", "mine.py")
    written(tmp_path / "there", "a blue chair\n", "words.txt")
    text = "prompts: words.txt\nmethods: {A: {objective: 'mine.py:csd'}}\n"
    (job,) = jobs_of(read_suite(written(tmp_path / "there", text)))
    assert job.config.objective.name == f"{(tmp_path / 'there' / 'mine.py').resolve()}:csd"
    assert job.config.prompt == "a blue chair"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prompts: [a]\n", "has no methods"),
        ("methods: {A: }\n", "prompts must be a list of prompts or a file of them, got nothing"),
        ("prompts: [a]\nmethods: {A: }\nbaseline: C\n", "the baseline C is none of the methods A"),
        ("prompts: [a]\nmethods: {A: }\nsteps: 3\n", "no key steps; the nearest is"),
        ("prompts: [a]\nmethods: {A: {stesp: 3}}\n", "methods.A: there is no key stesp; the nearest is steps"),
        ("prompts: [a]\nmethods: {A: {steps: 0}}\n", "method A: steps must lie in 1..10000000, got 0"),
        ("prompts: [a]\nmethods: {a b: , a-b: }\n", "methods must differ in letters or digits"),
        ("prompts: [a]\nmethods: [A]\n", "methods must hold keys and values"),
        ("prompts: [a]\nmethods: {A: {preset: [x]}}\n", "methods.A.preset must be the name of a preset"),
        ("prompts: [a]\nmethods: {A: {grid: {steps: 3}}}\n", "methods.A.grid.steps must be a list of two values or more"),
        ("prompts: [a]\nmethods: {A: {grid: {steps: [1, 1.0]}}}\n", "methods.A.grid.steps must name each value once, got 1, 1.0"),
        ("prompts: nowhere.txt\nmethods: {A: }\n", "prompts: no file of prompts nowhere.txt"),
        ("prompts: [a]\nseeds: [-1]\nmethods: {A: }\n", "seeds must lie in 0..4294967295, got -1"),
        ("base: mine.yaml\n", "base goes in a circle"),
        ("prompts: [a]\nmethods: {A: {preset: gaussians-sds}}\nscenes: {x: , y: }\n", "take it out of the method A"),
        ("prompts: [a]\nmethods: {A: }\ntuning: {prompts: [a]}\n", "tuning.prompts must not be prompts of the table, got a"),
        ("prompts: [a]\nmethods: {A: }\nrank_by: tint\ntuning: {prompts: [b], figure: tint}\n", "must not be one of the table"),
        (
            "prompts: [a]\ntuning: {prompts: [b]}\nmethods: {A: {grid: {steps: [1, 2]}}, B: {grid: {steps: [1, 2, 3]}}}\n",
            "every method must get as many trials, and the grids begin with A 2, B 3",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_that_names_it(text, says, tmp_path):
    with pytest.raises(UserError) as error:
        jobs_of(read_suite(written(tmp_path, text)))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ("rank_by: chamfr", "rank_by must be figures of lods evaluate, got chamfr; the nearest is chamfer"),
        ("figures: [kid, tnit]", "figures must be figures of lods evaluate, got tnit; the nearest is tint"),
        ("rank_by: clip_score", "rank_by clip_score is what a CLIP says: name its folder, clip: path/to/clip"),
        ("clip: a\nlooks: 2\ncurves: [clip_score]", "curves cannot be clip_score"),
        ("clip: a\ntuning: {prompts: [b], figure: clip_score}", "tuning.figure cannot be clip_score"),
        ("tuning: {prompts: [b], figure: colour_error}", "tuning.figure must be figures of lods evaluate, got colour_error"),
    ],
)
def test_a_figure_that_no_run_will_have_is_refused_before_any_run(keys, says, tmp_path):
    with pytest.raises(UserError) as error:
        check_figures(read_suite(written(tmp_path, LEAST + keys)))
    assert str(error.value).startswith(says)


def test_a_suite_may_rank_by_its_clip(tmp_path):
    check_figures(read_suite(written(tmp_path, LEAST + "clip: a\nrank_by: clip_score\nfigures: [clip_r_precision, seconds]")))


def test_a_name_that_is_no_suite_is_refused_with_those_there_are():
    with pytest.raises(UserError, match="no file tabeltop, and no suite of that name: " + ", ".join(suites.shipped())):
        read_suite("tabeltop")
    assert {"presets", "tabletop-quick"} <= {*suites.shipped()}
