"""Evaluate, compare and view, on whole runs and on what a crash leaves."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lods_jax.cli import main
from lods_jax.config import load
from lods_jax.priors.clip import FIGURES as FIGURES_OF_CLIP
from lods_jax.priors.clip import load_clip
from lods_jax.runs import evaluate, view
from lods_jax.runs.run_directory import read_run
from lods_jax.scenes.ply import read_ply
from lods_jax.tabletop.measure import FIGURES

CLIP = Path(__file__).resolve().parents[1] / "data" / "clip"
TINY = [
    "text-to-3d", "a red mug", "--prior", "exact-gaussians", "--steps", "4", "--batch", "2", "--resolution", "16",
    "--output.size", "32", "--output.frames", "4", "--output.log-every", "2", "--gaussians.capacity", "64",
    "--gaussians.init-count", "40", "--gaussians.init-scale", "0.2", "--checkpoint.every", "2", "--output.preview-every", "2",
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert main([*TINY, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def killed(whole, tmp_path):
    """What kill -9 in the middle leaves: no note on the end, no results; the checkpoint and the preview of step 2."""
    folder = tmp_path / "killed"
    shutil.copytree(whole, folder)
    for name in ("video.mp4", "stills.png", "index.html"):
        (folder / name).unlink()
    shutil.rmtree(folder / "stills")
    shutil.rmtree(folder / "checkpoints" / "4")
    (folder / "run.json").write_text('{"state": "running"}')
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join(lines[:2]) + '\n{"step": 4, "fo')
    return folder


def test_evaluate_prints_a_table_and_writes_json(whole, tmp_path, capsys):
    assert main(["evaluate", str(whole), "--json", str(tmp_path / "figures.json")]) == 0
    out = capsys.readouterr().out
    (row,) = json.loads((tmp_path / "figures.json").read_text())
    assert set(FIGURES) <= set(row)
    assert FIGURES["kid"] in out
    assert all(name in out for name in ("kind", "kid", "predictions", "lods-lora"))
    assert row["step"] == 4
    # Two questions for the score and one for the fit, of two views each, four times.
    assert row["predictions"] == pytest.approx(3 * 2 * 4 / 1000)
    assert row["gaussians"] == len(read_ply(whole / "scene.ply")["means"])
    assert "missing" not in row
    assert json.loads((whole / "figures.json").read_text()) == row
    assert "Figures against the true object after step 4" in (whole / "index.html").read_text()


def test_a_run_is_seen_through_its_own_3d_filter(whole):
    """It is as wide as a pixel of the run's own training. Runs that differ in the prompt alone share what is compiled."""
    run = read_run(whole)
    renderer = lambda **changes: evaluate.shared_renderer(run._replace(config=replace(run.config, **changes)), 32)  # noqa: E731
    assert renderer(prompt="a blue mug") is renderer()
    for changes in ({"resolution": 8}, {"resolution_after": 32}, {"camera": replace(run.config.camera, extent=(0.5, 0.6))}):
        assert renderer(**changes) is not renderer()


def test_clip_judges_any_prompt(killed, tmp_path, capsys):
    """Also one that has no truth. The figures stand in the table, in the JSON and on the page."""
    text = (killed / "config.yaml").read_text().replace("a red mug", "a corgi")
    (killed / "config.yaml").write_text(text)
    (killed / "index.html").write_text("")
    (tmp_path / "prompts.txt").write_text("a blue chair\na red car\n")
    flags = ["--clip", str(CLIP), "--prompts", str(tmp_path / "prompts.txt"), "--json", str(tmp_path / "figures.json")]
    assert main(["evaluate", str(killed), *flags]) == 0
    (row,) = json.loads((tmp_path / "figures.json").read_text())
    run, clip = read_run(killed), load_clip(CLIP)
    assert row["clip_score"] == pytest.approx(evaluate.clip_figures(run, clip, [])["clip_score"])
    assert row["clip_r_precision"] * evaluate.VIEWS == pytest.approx(round(row["clip_r_precision"] * evaluate.VIEWS))
    assert FIGURES_OF_CLIP["clip_score"] in capsys.readouterr().out
    assert "clip_score" in (killed / "index.html").read_text()


def test_prompts_without_a_clip_are_refused(whole, capsys):
    assert main(["evaluate", str(whole), "--prompts", "tabletop"]) == 2
    assert "pass --clip too" in capsys.readouterr().err


def test_a_link_in_the_place_of_the_figures_is_not_written_through(killed, tmp_path, capsys):
    private = tmp_path / "private.json"
    private.write_text("mine")
    (killed / "figures.json").unlink(missing_ok=True)
    (killed / "figures.json").symlink_to(private)
    assert main(["evaluate", str(killed)]) == 0
    assert private.read_text() == "mine"
    assert "figures.json is no regular file" in capsys.readouterr().out


def test_evaluate_measures_what_a_killed_run_has(killed, capsys):
    row = evaluate.evaluate(read_run(killed))
    assert row["step"] == 2
    assert row["end"] == "running, step 2 of 4"
    assert np.isfinite(row["kid"])


def test_evaluate_says_what_is_missing(killed, tmp_path, capsys):
    shutil.rmtree(killed / "checkpoints")
    assert main(["evaluate", str(killed)]) == 0
    out = capsys.readouterr().out
    assert "no checkpoint to measure" in out
    assert "running, step 2 of 4" in out
    assert "predictions" in out  # what the log knows is there


def test_a_prompt_of_another_world_has_no_truth(killed):
    text = (killed / "config.yaml").read_text().replace("a red mug", "a corgi")
    (killed / "config.yaml").write_text(text)
    row = evaluate.evaluate(read_run(killed))
    assert "no figures against the truth" in row["missing"]
    assert row["gaussians"] > 0


@pytest.mark.parametrize("command", ["evaluate", "compare", "view"])
def test_what_is_no_run_is_refused_in_a_line(command, tmp_path, capsys):
    assert main([command, str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "holds no run" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_without_runs_there_is_nothing_to_do(command, capsys):
    assert main([command]) == 2
    assert "at least one run" in capsys.readouterr().err


def test_a_finished_run_has_a_page(whole):
    text = (whole / "index.html").read_text()
    assert "a red mug" in text
    assert "<canvas" in text
    assert "missing" not in text.split("</style>")[1].lower().split("<script>")[0]


def test_compare_puts_runs_and_the_truth_side_by_side(whole, killed, tmp_path, capsys):
    assert main(["compare", str(whole), str(killed), "--out", str(tmp_path / "c.html")]) == 0
    out = capsys.readouterr().out
    assert out.count("missing:") == 1
    assert "video.mp4" in out
    text = (tmp_path / "c.html").read_text()
    assert text.count("<canvas") == 3  # two runs and the true object
    assert "the true object" in text


def test_a_preview_leaves_the_scene_for_whoever_looks(killed):
    assert (killed / "scene.ply").exists()
    assert (killed / "scene.splat").exists()


# --- viewer -----------------------------------------------------------------------------------------------------------------
def test_the_viewer_gets_covariances_and_colours():
    """A turn by 90 degrees about z puts the long axis from x to y."""
    splats = {
        "means": np.zeros((2, 3), np.float32),
        "quats": np.array([[2, 0, 0, 0], [1, 0, 0, 1]], np.float32),
        "log_scales": np.log(np.tile([[3.0, 2.0, 1.0]], (2, 1))).astype(np.float32),
        "opacity_logits": np.array([0.0, 100.0], np.float32),
        "sh": np.array([[[0.0, 9.0, -9.0]]] * 2, np.float32),
    }
    shown = view.as_viser(splats)
    np.testing.assert_allclose(shown["covariances"], [np.diag([9, 4, 1]), np.diag([4, 9, 1])], atol=1e-5)
    np.testing.assert_allclose(shown["rgbs"], [[0.5, 1, 0]] * 2)
    np.testing.assert_allclose(shown["opacities"], [[0.5], [1]])


def test_the_viewer_shows_a_scene_again_when_it_has_changed(whole, monkeypatch, tmp_path):
    monkeypatch.setattr(view, "EVERY", 0.01)
    file = tmp_path / "scene.ply"
    shutil.copy(whole / "scene.ply", file)
    changes = view.changes(file)
    assert next(changes) == file
    file.touch()
    assert next(changes) == file


def test_the_viewer_listens_on_this_machine_alone(whole, monkeypatch, capsys):
    """A real server: it says where it is, and refuses other addresses by listening on the loopback address only."""
    viser = pytest.importorskip("viser")
    made = []
    start = viser.ViserServer

    def watched(**options):
        made.append(options)
        return start(**options)

    monkeypatch.setattr(viser, "ViserServer", watched)
    monkeypatch.setattr(view, "changes", lambda file: iter([file]))
    view.view(whole, port=18_080)
    assert made[0]["host"] == "127.0.0.1"
    out = capsys.readouterr().out
    assert "http://127.0.0.1:" in out
    assert "Gaussians, step 4" in out


# --- event files ------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_event_files_hold_what_the_log_holds(tmp_path):
    pytest.importorskip("tensorboardX")
    assert main([*TINY, "--steps", "2", "--output.tensorboard", "--out", str(tmp_path / "run")]) == 0
    assert load(tmp_path / "run" / "config.yaml").output.tensorboard
    (file,) = (tmp_path / "run" / "events").iterdir()
    assert b"psi_displacement" in file.read_bytes()


def test_event_files_without_their_library_are_refused_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main([*TINY, "--output.tensorboard", "--out", str(tmp_path / "run")]) == 2
    assert "lods_jax[log]" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
