"""A checkpoint that does not fit its run: told in one line, or taken for what it holds, whatever lies beside the state."""

import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lods_jax.cli import main
from lods_jax.cli.command_line import parse
from lods_jax.config import dump
from lods_jax.core.errors import UserError, one_line
from lods_jax.runs import run
from lods_jax.training import checkpoint, loop
from lods_jax.training.build import build
from tests.toy import TINY

pytestmark = pytest.mark.usefixtures("toy")


@pytest.fixture(scope="module")
def begun(toy):
    """Configuration, components and first state of a run."""
    config = parse(TINY).settings
    components = build(config)
    return config, components, loop.first_state(components)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from([0, 1, 16, 512, 10**400]) | st.floats() | st.text(max_size=5),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x, max_size=3),
    max_leaves=5,
)
KEYS = ("resolution", "capacity", "room", "logged", "steps", "skipped", "dead", "seconds", "sums", "counts")
groups = values | st.dictionaries(st.sampled_from(KEYS), values, max_size=8)
metas = values | st.fixed_dictionaries(
    {}, optional={"static": groups, "log": groups, "memory": groups, "config": values, "more": values}
)


@pytest.mark.parametrize("times", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_any_meta_is_read_or_is_one_line(begun, tmp_path, monkeypatch, times):
    config, components, state = begun
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    (tmp_path / "checkpoints" / "3" / "note").touch()

    @settings(max_examples=150 * times)
    @given(metas)
    def tried(meta):
        meta = json.loads(json.dumps(meta))
        monkeypatch.setattr(checkpoint, "restore", lambda *_, **__: (state, meta))
        try:
            start = run.last_state(config, components, tmp_path, changed=False)
        except UserError as error:
            assert "checkpoint" in one_line(error)  # noqa: PT017
        else:
            assert all(isinstance(x, int) and x > 0 for x in start.shapes)
            assert start.window.means() is not None

    tried()


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"capacity": 128}, r"is of another configuration: theta"),
        ({"sh_degree": 1}, r"is of another configuration: theta.sh holds float32 [64, 1, 3], expected float32 [64, 4, 3]"),
    ],
)
def test_a_run_of_other_shapes_does_not_go_on(begun, tmp_path, capsys, setting, says):
    config, components, state = begun
    folder = tmp_path / "run"
    folder.mkdir()
    meta = {"static": loop.first_shapes(components)._asdict(), "config": dump(config), "log": {}}
    checkpoint.save(folder / "checkpoints", state, meta)
    text = dump(config)
    for name, value in setting.items():
        before = f"{name}: {getattr(config.gaussians, name)}"
        assert before in text
        text = text.replace(before, f"{name}: {value}")
    (folder / "config.yaml").write_text(text)
    held = sorted(folder.rglob("*"))
    assert main(["resume", str(folder), "--changed"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"lods: {folder}/checkpoints/0 ")
    assert says in line
    assert {*sorted(folder.rglob("*"))} - {*held} <= {folder / ".lock"}
    shutil.rmtree(folder)
