"""A run folder from elsewhere: no command that reads it runs code that lies in it or that it names."""

import os
import sys

import pytest

from lods_jax.cli import main
from lods_jax.config import Config, ObjectiveConfig, dump

CODE = """
open("imported", "w").close()
def x(): raise SystemExit(0)
"""
NAMES = ("evil_objective:x", "os:system", "sys:exit")


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """The current folder is a run with a module beside its config.yaml, which names it."""
    (tmp_path / "evil_objective.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    yield tmp_path
    sys.modules.pop("evil_objective", None)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "words", [["evaluate", "."], ["compare", "."], ["export", ".", "--to", "splat"], ["resume", "."]], ids=lambda x: x[0]
)
def test_a_command_that_reads_a_run_imports_nothing_that_it_names(foreign, capsys, name, words):
    (foreign / "config.yaml").write_text(dump(Config(prompt="a red mug", objective=ObjectiveConfig(name))))
    code = main(words)
    assert not (foreign / "imported").exists()
    assert "evil_objective" not in sys.modules
    assert code in (0, 2)
    assert capsys.readouterr().err.count("\n") == (code == 2)


def test_resuming_asks_for_the_name_of_the_code_once_more(foreign, capsys):
    (foreign / "config.yaml").write_text(dump(Config(prompt="a red mug", objective=ObjectiveConfig(NAMES[0]))))
    assert main(["resume", "."]) == 2
    assert "is code: if you trust it, resume with --objective evil_objective:x" in capsys.readouterr().err
    assert main(["resume", ".", "--objective", NAMES[0]]) == 2
    assert "objective evil_objective:x failed: SystemExit: 0" in capsys.readouterr().err
    assert os.path.exists("imported")


def test_resuming_under_another_name_is_refused(foreign, capsys):
    (foreign / "config.yaml").write_text(dump(Config(prompt="a red mug")))
    assert main(["resume", ".", "--objective", "sds"]) == 2
    assert "was begun with the objective lods-embedding, got --objective sds" in capsys.readouterr().err
