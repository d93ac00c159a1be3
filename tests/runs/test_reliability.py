"""What docs/dev/reliability.md promises: runs that are killed, that find the disk full, that meet NaNs or another process."""

import json
import os
import pickle
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest

from lods_jax.cli import main
from lods_jax.cli.command_line import parse
from lods_jax.config import dump
from lods_jax.runs import training_loop
from lods_jax.runs.run_directory import locked
from lods_jax.training import checkpoint, loop
from lods_jax.training.build import build
from lods_jax.training.scene_setups import read_shapes
from tests.toy import TINY, TOY, final, same

ROOT = Path(__file__).resolve().parents[2]
TINY_SD = ROOT / "tests" / "data" / "lods_parity" / "sd"
CODE = f"{TOY}\nimport sys; sys.exit(cli.main(sys.argv[1:]))"
LORA = ["--prior", str(TINY_SD), "--prior.rank", "2", "--objective", "lods-lora"]
NERF = ["--scene", "nerf", "--nerf.samples", "16", "--nerf.refresh-every", "3"]
pytestmark = pytest.mark.usefixtures("toy")


def process(*words: str, code: str = CODE, **options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-u", "-c", code, *words], text=True, cwd=ROOT, **options)


def run_to_end(*words: str, code: str = CODE) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code, *words], text=True, capture_output=True, cwd=ROOT, check=False)


# --- kills ------------------------------------------------------------------------------------------------------------------
def killed_again_and_again(folder: Path, flags: list[str], times: int, seed: int) -> int:
    """Runs, and resumes, with a SIGKILL at a random moment after each new checkpoint. Returns how many hit a run at work."""
    draw, kills, words = random.Random(seed), 0, [*flags, "--out", str(folder)]
    while kills < times:
        seen = checkpoint.steps(folder / "checkpoints")
        with process(*words, stdout=subprocess.DEVNULL) as child:
            while child.poll() is None and checkpoint.steps(folder / "checkpoints") == seen:
                time.sleep(0.005)
            time.sleep(draw.uniform(0, 0.3))
            kills += child.poll() is None
            child.send_signal(signal.SIGKILL)
        if checkpoint.steps(folder / "checkpoints"):  # else it begins again, which is what `resume` would do too
            words = ["resume", str(folder)]
        else:
            shutil.rmtree(folder, ignore_errors=True)
        if json.loads((folder / "run.json").read_text()).get("state") == "finished":
            break
    assert run_to_end("resume", str(folder)).returncode == 0
    return kills


def flags_of(kind: list[str], steps: int, every: int) -> list[str]:
    return [*TINY, *kind, "--steps", str(steps), "--checkpoint.every", str(every), "--checkpoint.keep", "3"]


@pytest.mark.slow
def test_two_kills_end_in_the_same_bits(tmp_path):
    flags = flags_of([], 60, 15)
    assert killed_again_and_again(tmp_path / "killed", flags, 2, seed=0) == 2
    assert main([*flags, "--out", str(tmp_path / "whole")]) == 0
    same(final(tmp_path / "killed", 60), final(tmp_path / "whole", 60))


@pytest.mark.slow
@pytest.mark.parametrize("learned", [[], LORA], ids=["embedding", "lora"])
@pytest.mark.parametrize("scene", [[], NERF], ids=["gaussians", "nerf"])
def test_twenty_kills_in_a_chain_end_in_the_same_bits(tmp_path, scene, learned):
    """A checkpoint after each step or two, so that there are enough of them; refinement and occupancy change between them."""
    flags = flags_of([*scene, *learned], 60, 1)
    assert killed_again_and_again(tmp_path / "killed", flags, 20, seed=1) == 20
    assert main([*flags, "--out", str(tmp_path / "whole")]) == 0
    same(final(tmp_path / "killed", 60), final(tmp_path / "whole", 60))


@contextmanager
def cutter(state, meta: dict, file: Path):
    """Yields (folder, n) -> the call of a save of this state that was cut, see tests/cut.py."""
    file.write_bytes(pickle.dumps(state))
    words = [sys.executable, "-m", "tests.cut", str(file), json.dumps(meta)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:

        def cut(folder: Path, n: int) -> str:
            print(folder, n, file=child.stdin, flush=True)
            return child.stdout.readline().strip()

        yield cut
        child.stdin.close()


@pytest.mark.slow
@pytest.mark.skipif((sys.platform, platform.machine()) != ("linux", "x86_64"), reason="ptrace of x86-64 Linux")
def test_a_save_that_is_killed_before_any_of_its_calls_costs_nothing(tmp_path):
    """Exhaustive: a save beside an older one is killed before the first call that changes a file, before the second, and so on,
    until five in a row come to their end: orbax's threads take turns as they like, and the number of calls varies a little.

    One of the two saves comes back bit for bit, the next save clears what the kill left, and from either the run ends alike.
    """
    config = parse([*TINY, "--steps", "6"]).settings
    components, folder = build(config), tmp_path / "cut"
    meta_of = lambda shapes: {"static": shapes._asdict(), "config": dump(config)}  # noqa: E731
    progress = loop.train(components, loop.first_state(components))
    whole = {p.done: (jax.tree.map(np.array, p.state), p.shapes) for p in progress}
    checkpoint.save(tmp_path / "start", whole[2][0], meta_of(whole[2][1]))
    calls, restored = [], {2: [], 4: []}
    with cutter(whole[4][0], meta_of(whole[4][1]), tmp_path / "state") as cut:
        while calls[-5:] != 5 * ["none"]:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(tmp_path / "start", folder)
            calls.append(cut(folder, len(calls) + 1))
            state, meta = checkpoint.restore(folder, whole[2][0], tell=lambda line: pytest.fail(line))
            restored[int(state.step)].append((state, read_shapes(meta["static"])))
            same(state, whole[int(state.step)][0])
            checkpoint.save(folder, whole[4][0], meta_of(whole[4][1]), keep=1)  # as the run does that goes on
            same(checkpoint.restore(folder, whole[2][0])[0], whole[4][0])
            assert [path.name for path in folder.iterdir()] == ["4"]
    older, newer, ended = len(restored[2]), len(restored[4]), calls.count("none")
    print(
        f"{len(calls) - ended} calls cut; restarts from the older save {older}, from the newer {newer}, {ended} of a whole save"
    )
    assert len(calls) > 60
    assert {"mkdir", "openat", "write", "writev", "fsync", "rename", "unlinkat"} <= {call.split()[0] for call in calls}
    for start in (restored[2][-1], restored[4][0]):
        *_, last = loop.train(components, *start)
        same(last.state, whole[6][0])


# --- the disk ---------------------------------------------------------------------------------------------------------------
FULL = f"""
import resource
{TOY}
import sys
from lods_jax.training import checkpoint
save, calls = checkpoint.save, []
def limited(folder, state, *rest):
    calls.append(1)
    if len(calls) in FAILING:  # no file may grow beyond some bytes: what a write to a full disk meets
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
    try:
        save(folder, state, *rest)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
checkpoint.save = limited
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(tmp_path):
    done = run_to_end(*TINY, "--checkpoint.every", "2", "--out", str(tmp_path / "run"), code=f"FAILING = (2,)\n{FULL}")
    assert done.returncode == 0, done.stderr
    assert "the checkpoint of step 4 could not be written, training goes on" in done.stdout
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [2, 6, 8]
    final(tmp_path / "run")


@pytest.mark.slow
def test_it_costs_the_run_where_that_is_asked_for_or_nothing_would_be_left(tmp_path):
    stopping = ["--checkpoint.every", "2", "--checkpoint.on-error", "stop", "--out", str(tmp_path / "stop")]
    done = run_to_end(*TINY, *stopping, code=f"FAILING = (2,)\n{FULL}")
    assert done.returncode == 2
    assert "lods: the checkpoint of step 4 could not be written" in done.stderr
    final(tmp_path / "stop", 2)
    done = run_to_end(*TINY, "--out", str(tmp_path / "last"), code=f"FAILING = (2,)\n{FULL}")
    assert done.returncode == 2
    assert "the checkpoint of step 8 could not be written" in done.stderr
    final(tmp_path / "last", 4)


def test_a_preview_that_fails_in_the_last_step_costs_no_checkpoint(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise RuntimeError("RESOURCE_EXHAUSTED: a preview is too much")

    monkeypatch.setattr(training_loop, "write_preview", full)
    assert main([*TINY, "--output.preview-every", "4", "--out", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.count("a preview could not be written, training goes on") == 2
    final(tmp_path / "run")


def test_a_finished_run_without_its_checkpoints_is_not_written_over(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main([*TINY, "--out", str(folder)]) == 0
    shutil.rmtree(folder / "checkpoints")
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != ".lock"}
    assert main(["resume", str(folder)]) == 2
    assert "is finished and has no checkpoint" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in before} == before


# --- other processes, other settings ------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reliable") / "whole"
    assert main([*TINY, "--out", str(folder)]) == 0
    return folder


def test_a_folder_is_written_by_one_process(whole, capsys):
    with locked(whole):
        assert main(["resume", str(whole)]) == 2
    assert f"{whole} is being written by process {os.getpid()} on" in capsys.readouterr().err
    assert main(["resume", str(whole)]) == 0


HOLD = """
import pathlib, sys, time
from lods_jax.runs.run_directory import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held")
    time.sleep(60)
"""


def test_the_lock_of_a_killed_process_is_none(whole, capsys):
    with process(str(whole), code=HOLD, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        assert main(["resume", str(whole)]) == 2
        child.kill()
    assert main(["resume", str(whole)]) == 0
    capsys.readouterr()


def test_changed_settings_are_refused_with_the_difference_unless_asked_for(whole, tmp_path, capsys):
    folder = tmp_path / "changed"
    shutil.copytree(whole, folder)
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("steps: 8", "steps: 10").replace("frames: 4", "frames: 3"))
    assert main(["resume", str(folder)]) == 2
    said = capsys.readouterr().err
    assert "have changed since its checkpoint: steps: 8 -> 10. Put them back" in said
    assert main(["resume", str(folder), "--changed"]) == 0
    final(folder, 10)


# --- NaNs -------------------------------------------------------------------------------------------------------------------
NAN = f"""
{TOY}
import sys
import jax.numpy as jnp
from lods_jax.distillation import latents
encode = latents.encode_each
latents.encode_each = lambda *args: jnp.log(encode(*args) - 1e9)
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_the_first_tensor_that_is_not_finite_is_named(tmp_path):
    done = run_to_end(*TINY, "--out", str(tmp_path / "a"), code=NAN)
    said = "2 of the 2 updates up to step 4 were not finite and changed nothing: the first in step 3, in the fit loss"
    assert said in done.stdout


@pytest.mark.slow
def test_the_operation_that_gives_a_nan_is_found_on_demand(tmp_path):
    done = run_to_end(*TINY, "--debug-nans", "--out", str(tmp_path / "b"), code=NAN)
    assert done.returncode == 1
    assert "FloatingPointError: invalid value (nan) encountered in log" in done.stderr
    assert json.loads((tmp_path / "b" / "run.json").read_text())["state"] == "failed"
