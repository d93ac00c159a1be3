"""Laws of a run: what it leaves, that it goes on bit for bit, that it refuses.

On a prior in closed form, which compiles in seconds; one run goes through a tiny Stable Diffusion with random weights.
"""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from lods_jax.cli import main
from lods_jax.cli.command_line import parse
from lods_jax.config import load
from lods_jax.distillation.registry import make_objective
from lods_jax.priors.adapter_files import load_lora
from lods_jax.runs import run, training_loop
from lods_jax.runs.run_directory import read_run
from lods_jax.scenes.ply import read_ply
from lods_jax.training import gaussian_setup, loop
from lods_jax.training.build import build
from lods_jax.training.compilation import compilations
from tests.toy import TINY, TOY, final, metrics, same

TINY_SD = Path(__file__).parents[1] / "data" / "lods_parity" / "sd"
pytestmark = pytest.mark.usefixtures("toy")


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("run") / "whole"
    assert main([*TINY, "--out", str(folder)]) == 0
    return folder


def test_a_run_leaves_what_it_promises(whole):
    assert (whole / "video.mp4").stat().st_size > 500
    assert Image.open(whole / "stills.png").size == (4 * 32, 2 * 32)
    assert len(list((whole / "stills").iterdir())) == 8
    splats, state = read_ply(whole / "scene.ply"), final(whole)
    assert len(splats["means"]) == state.aux["alive"].sum()
    note = json.loads((whole / "run.json").read_text())
    assert (note["state"], note["step"], note["skipped"]) == ("finished", 8, 0)
    assert set(note["seconds"]) == {"compile", "optimise", "write"}
    assert [line["step"] for line in metrics(whole)] == [1, 2, 4, 6, 8]
    assert {"fit", "score_rms", "psi_displacement", "fit_gain", "gaussians"} <= set(metrics(whole)[0])


def test_the_learned_branch_moves_and_says_so(whole):
    moved = [line["psi_displacement"] for line in metrics(whole)]
    assert all(a < b for a, b in itertools.pairwise(moved))


def test_config_yaml_repeats_the_run_bit_for_bit(whole, tmp_path):
    assert main(["text-to-3d", "--anyway", "--config", str(whole / "config.yaml"), "--out", str(tmp_path / "again")]) == 0
    same(final(tmp_path / "again"), final(whole))


def test_a_killed_run_goes_on_bit_for_bit(whole, tmp_path):
    """What a kill after step 4 leaves: the checkpoint of step 4, metrics up to 6 and half a line."""
    import shutil

    folder = tmp_path / "killed"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "checkpoints" / "8")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join(lines[:4]) + '\n{"step": 8, "fi')
    assert main(["resume", str(folder)]) == 0
    same(final(folder), final(whole))
    assert without_time(metrics(folder)) == without_time(metrics(whole))


def without_time(rows):
    return [{name: x for name, x in row.items() if name != "seconds"} for row in rows]


def test_the_log_of_a_resumed_run_is_that_of_an_uninterrupted_one_line_for_line(tmp_path):
    """Checkpoints between two lines of the log: step 3, whose line of step 2 is behind it and of step 4 ahead."""
    import shutil

    folder = tmp_path / "run"
    assert main([*TINY, "--checkpoint.every", "3", "--out", str(folder)]) == 0
    rows = metrics(folder)
    for step in (6, 8):
        shutil.rmtree(folder / "checkpoints" / str(step))
    # A signal after step 3 would have asked for a line, which the uninterrupted run does not have.
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (rows[0], rows[1], rows[1] | {"step": 3})))
    assert main(["resume", str(folder)]) == 0
    assert without_time(metrics(folder)) == without_time(rows)
    assert [row["step"] for row in rows] == [1, 2, 4, 6, 8]
    seconds = [row["seconds"] for row in metrics(folder)]
    assert seconds == sorted(seconds)


def test_a_finished_run_can_be_resumed_and_stays_as_it_is(whole, tmp_path):
    import shutil

    shutil.copytree(whole, tmp_path / "copy")
    assert main(["resume", str(tmp_path / "copy")]) == 0
    same(final(tmp_path / "copy"), final(whole))


def test_ctrl_c_writes_the_results_and_the_run_goes_on_from_there(whole, tmp_path):
    folder = tmp_path / "stopped"
    code = f"{TOY}\nimport sys; sys.exit(cli.main(sys.argv[1:]))"
    command = [sys.executable, "-u", "-c", code, *TINY, "--output.log-every", "1", "--out", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("optimise"):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stdout.read()
    assert process.returncode == 130
    assert "lods resume" in rest
    note = json.loads((folder / "run.json").read_text())
    assert note["state"] == "stopped"
    assert note["step"] < 8
    assert (folder / "video.mp4").exists()
    assert main(["resume", str(folder)]) == 0
    same(final(folder).theta, final(whole).theta)


@pytest.mark.slow
def test_a_run_with_lora_on_a_stable_diffusion_folder_leaves_what_it_learned(tmp_path):
    folder = tmp_path / "lora"
    flags = ["--prior", str(TINY_SD), "--prior.rank", "2", "--objective", "lods-lora", "--steps", "1", "--out", str(folder)]
    assert main([*TINY, *flags]) == 0
    prior = build(load(folder / "config.yaml"))
    lora, scale = load_lora(folder / "pytorch_lora_weights.safetensors", prior.weights["unet"])
    assert scale == 1  # it is in the weights
    assert json.loads((folder / "run.json").read_text())["prior_sha256"]
    assert {factors["down"].shape[1] for factors in lora.values()} == {2}
    assert max(float(np.abs(factors["up"]).max()) for factors in lora.values()) > 0


@pytest.mark.slow
def test_a_run_on_two_devices_leaves_the_same_things(whole, tmp_path):
    code = f"{TOY}\nimport sys; sys.exit(cli.main(sys.argv[1:]))"
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "2"}
    subprocess.run([sys.executable, "-c", code, *TINY, "--out", str(tmp_path / "two")], env=env, check=True)
    assert len(json.loads((tmp_path / "two" / "run.json").read_text())["devices"]) == 2
    names = lambda folder: {str(file.relative_to(folder)) for file in folder.glob("*")}  # noqa: E731
    assert names(tmp_path / "two") == names(whole)
    # Rounding differs, Adam with a tiny eps makes whole steps of it, and a near tie of what is split may fall the other way.
    moved = np.abs(final(tmp_path / "two").theta["means"] - final(whole).theta["means"]).max(1)
    assert np.mean(moved < 0.1) > 0.95
    two, one = (np.asarray(Image.open(folder / "stills.png").convert("RGB"), np.float64) for folder in (tmp_path / "two", whole))
    assert one.std() > 5
    assert 20 * np.log10(255 / np.sqrt(np.mean((two - one) ** 2))) > 35


def test_a_seed_changes_the_run(whole, tmp_path):
    assert main([*TINY, "--seed", "1", "--out", str(tmp_path / "other")]) == 0
    assert np.abs(final(tmp_path / "other").theta["means"] - final(whole).theta["means"]).max() > 1e-3


def test_room_for_intersections_grows_when_it_is_too_small(monkeypatch):
    """The plan hangs on the state alone, so a resumed run plans alike."""
    monkeypatch.setattr(gaussian_setup, "INTERSECTIONS_PER_GAUSSIAN", 1)
    monkeypatch.setattr(loop, "PLAN_EVERY", 2)
    config = parse([*TINY, "--gaussians.init-count", "64", "--steps", "3"]).settings
    components = build(config)
    progress = [(p.shapes.capacity, int(p.state.aux["total"])) for p in loop.train(components, loop.first_state(components))]
    assert progress[0][0] == 64
    assert progress[1][0] >= 1.1 * progress[1][1] > 64


def test_renders_grow_at_the_switch_and_the_room_for_them(monkeypatch):
    monkeypatch.setattr(gaussian_setup, "INTERSECTIONS_PER_GAUSSIAN", 1)
    config = parse([*TINY, "--resolution-after", "32", "--steps", "4"]).settings
    components = build(config)
    first = components.setup.choose_shapes(16, None)
    with compilations() as spans:
        statics = [p.shapes for p in loop.train(components, loop.first_state(components))]  # of the next step each
    assert [shapes.resolution for shapes in statics] == [16, 32, 32, 32]
    assert statics[1].capacity >= statics[0].capacity
    names = [span.name for span in spans if span.stage == "backend_compile"]
    assert names.count("jit(step)") == len({first, *statics[:-1]})  # once a static shape
    assert names.count("jit(gaussian_refine)") == 1


NAN = """
from lods_jax.core.types import Objective, Query
def nan(): return Objective({"y": Query("prompt")}, lambda e, noise, t: e["y"] * float("nan"))
def s_only(s=1.0): return Objective({"y": Query("prompt")}, lambda e, noise, t: s * (e["y"] - noise))
def wrong(): return 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_objectives.py").write_text(NAN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_an_objective_of_ones_own_runs_by_its_name(own):
    assert main([*TINY, "--objective", "own_objectives:s_only", "--guidance-scale", "2", "--steps", "1", "--out", "o"]) == 0
    assert "psi_displacement" not in metrics(own / "o")[0]


def test_an_objective_of_a_file_may_use_a_dataclass(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom lods_jax import objectives\n"
        "@dataclass\nclass Own:\n    scale: float = 2.0\ndef mine(): return objectives.sds(Own().scale)"
    )
    assert make_objective(f"{tmp_path / 'mine.py'}:mine").trained_query is None


def test_a_run_without_a_finite_gradient_ends_in_one_line_with_a_whole_checkpoint(own, capsys, monkeypatch):
    monkeypatch.setattr(training_loop, "GIVE_UP", 3)
    assert main([*TINY, "--objective", "own_objectives:nan", "--out", "o", "--checkpoint.every", "2"]) == 2
    out = capsys.readouterr()
    assert "none of the last" in out.err
    assert out.err.count("\n") == 1
    assert "were not finite and changed nothing" in out.out
    assert json.loads((own / "o" / "run.json").read_text())["state"] == "failed"
    state = final(own / "o", 2)
    assert int(state.skipped) == 2
    assert all(bool(np.isfinite(x).all()) for x in jax.tree.leaves(state.theta))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--objective", "own_objectives:wrong"], "must give a lods_jax.core.types.Objective, got a int"),
        (["--objective", "own_objectives:absent"], "cannot be imported"),
        (["--objective", "sdss"], "unknown objective sdss; there are sds, csd"),
        (["--objective", "dds"], "compares with a source object: use edit-3d"),
        (["--objective", "sds-bridge"], "asks with the text 'source': pass --source-prompt"),
        (["--objective", "csd", "--guidance-scale", "3"], "objective csd takes no s"),
        (["--guidance-scale", "0.5"], "guidance needs s >= 1, got 0.5"),
        (["--resolution", "0"], "resolution must lie in 8..2048, got 0"),
        (["--gaussians.capacity", "65536", "--output.size", "2048"], "output.size and gaussians.capacity do not fit"),
        (["--stesp", "3"], "no --stesp; the nearest is --steps"),
        (["--config", "nothing.yaml"], "no file nothing.yaml, and no preset"),
        (["--prior", "/nowhere"], "no prior at /nowhere"),
        (["--gaussians.init-type", "/nowhere.ply"], "/nowhere.ply"),
        (["--prompt=x"], "no --prompt"),
        (["--perp-neg", "--view-words", "off"], "view_words is off: pass --no-perp-neg, or --view-words on"),
        (["--prior.lora-scale", "0.8"], "the scale of a LoRA file, and there is none: pass --prior.lora FILE too"),
        (["--objective.noise-weights", "best"], "objective.noise_weights is of a reward, and there is none, got best"),
        (["--objective.noises", "2"], "objective.noises is of a reward, and there is none, got 2: pass --objective.reward too"),
        (["--objective.reward", "classifier", "--objective.reward-margin", "1"], "pass --objective.noise-weights preference too"),
        (["--config", "sdxl-gaussians-lods-lora", "--prior", "stable-diffusion-xl-base-1.0"], "an architecture by name"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(own, capsys, flags, says):
    before = sorted(own.rglob("*"))
    assert main([*TINY, *flags, "--out", "o"]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
    assert [path for path in sorted(own.rglob("*")) if "__pycache__" not in str(path)] == before


def test_want_of_memory_is_one_line_that_says_what_makes_a_step_smaller(own, capsys, monkeypatch):
    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED:\nOut of memory allocating 9 bytes.")

    monkeypatch.setattr(run, "training_loop", full)
    assert main([*TINY, "--resolution", "128", "--out", "o"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lods: a step does not fit into memory: RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.;")
    assert line.endswith("--batch, --resolution")
    assert read_run(own / "o").end.startswith("failed: UserError: a step does not fit into memory")


def test_a_run_that_starts_from_a_file_says_how_and_needs_it_no_more(own, capsys):
    """A cloud in map coordinates is brought into view; with the file gone, the run is resumed bit for bit, and exported."""
    cloud = Path(own, "cloud.ply")
    points = np.random.default_rng(0).normal(size=(60, 3)) * 30 + [4.5e5, 5.8e6, 100]
    head = ["ply", "format ascii 1.0", "element vertex 60", *(f"property double {x}" for x in "xyz"), "end_header"]
    cloud.write_text("\n".join([*head, *(" ".join(f"{x:.3f}" for x in point) for point in points)]))
    assert main([*TINY, "--gaussians.init-type", "cloud.ply", "--out", "o"]) == 0
    out = capsys.readouterr().out
    assert "scene     cloud.ply: it has no colours" in out
    assert "scene     cloud.ply: 0% of the points lie within" in out
    assert (
        "scene     cloud.ply: 40 of its 60 rows are drawn at random: pass --gaussians.init-count 60 --gaussians.capacity 120"
        in out
    )
    means = read_ply(own / "o" / "scene.ply")["means"]
    assert np.linalg.norm(means, axis=1).max() < 2
    cloud.unlink()
    end = final(own / "o")
    shutil.rmtree(own / "o" / "checkpoints" / "8")
    assert main(["resume", "o"]) == 0
    same(final(own / "o"), end)
    assert main(["export", "o", "--to", "splat"]) == 0


def test_a_folder_that_holds_something_is_never_written_to(whole, capsys):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    assert main([*TINY, "--out", str(whole)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


def test_resuming_no_run_is_refused(tmp_path, capsys):
    assert main(["resume", str(tmp_path)]) == 2
    assert "config.yaml is missing" in capsys.readouterr().err


def test_runs_lie_in_outputs_with_a_link_to_the_latest(own):
    for _ in range(2):  # the same command twice works twice
        assert main([*TINY, "--steps", "1", "--out", f"outputs/text-to-3d/a-thing/{_}"]) == 0
    assert (own / "outputs" / "latest").resolve() == (own / "outputs" / "text-to-3d" / "a-thing" / "1").resolve()


def test_print_config_prints_what_would_run(capsys, tmp_path):
    assert main([*TINY, "--print-config"]) == 0
    file = tmp_path / "c.yaml"
    file.write_text(capsys.readouterr().out)
    assert load(file) == parse(TINY).settings


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("steps: 11\nbatch: 3\nobjective: {name: lods-embedding, s: 50}")
    config = parse(["text-to-3d", "a red mug", "--config", str(file), "--steps", "12"]).settings
    assert (config.steps, config.batch, config.resolution, config.objective.guidance_scale) == (12, 3, 64, 50.0)
    # Another objective does not inherit the parameters of the file's.
    assert parse(["text-to-3d", "x", "--config", str(file), "--objective", "csd"]).settings.objective.guidance_scale is None


def test_info_without_an_ffmpeg_says_so_and_goes_on(capsys, monkeypatch):
    def none():
        raise RuntimeError("no ffmpeg: install it")

    monkeypatch.setattr("lods_jax.core.videos.ffmpeg_path", none)
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert "no ffmpeg: install it" in out
    assert "tabletop" in out


def test_info_tells_devices_ffmpeg_and_the_prior(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("device", "ffmpeg", "tabletop", "SHA-256"))


def test_particles_are_distilled_refined_and_shown_side_by_side(tmp_path):
    assert main([*TINY, "--particles", "2", "--objective", "vsd", "--out", str(tmp_path / "two")]) == 0
    state = final(tmp_path / "two")
    assert state.theta["means"].shape == (2, 64, 3)
    assert (np.sum(np.asarray(state.aux["alive"]), 1) > 40).all()  # both have grown
    assert Image.open(tmp_path / "two" / "stills" / "000.png").size == (64, 32)
    first, second = (read_ply(tmp_path / "two" / name)["means"] for name in ("scene.ply", "particles/1/scene.ply"))
    assert not np.array_equal(first[:4], second[:4])


def test_particles_must_divide_the_batch(capsys):
    assert main([*TINY, "--particles", "3"]) == 2
    assert "batch must be a multiple of particles = 3, got 2: pass --batch" in capsys.readouterr().err
