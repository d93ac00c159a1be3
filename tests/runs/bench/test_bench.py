"""A bench: a killed one goes on, shards make the table of one process, what fails ends no other, a file adds an objective."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lods_jax.cli import main
from lods_jax.runs import run
from lods_jax.runs.bench.execute import rows_in
from lods_jax.training.compilation import compilations
from tests.toy import TOY

SUITE = """
title: Two scales of LODS on a prior in closed form
preset: gaussians-lods-embedding
settings:
  steps: 6
  batch: 2
  resolution: 16
  view_words: "off"
  output: {size: 32, frames: 2, log_every: 2, preview_every: 0}
  gaussians: {capacity: 64, init_count: 40, init_scale: 0.2, refine: {every: 4}}
  checkpoint: {every: 2}
priors: [toy]
prompts: [a thing]
seeds: [1, 2]
rank_by: psi_displacement
figures: [fit_gain, gaussians, seconds]
methods:
  strong: {objective: {name: lods-embedding, guidance_scale: 100}}
  weak: {objective: {name: lods-embedding, guidance_scale: 3}}
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    file = tmp_path_factory.mktemp("suite") / "two.yaml"
    file.write_text(SUITE)
    return file


def bench(suite, out, *flags) -> int:
    return main(["bench", str(suite), "--out", str(out), "--anyway", *flags])


@pytest.fixture(scope="module")
def whole(toy, suite, tmp_path_factory):
    """Made by one process; with the names of what it compiled."""
    out = tmp_path_factory.mktemp("bench") / "whole"
    with compilations() as spans:
        assert bench(suite, out) == 0
    return out, [span.name for span in spans if span.stage == "backend_compile"]


def same_figures(a: Path, b: Path):
    """All but the seconds of the rows of two benches."""
    costs = {"seconds", "curve", "shard"}
    first, second = (
        {name: {k: x for k, x in row.items() if k not in costs} for name, row in rows_in(out).items()} for out in (a, b)
    )
    assert first == second


def test_runs_that_differ_in_prompt_and_seed_compile_one_step(whole):
    for name in ("jit(step)", "jit(gaussian_refine)", "jit(diagnose)"):
        assert whole[1].count(name) == 2, name  # two methods, two seeds each


def test_a_row_holds_what_repeats_its_run(whole):
    rows = rows_in(whole[0])
    assert len(rows) == 4
    for row in rows.values():
        assert {"config", "commit", "versions", "devices", "method", "prompt", "seed", "seconds", "predictions"} <= set(row)
        assert "guidance_scale" in row["config"]


def test_the_page_opens_from_disk_and_shows_every_run(whole):
    text = (whole[0] / "index.html").read_text()
    assert text.count("<canvas") == 4
    assert "default-src 'none'" in text
    assert "the whole order holds in" in text
    assert text.count("<circle") == 4  # two methods, over seconds and over predictions


def test_differences_are_those_of_pairs_of_runs_and_the_baseline_has_no_column(whole):
    lines = (whole[0] / "table.md").read_text().splitlines()
    head, *rest = [line.split("|")[1:-1] for line in lines[lines.index("Minus that of strong, run by run:") + 2 :]]
    assert [cell.strip() for cell in head[1:]] == ["weak"]
    ((_, said),) = [line for line in rest if line[0].strip().startswith("psi_displacement")]
    moved = {(row["method"], row["seed"]): row["psi_displacement"] for row in rows_in(whole[0]).values()}
    apart = [moved["weak", seed] - moved["strong", seed] for seed in (1, 2)]
    assert float(said.split()[0]) == pytest.approx(sum(apart) / 2, rel=5e-3)


def test_the_same_command_again_makes_nothing(whole, suite, monkeypatch):
    before = (whole[0] / "table.md").read_text()
    monkeypatch.setattr(run, "start", lambda *args: pytest.fail("a finished run was begun anew"))
    assert bench(suite, whole[0]) == 0
    assert (whole[0] / "table.md").read_text() == before


LOOKS = """
looks: 3
curves: [fit_gain, gaussians]
seeds: [1]
"""


@pytest.mark.slow
def test_the_page_draws_the_course_of_the_figures_that_the_suite_names(toy, suite, tmp_path):
    """Six steps, three looks at every second step, each at the newest checkpoint before it."""
    file = tmp_path / "looks.yaml"
    file.write_text(f"base: {suite}\n{LOOKS}")
    assert bench(file, tmp_path / "out") == 0
    for row in rows_in(tmp_path / "out").values():
        assert [point["step"] for point in row["curve"]] == [2, 4, 6]
        assert row["curve"][-1]["gaussians"] == row["gaussians"]
        assert all(set(point) >= {"psi_displacement", "fit_gain", "gaussians"} for point in row["curve"])
    page = (tmp_path / "out" / "index.html").read_text()
    course = page[page.index("In the course of the runs") :]
    assert course.count("<circle") == 2 * 2  # two methods, two figures
    assert "gaussians (lower is better)" in course


def test_a_course_without_looks_is_refused(suite, tmp_path, capsys):
    file = tmp_path / "curves.yaml"
    file.write_text(f"base: {suite}\ncurves: [fit_gain]\n")
    assert bench(file, tmp_path / "out") == 2
    assert "curves are drawn from looks, and there are none: say looks: 4" in capsys.readouterr().err


KILLED = """
import os, signal
from lods_jax.cli import main
from lods_jax.runs import training_loop
exec({toy!r}, {{}})
saved = training_loop.checkpoint.save
def save(*args, **options):
    saved(*args, **options)
    if Path(args[0]).parent.name == "a-thing-1":
        os.kill(os.getpid(), signal.SIGKILL)
from pathlib import Path
training_loop.checkpoint.save = save
main(["bench", {suite!r}, "--out", {out!r}, "--anyway", "--shard", "2/2"])
"""


@pytest.mark.slow
def test_two_shards_of_which_one_is_killed_make_the_table_of_one_process(whole, suite, tmp_path, monkeypatch):
    """The second is killed in its first run, after a checkpoint, and goes on from there."""
    out = tmp_path / "out"
    code = KILLED.format(toy=TOY, suite=str(suite), out=str(out))
    done = subprocess.run([sys.executable, "-c", code], env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    begun = out / "runs" / "toy" / "weak" / "a-thing-1"
    assert json.loads((begun / "run.json").read_text())["state"] == "running"
    assert rows_in(out) == {}
    assert bench(suite, out, "--shard", "1/2") == 0
    resumed = []
    monkeypatch.setattr(run, "log", lambda what, text: resumed.append(text) if what == "resume" else None)
    monkeypatch.setattr("lods_jax.runs.run.log", run.log)
    assert bench(suite, out, "--shard", "2/2") == 0
    assert any("from step 2" in text or "from step 4" in text for text in resumed)
    same_figures(out, whole[0])
    assert {path.parent.name for path in out.glob("shards/*/rows.jsonl")} == {"1-of-2", "2-of-2"}
    figures = lambda folder: [x for x in (folder / "table.md").read_text().splitlines() if "seconds" not in x]  # noqa: E731
    assert figures(out) == figures(whole[0])


def test_rows_and_pictures_of_another_machine_make_the_page_here_and_no_run(whole, suite, tmp_path, monkeypatch, capsys):
    """Half of the rows were made on a GPU by two processes; of the runs only the stills came along."""
    out, lines = tmp_path / "merged", (whole[0] / "shards" / "1-of-1" / "rows.jsonl").read_text().splitlines()
    elsewhere = [
        json.dumps(json.loads(x) | {"devices": ["gpu: other"], "versions": {"jax": "9"}, "shard": "1/2"}) for x in lines[:2]
    ]
    for name, held in (("1-of-2", elsewhere), ("2-of-2", lines[2:3])):
        (out / "shards" / name).mkdir(parents=True)
        (out / "shards" / name / "rows.jsonl").write_text("".join(x + "\n" for x in held))
    for still in whole[0].glob("runs/**/stills/*.png"):
        (copy := out / still.relative_to(whole[0])).parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(still.read_bytes())
    monkeypatch.setattr(run, "start", lambda *args: pytest.fail("a run was begun"))
    assert bench(suite, out, "--report") == 0
    text, page = (out / "table.md").read_text(), (out / "index.html").read_text()
    assert "| seconds:" not in text
    assert "seconds on gpu other, 2 processes<small>" in page
    assert page.count("<canvas") == 3
    assert "1 runs are not there yet" in page
    assert bench(suite, tmp_path / "none", "--report") == 2
    assert "nothing to report" in capsys.readouterr().err
    assert bench(suite, out, "--report", "--shard", "1/2") == 2


def test_a_run_that_fails_ends_no_other_and_is_named(toy, suite, tmp_path, monkeypatch, capsys):
    def start(config, folder, once):
        if config.prompt == "a toy":
            raise RuntimeError("out of memory")
        return 143

    monkeypatch.setattr(run, "start", start)
    assert bench(suite, tmp_path / "stopped") == 143  # a signal stops the bench; the failure before did not
    monkeypatch.setattr(run, "start", lambda *args: start(*args) and pytest.fail("not asked for"))
    file = tmp_path / "toys.yaml"
    file.write_text(f"base: {suite}\nprompts: [a toy]\nseeds: [1]\n")
    assert bench(file, tmp_path / "failed") == 1
    said = capsys.readouterr().out.splitlines()[-1]
    assert "2 of 2 runs" in said
    assert "runs/toy/strong/a-toy-1: out of memory" in said


OWN = """
from lods_jax import Objective, Query

def half(s: float = 2.0) -> Objective:
    return Objective({"y": Query("prompt"), "null": Query("null")}, residual=lambda e, noise, t: (e["y"] - e["null"]) / s)
"""


def test_an_objective_of_a_file_gets_its_row_with_one_line(toy, suite, tmp_path):
    """Beside the suite; the base stays as it is."""
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "mine.yaml").write_text(
        f"base: {suite}\nprompts: [a toy]\nseeds: [1]\nmethods: {{Mine: {{objective: mine.py:half}}}}\n"
    )
    assert bench(tmp_path / "mine.yaml", tmp_path / "out") == 0
    rows = rows_in(tmp_path / "out")
    assert sorted(row["method"] for row in rows.values()) == ["Mine", "strong", "weak"]
    (mine,) = [row for row in rows.values() if row["method"] == "Mine"]
    assert mine["predictions"] == pytest.approx(2 * 2 * 6 / 1000)  # two questions, two views, six steps
    assert "| runs | 1 | 1 | 1 |" in (tmp_path / "out" / "table.md").read_text()


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("{objective: mine.py:haff}", "the method Mine: objective mine.py:haff cannot be imported"),
        ("{objective: {name: sds, reward: nowhere}}", "the method Mine: objective.reward must be none, classifier or the folder"),
        ("{objective: {name: sds, guidance_scale: 0}}", "the method Mine: guidance needs s >= 1, got 0"),
        ("{}\nclip: nowhere", "nowhere/config.json is missing: expected a CLIP"),
    ],
)
def test_a_method_that_could_not_begin_is_refused_before_any_run(method, says, toy, suite, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "mine.yaml").write_text(f"base: {suite}\nmethods:\n  Mine: {method}\n")
    assert bench("mine.yaml", tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line.replace(f"{tmp_path}/", "")
    assert not (tmp_path / "out").exists()


def test_a_changed_suite_is_refused_before_anything_begins(whole, suite, tmp_path, capsys):
    file = tmp_path / "changed.yaml"
    file.write_text(f"base: {suite}\nmethods: {{weak: {{objective: {{name: lods-embedding, guidance_scale: 4}}}}}}\n")
    assert bench(file, whole[0]) == 2
    assert "objective.guidance_scale: 3.0 -> 4.0): pass another --out" in capsys.readouterr().err
