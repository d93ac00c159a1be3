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
