"""One run on several devices and in several processes: the same numbers, one folder, and it goes on with any number of them.

In children, since a process has the devices that it began with: virtual ones of a CPU, and two processes on this machine.
"""

import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from lods_jax.cli import main
from lods_jax.cli.command_line import parse
from lods_jax.config import dump
from lods_jax.core.images import write_png
from lods_jax.distillation.parallel import compile_train_step
from lods_jax.runs import run
from lods_jax.runs.artifacts import render_views, scene_renderer, turntable_cameras
from lods_jax.training import checkpoint, loop
from lods_jax.training.build import build
from lods_jax.training.scene_setups import read_shapes
from tests.toy import TINY, TOY, final, metrics

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"
pytestmark = pytest.mark.usefixtures("toy")
SCENES = {
    "gaussians": ["--gaussians.refine.every", "0"],
    # Few samples: where rounding takes a unit of the MLP across its kink, one sample's gradient jumps, and the tables feel it.
    "nerf": ["--scene", "nerf", "--resolution", "8", "--nerf.samples", "8", "--nerf.refresh-every", "3"],
}
RATE = {"gaussians": 0.01, "nerf": 0.1}  # of SGD
SGD = 20  # steps
CODE = f"{TOY}\nimport sys; sys.exit(cli.main(sys.argv[1:]))"


# --- one process, several devices ---------------------------------------------------------------------------------------------
def toy_run(scene: str, *words: str, sgd: bool):
    """Configuration and parts of 20 steps of 8 views. SGD takes a gradient as it is; Adam makes a whole step of its last bit."""
    config = parse([*TINY, *SCENES[scene], "--batch", "8", "--steps", str(SGD), *words]).settings
    components = build(config)
    return config, components._replace(tx_theta=optax.sgd(RATE[scene]), tx_psi=optax.sgd(0.1)) if sgd else components


def last_of(config, components, mode: str, n: int | None, folder: Path | None = None, start: tuple = ()):
    """The last state on n devices, as NumPy arrays; with a checkpoint of step 10 in a folder."""
    devices = jax.devices()[:n]

    def compiled(components, shapes):
        return compile_train_step(loop.train_step(components, shapes), mode, config.batch, devices)

    for p in loop.train(components, *(start or [loop.first_state(components)]), compile=compiled):
        if folder and p.done == SGD // 2:
            checkpoint.save(folder, p.state, {"static": p.shapes._asdict(), "config": dump(config)})
    return jax.tree.map(np.array, p.state)


def near(a, b) -> float:
    """The largest difference of two trees, as a share of each leaf's maximum."""
    share = lambda x, y: np.abs(np.subtract(x, y, dtype=np.float64)).max(initial=0) / max(np.abs(x).max(initial=0), 1e-30)  # noqa: E731
    return max(jax.tree.leaves(jax.tree.map(share, a, b)))


CHILD = f"""
import pickle, sys
from pathlib import Path
{TOY}
from tests.distillation.test_parallel import *
out, scene = Path(sys.argv[1]), sys.argv[2]
assert len(jax.devices()) == 8
found = {{}}
for sgd in (True, False):
    config, parts = toy_run(scene, sgd=sgd)
    for mode, n in (("jit", 1), ("pmap", 2), ("shard_map", 8)):
        if sgd or n != 2:
            found[sgd, n] = last_of(config, parts, mode, n, out / f"saves{{n}}" if sgd else None)
(out / "found").write_bytes(pickle.dumps(found))
"""


@pytest.fixture(scope="module", params=[*SCENES])
def on_devices(request, toy, tmp_path_factory):
    """(scene, folder, last states by (SGD or not, number of devices))."""
    out = tmp_path_factory.mktemp("devices")
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "8"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(out), request.param], env=env, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return request.param, out, pickle.loads((out / "found").read_bytes())


def moves(config, components, last) -> float:
    """How far the scene has moved, as a share of the leaf that moved the farthest."""
    start = loop.first_state(components).theta
    return max(near(b, a) for a, b in zip(jax.tree.leaves(start), jax.tree.leaves(last.theta), strict=True))


@pytest.mark.slow
def test_1_2_and_8_devices_make_the_same_20_steps(on_devices):
    scene, _, found = on_devices
    assert moves(*toy_run(scene, sgd=True), found[True, 1]) > 0.05
    for n in (2, 8):
        print(f"{scene} on {n} devices: {near(found[True, 1], found[True, n]):.1e}")
        assert near(found[True, 1], found[True, n]) < 1e-5


@pytest.mark.slow
def test_a_checkpoint_of_8_devices_goes_on_on_one(on_devices):
    scene, out, found = on_devices
    config, components = toy_run(scene, sgd=True)
    state, meta = checkpoint.restore(out / "saves8", jax.eval_shape(lambda: loop.first_state(components)))
    assert int(state.step) == SGD // 2
    last = last_of(config, components, "jit", 1, start=(state, read_shapes(meta["static"])))
    print(f"{scene} from 8 devices to one: {near(found[True, 1], last):.1e}")
    assert near(found[True, 1], last) < 1e-5


@pytest.mark.slow
def test_with_adam_their_renders_look_alike(on_devices):
    """At least 50 dB: a root mean square of 0.8 of 255 levels."""
    scene, _, found = on_devices
    _, components = toy_run(scene, sgd=False)
    render_fn = scene_renderer(components.setup, 32)
    one, eight = (
        render_views(
            components, jax.tree.map(jax.numpy.asarray, found[False, n]), render_fn, turntable_cameras(components.orbit, 8)
        ).astype(np.float64)
        for n in (1, 8)
    )
    decibels = 20 * np.log10(255 / max(np.sqrt(np.mean((one - eight) ** 2)), 1e-9))
    print(f"{scene} with Adam, 1 device beside 8: {decibels:.1f} dB")
    assert one.std() > 5
    assert decibels >= 50


# --- several processes --------------------------------------------------------------------------------------------------------
def together(*commands: list[str], code: str = CODE) -> list[subprocess.Popen]:
    """Starts a process for each command line, as one cluster on this machine."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    cluster = os.environ | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(len(commands))}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    return [
        subprocess.Popen([sys.executable, "-u", "-c", code, *words], env=cluster | {"JAX_PROCESS_ID": str(i)}, **pipes)
        for i, words in enumerate(commands)
    ]


def ends(children: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each."""
    said = [child.communicate() for child in children]
    return [(child.returncode, *words) for child, words in zip(children, said, strict=True)]


# The command line with plain SGD, so that a run of two can be compared with a run of one.
SGD_RUN = f"""
import optax
from lods_jax.training import build as building
from lods_jax.runs import run
run.build = lambda *args, **shared: building.build(*args, **shared)._replace(tx_theta=optax.sgd(0.01), tx_psi=optax.sgd(0.1))
{CODE}
"""
TWENTY = [*TINY, *SCENES["gaussians"], "--steps", str(SGD), "--checkpoint.every", "10", "--output.log-every", "10"]


@pytest.fixture(scope="module")
def by_two(toy, tmp_path_factory):
    """The folder of a run of 20 steps of two processes."""
    folder = tmp_path_factory.mktemp("processes") / "run"
    words = [*TWENTY, "--distributed", "--out", str(folder)]
    for code, said, errors in ends(together(words, words, code=SGD_RUN)):
        assert code == 0, errors[-3000:] + said
    return folder


def test_two_processes_leave_one_folder(by_two):
    note = json.loads((by_two / "run.json").read_text())
    assert (note["state"], note["processes"], len(note["devices"])) == ("finished", 2, 2)
    assert [line["step"] for line in metrics(by_two)] == [1, 10, 20]
    assert (by_two / "video.mp4").exists()
    assert checkpoint.steps(by_two / "checkpoints") == [10, 20]


@pytest.fixture
def sgd(monkeypatch):
    """What SGD_RUN does, in this process."""
    rates = {"tx_theta": optax.sgd(0.01), "tx_psi": optax.sgd(0.1)}
    monkeypatch.setattr(run, "build", lambda *args, **shared: build(*args, **shared)._replace(**rates))


def leaves_of(folder: Path) -> dict[str, np.ndarray]:
    return checkpoint.read(folder / "checkpoints" / str(SGD))[0]


def test_one_process_goes_on_with_the_checkpoint_of_two_and_ends_alike(by_two, sgd, tmp_path):
    shutil.copytree(by_two, tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "checkpoints" / "20")
    before = checkpoint.read(by_two / "checkpoints" / "10")[0]
    assert main(["resume", str(tmp_path / "half")]) == 0
    two, half = leaves_of(by_two), leaves_of(tmp_path / "half")
    assert near(two["theta.opacity_logits"], before["theta.opacity_logits"]) > 1e-3
    print(f"one that goes on beside two: {near(two, half):.1e}")
    assert near(two, half) < 1e-5


@pytest.mark.slow
def test_two_processes_make_the_same_20_steps_as_one(by_two, sgd, tmp_path):
    assert main([*TWENTY, "--out", str(tmp_path / "one")]) == 0
    one, two = leaves_of(tmp_path / "one"), leaves_of(by_two)
    print(f"two processes beside one: {near(one, two):.1e}")
    assert near(one, two) < 1e-5


@pytest.mark.slow
def test_two_processes_make_of_a_picture_what_one_makes(sgd, tmp_path):
    """With one embedding, which the first fits for both, though each names its folder by its own clock."""
    y, x = np.mgrid[:64, :64] - 31.5
    file = write_png(tmp_path / "disc.png", np.where((np.hypot(x, y) < 20)[..., None], [0.8, 0.1, 0.1], [1.0, 1.0, 1.0]))
    priors = ["--prior", str(DATA / "lods_parity" / "sd"), "--pose-prior", str(DATA / "zero123"), "--image.invert", "3"]
    words = ["image-to-3d", str(file), *priors, *TWENTY[TWENTY.index("--steps") :], "--gaussians.refine.every", "0"]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    shared = [[*words, "--distributed", "--out", str(tmp_path / name)] for name in ("two", "of the second")]
    for code, said, errors in ends(together(*shared, code=SGD_RUN)):
        assert code == 0, errors[-3000:] + said
    one, two = leaves_of(tmp_path / "one"), leaves_of(tmp_path / "two")
    print(f"an image by two processes beside one: {near(one, two):.1e}")
    assert near(one, two) < 1e-5


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_after_the_same_step_and_they_go_on(tmp_path):
    words = [*TINY, "--steps", "2000", "--output.log-every", "5", "--distributed", "--out", str(tmp_path / "run")]
    children = together(words, words)
    for line in children[0].stdout:
        if line.startswith("optimise"):
            children[1].send_signal(signal.SIGTERM)
            break
    (first, said, errors), (second, *_) = ends(children)
    assert (first, second) == (143, 143), errors[-3000:]
    assert "lods resume" in said
    note = json.loads((tmp_path / "run" / "run.json").read_text())
    assert note["state"] == "stopped"
    assert note["step"] % 5 == 0
    text = (tmp_path / "run" / "config.yaml").read_text()
    (tmp_path / "run" / "config.yaml").write_text(text.replace("steps: 2000", f"steps: {note['step'] + 3}"))
    words = ["resume", str(tmp_path / "run"), "--changed", "--distributed"]
    for code, _, errors in ends(together(words, words)):
        assert code == 0, errors[-3000:]
    final(tmp_path / "run", note["step"] + 3)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_and_the_run_goes_on(tmp_path, victim):
    words = [*TINY, "--steps", "2000", "--checkpoint.every", "2", "--distributed", "--out", str(tmp_path / "run")]
    children = together(words, words)
    for line in children[0].stdout:
        if line.startswith("          step"):
            children[victim].kill()
            break
    codes = [code for code, *_ in ends(children)]
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] != 0
    step = max(checkpoint.steps(tmp_path / "run" / "checkpoints"))
    text = (tmp_path / "run" / "config.yaml").read_text()
    (tmp_path / "run" / "config.yaml").write_text(text.replace("steps: 2000", f"steps: {step + 2}"))
    assert main(["resume", str(tmp_path / "run"), "--changed"]) == 0
    final(tmp_path / "run", step + 2)


@pytest.mark.slow
def test_what_the_first_process_refuses_ends_all(by_two):
    words = [*TINY, "--distributed", "--out", str(by_two)]
    (first, _, why), (second, _, says) = ends(together(words, words))
    assert (first, second) == (2, 2)
    assert "is there already" in why
    assert "another process of this run could not begin" in says


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--parallel", "pmap"], "--distributed needs --parallel shard_map or auto, got pmap"),
        (["--parallel", "jit"], "--distributed needs --parallel shard_map or auto, got jit"),
        (["--reduce", "ordered"], "--reduce ordered is for the devices of one process"),
        ([], "--distributed finds no cluster"),
    ],
)
def test_what_several_processes_cannot_do_is_refused(flags, says, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JAX_PROCESS_ID", "0")  # alone it names no cluster
    assert main([*TINY, *flags, "--distributed", "--out", str(tmp_path / "run")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
