"""Laws of checkpoints: what is restored is what was saved, bit for bit, or an older save, never anything else."""

import os
import shutil
import signal
import subprocess
import sys
import time
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lods_jax.core.types import TrainState
from lods_jax.training import checkpoint


@cache
def state(step: int, n: int = 5) -> TrainState:
    """A state with every kind of leaf: floats, a bool mask, integers, empty trees, and values that rounding would change."""
    theta = {"means": jnp.linspace(-1, 1, 3 * n).reshape(n, 3) / 3 + step, "sh": jnp.full((n, 1, 3), jnp.pi)}
    tx, tx_psi = optax.chain(optax.scale_by_adam(), optax.scale_by_schedule(lambda i: 1.0)), optax.adam(0.1)
    aux = {"alive": jnp.arange(n) % 2 == 0, "total": jnp.int32(2**31 - 1)}
    return TrainState(jnp.int32(step), theta, aux, {}, tx.init(theta), tx_psi.init({}), jnp.int32(1))


def same(a, b) -> bool:
    equal = lambda x, y: x.dtype == y.dtype and x.shape == y.shape and np.asarray(x).tobytes() == np.asarray(y).tobytes()  # noqa: E731
    return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.all(jax.tree.map(equal, a, b))


@pytest.fixture
def saves(tmp_path):
    """A folder with saves of steps 2 and 3."""
    for step in (1, 2, 3):
        checkpoint.save(tmp_path / "c", state(step), {"static": {"step": step}}, keep=2)
    return tmp_path / "c"


def test_the_newest_save_comes_back_bit_for_bit_with_its_meta(saves):
    restored, meta = checkpoint.restore(saves, jax.eval_shape(lambda x: x, state(0)))
    assert same(restored, state(3))
    assert meta == {"static": {"step": 3}}
    assert checkpoint.steps(saves) == [2, 3]


# orbax closes its event loop under a failed read and Python remarks on it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damage_anywhere_gives_the_same_state_or_the_one_before_with_a_word(saves):
    """One flipped bit, half a file or no file, for every file of the newest save: never other values."""
    files = [file.relative_to(saves) for file in sorted((saves / "3").rglob("*")) if file.is_file()]
    assert len(files) > 5
    whole, fell_back = saves.with_name("whole"), 0
    saves.rename(whole)
    for file in files:
        for harm in ("flip", "cut", "gone"):
            shutil.copytree(whole, saves)
            data = bytearray((saves / file).read_bytes())
            if harm == "flip" and data:
                data[len(data) // 2] ^= 16
            (saves / file).write_bytes(data if harm == "flip" else data[: len(data) // 2])
            if harm == "gone":
                (saves / file).unlink()
            lines = []
            restored, meta = checkpoint.restore(saves, state(0), tell=lines.append)
            if lines:
                assert "step 3 is damaged" in lines[0]
                assert len(lines) == 1
            fell_back += bool(lines)
            assert same(restored, state(2) if lines else state(3)), (file, harm)
            assert meta["static"]["step"] == int(restored.step)
            shutil.rmtree(saves)
    assert fell_back >= 9  # metadata and chunks, three harms each: damage that is found, not passed by


def test_a_changed_meta_is_damage_too(saves):
    file = saves / "3" / "note" / "metadata"
    file.write_text(file.read_text().replace('"step": 3', '"step": 7').replace('"step":3', '"step":7'))
    assert checkpoint.restore(saves, state(0), tell=lambda line: None)[1] == {"static": {"step": 2}}


def test_empty_and_stray_entries_are_no_saves(saves):
    (saves / "9").mkdir()
    (saves / "notes.txt").write_text("mine")
    assert same(checkpoint.restore(saves, state(0))[0], state(3))
    checkpoint.save(saves, state(4), {})
    assert checkpoint.steps(saves) == [3, 4]


def test_a_run_that_goes_on_from_an_older_save_replaces_the_newer_one(saves):
    (saves / "3" / "note" / "metadata").write_text("{")
    restored, _ = checkpoint.restore(saves, state(0), tell=lambda line: None)
    assert int(restored.step) == 2
    checkpoint.save(saves, state(3), {"again": True})
    assert checkpoint.restore(saves, state(0))[1] == {"again": True}


def test_nothing_whole_is_an_error_that_names_the_folder(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} holds no whole checkpoint"):
        checkpoint.restore(tmp_path, state(0))


def test_another_configuration_is_an_error_that_names_the_leaf(saves):
    with pytest.raises(ValueError, match=r"theta.means holds float32 \[5, 3\], expected float32 \[6, 3\]"):
        checkpoint.restore(saves, state(0, n=6))


def other(name, x):
    """A state with another value for one leaf, which is saved with its right hash as a run of other code would save it."""
    whole = state(4)
    if name == "theta":
        return whole.replace(theta=x)
    return whole.replace(theta=whole.theta | {name: x}) if name in whole.theta else whole.replace(**{name: x})


WRONG = {
    "another shape": (other("means", jnp.zeros((5, 4))), r"theta.means holds float32 \[5, 4\], expected float32 \[5, 3\]"),
    "another rank": (other("means", jnp.zeros(15)), r"theta.means holds float32 \[15\], expected"),
    "no axis": (other("means", jnp.float32(3)), r"theta.means holds float32 \[\], expected"),
    "half precision": (other("means", jnp.zeros((5, 3), jnp.bfloat16)), r"theta.means holds bfloat16 \[5, 3\], expected float32"),
    "integers": (other("means", jnp.zeros((5, 3), jnp.int32)), r"theta.means holds int32 \[5, 3\], expected float32"),
    "a leaf is missing": (other("theta", {"means": state(4).theta["means"]}), r"theta.sh holds nothing, expected float32"),
    "no leaf": (other("theta", {}), r"theta.means holds nothing"),
    "a leaf for a branch": (other("theta", jnp.zeros(3)), r"theta.means holds nothing"),
    "a branch for a leaf": (other("means", {"x": jnp.zeros(3)}), r"theta.means holds nothing"),
    "a float for the step": (state(4).replace(skipped=jnp.float32(1)), r"skipped holds float32 \[\], expected int32"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_the_configuration_is_one_line_that_names_the_leaf(tmp_path, name):
    saved, says = WRONG[name]
    checkpoint.save(tmp_path, saved, {})
    with pytest.raises(ValueError, match=f"4 is of another configuration: {says}"):
        checkpoint.restore(tmp_path, state(0))


def test_what_is_saved_beside_the_state_is_not_asked_for(tmp_path):
    more = other("theta", state(4).theta | {"more": jnp.zeros(9)})
    checkpoint.save(tmp_path, more, {})
    assert same(checkpoint.restore(tmp_path, state(0))[0], state(4))


@pytest.mark.parametrize(
    "note", ["[]", "{}", "3", '"text"', '{"meta": {}, "sha256": []}', '{"meta": {}, "sha256": {"a": 3}}', "[" * 10**5]
)
def test_a_note_of_another_form_is_damage(saves, note):
    (saves / "3" / "note" / "metadata").write_text(note)
    said = []
    assert same(checkpoint.restore(saves, state(0), tell=said.append)[0], state(2))
    assert len(said) == 1


@pytest.mark.parametrize("file", ["note/metadata", "state/_METADATA"])
def test_a_pipe_in_the_place_of_a_file_is_damage_and_not_waited_for(saves, file):
    (saves / "3" / file).unlink()
    os.mkfifo(saves / "3" / file)
    said = []
    assert same(checkpoint.restore(saves, state(0), tell=said.append)[0], state(2))
    assert f"{file} is no regular file" in said[0]


KILLED = """
import sys; sys.path.insert(0, {tests!r})
import pathlib, test_checkpoint as t
from lods_jax.training import checkpoint
folder = pathlib.Path({folder!r})
for step in range(max(checkpoint.steps(folder), default=0) + 1, 10_000):
    checkpoint.save(folder, t.state(step), {{}})
    print("saved", flush=True)
"""


def test_a_kill_at_any_moment_leaves_a_whole_save(tmp_path):
    code = KILLED.format(tests=os.path.dirname(__file__), folder=str(tmp_path / "c"))
    for wait in (0.4, 0.53, 0.71):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            time.sleep(wait)
            process.send_signal(signal.SIGKILL)
        restored, _ = checkpoint.restore(tmp_path / "c", state(0))
        assert same(restored, state(int(restored.step)))
