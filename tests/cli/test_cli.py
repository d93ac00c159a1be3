"""The command line as a person meets it: fast help, one-line refusals with exit code 2, files where they were promised."""

import re
import subprocess
import sys
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lods_jax import config as configs
from lods_jax.cli import main
from lods_jax.cli.command_line import parse, preset
from lods_jax.cli.commands import RUN
from lods_jax.cli.flags import COMMANDS
from lods_jax.core.paths import CLASSIFIER, TABLETOP, TABLETOP_64, WEIGHTS


def refused(capsys, *argv) -> str:
    """The one line that a refused command prints."""
    assert main(list(argv)) == 2
    out = capsys.readouterr()
    assert out.out == ""
    assert out.err.count("\n") == 1
    return out.err


def test_every_command_does_something():
    assert set(RUN) == set(COMMANDS.values())


def test_help_names_every_command_without_loading_jax():
    code = "import sys; from lods_jax.cli import main\ntry: main(['--help'])\nfinally: print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "text-to-image" in done.stdout
    assert "train-prior" in done.stdout
    assert done.stdout.strip().endswith("False")


def test_unknown_words_are_named_with_prompts_that_would_do(capsys):
    line = refused(capsys, "text-to-image", "a red teapot, front view")
    assert "never seen the words teapot" in line
    assert "'a red robot'" in line or "'a red" in line
    assert "--prior DIR" in line
    assert "--anyway" in line


@pytest.mark.parametrize(("command", "given"), [("text-to-3d", "a red mug"), ("image-to-3d", "mug.png")])
def test_whatever_is_on_can_be_turned_off_by_a_flag(command, given):
    """A setting in a section too: --no-perp-neg, but --prior.no-remat."""
    settings = preset([command, given], "image-" if command == "image-to-3d" else "")
    switches = [key for key in configs.keys(type(settings)) if isinstance(attrgetter(key)(settings), bool)]
    assert {"perp_neg", "prior.remat"} <= {*switches}
    for state, prefix in ((True, ""), (False, "no-")):
        flags = ["--" + re.sub(r"(\w+)$", rf"{prefix}\1", key).replace("_", "-") for key in switches]
        parsed = parse([command, given, *flags])
        assert [attrgetter(key)(parsed.settings) for key in switches] == [state] * len(switches)


def test_of_a_flag_that_is_given_twice_the_last_counts(tmp_path):
    """For the preset too that a command starts from."""
    for name, steps in (("a", 3), ("b", 4)):
        (tmp_path / f"{name}.yaml").write_text(f"steps: {steps}")
    twice = ["--config", f"{tmp_path / 'a.yaml'}", "--config", f"{tmp_path / 'b.yaml'}"]
    assert preset(["text-to-3d", "a red mug", *twice]).steps == 4
    once = parse(["text-to-3d", "a red mug", "--objective", "sds"]).settings
    assert parse(["text-to-3d", "a red mug", "--objective", "lods-lora", "--objective=sds"]).settings == once
    assert preset(["text-to-3d", "a red mug", "--scene", "gaussians", "--scene", "nerf"]).nerf.size == "tiny-64"


def test_a_file_of_settings_may_name_the_picture_to_write(tmp_path):
    (tmp_path / "mine.yaml").write_text("out: here.png\nsteps: 7")
    command = parse(["text-to-image", "a red mug", "--config", str(tmp_path / "mine.yaml")])
    assert (command.out, command.steps) == (Path("here.png"), 7)


@pytest.mark.parametrize("prompt", ["", "  ", "a red\0mug", "mug " * 1000])
def test_impossible_prompts_are_refused(capsys, prompt):
    said = refused(capsys, "text-to-image", prompt)
    assert re.search("the prompt (must be 1 to 2000 characters|holds the control character)", said)


def test_a_missing_prior_is_refused(capsys, tmp_path):
    assert f"no prior at {tmp_path}" in refused(capsys, "text-to-image", "a red mug", "--prior", str(tmp_path))


@pytest.mark.parametrize("flags", [("--n", "0"), ("--steps", "0"), ("--steps", "1001"), ("--n", "-3")])
def test_impossible_sizes_are_refused(capsys, flags):
    assert re.search("must lie in|samples take", refused(capsys, "text-to-image", "a red mug", *flags))


@pytest.mark.parametrize("flags", [("--prior.memory", "auto"), ("--prior.view-chunk", "1"), ("--prior.vae-slicing",)])
def test_images_take_no_memory_plan(capsys, flags):
    said = refused(capsys, "text-to-image", "a red mug", *flags)
    assert f"{' '.join(flags[:2]).removesuffix(' 1')} is of runs in 3D: for images pass --batch" in said


@pytest.mark.slow
def test_two_samples_of_the_shipped_prior_differ_and_repeat(tmp_path, capsys):
    """Two seeds give two images; the same call gives the same bytes."""
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for file in files:
        assert main(["text-to-image", "a red mug, side view", "--n", "2", "--steps", "4", "--out", str(file)]) == 0
    images = [np.asarray(Image.open(file)) for file in files]
    np.testing.assert_array_equal(*images)
    left, right = np.split(images[0], 2, axis=1)
    assert np.abs(left.astype(float) - right).mean() > 1
    assert str(files[0]) in capsys.readouterr().out


@pytest.mark.parametrize(("task", "flags"), [("", []), ("", ["--scene", "nerf"]), ("image-", [])])
def test_only_the_prior_of_four_views_starts_with_little_guidance(task, flags):
    start = lambda *more: preset(["a-command", *flags, *more], task)  # noqa: E731
    assert start() == start("--prior", "tabletop-views")
    assert start().prior.name == "tabletop-views"
    assert start().objective.guidance_scale == 3
    assert start("--prior", "a folder").objective.guidance_scale == 1000
    assert start("--prior", "a folder", "--config", "views-gaussians-lods-lora").objective.guidance_scale == 3


def test_words_that_the_prior_has_never_seen_can_be_forced(tmp_path):
    assert main(["text-to-image", "a red teapot", "--n", "2", "--steps", "4", "--anyway", "--out", str(tmp_path / "x.png")]) == 0


def test_the_shipped_priors_are_small_and_complete():
    for folder in (TABLETOP, TABLETOP_64):
        names = {f.name for f in folder.iterdir()}
        assert {"model_index.json", "vocabulary.json", "training.json", "gates.json", "README.md"} <= names
    assert CLASSIFIER.is_file()
    assert sum(f.stat().st_size for f in WEIGHTS.rglob("*") if f.is_file()) <= 45e6


@pytest.mark.parametrize(
    ("flags", "module", "weights"),
    [
        ([], "evaluate", TABLETOP),
        (["--out", str(TABLETOP_64)], "evaluate", TABLETOP_64),
        (["--part", "pose"], "train_pose", TABLETOP_64 / "pose"),
    ],
)
def test_shipped_weights_are_measured_and_stay_as_they_are(flags, module, weights, tmp_path, monkeypatch):
    """Figures go to a folder of outputs/ that no prior is trained in."""
    asked = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(f"lods_jax.tabletop.{module}.report", lambda *folders: asked.append(folders))
    assert main(["train-prior", "--evaluate", *flags]) == 0
    [(measured, out)] = asked
    assert measured == weights
    assert (measured / "model_index.json").is_file()
    assert out.resolve().is_relative_to(tmp_path / "outputs")
    assert out != Path("outputs/prior")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--part", "flow", "--size", "64"], "--size is not for --part flow, got 64: leave it out"),
        (["--part", "pose", "--batch", "512"], "--batch is not for --part pose, got 512: leave it out"),
        (["--part", "classifier", "--optimizer", "adamw"], "--optimizer is not for --part classifier, got adamw: leave it out"),
        (["--part", "flow", "--evaluate"], "weights/128/flow to measure: train one by --part flow, or name its folder by --out"),
    ],
)
def test_a_part_of_the_prior_refuses_what_it_would_not_look_at(capsys, monkeypatch, tmp_path, flags, says):
    monkeypatch.chdir(tmp_path)
    assert says in refused(capsys, "train-prior", *flags)
    assert not list(tmp_path.iterdir())


def test_a_prior_of_ones_own_has_its_figures_beside_it(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("lods_jax.tabletop.evaluate.report", lambda *folders: asked.append(folders))
    assert main(["train-prior", "--evaluate", "--out", str(tmp_path / "mine")]) == 0
    assert asked == [(tmp_path / "mine", tmp_path / "mine")]
