"""What the README promises: its Python runs, its commands exist, its files are there."""

import re
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest

from lods_jax.cli.flags import parse

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_example_lands_on_what_its_text_says():
    code = re.findall(r"```python\n(import .*?)```", README, re.S)
    assert len(code) == 1
    names = {}
    exec(code[0], names)
    lamp = jax.nn.sigmoid(names["state"].theta)
    np.testing.assert_allclose(lamp, 0.7, atol=0.15)  # one noisy end point, not an average


@pytest.mark.parametrize("target", re.findall(r"^make ([\w-]+)", README, re.M))
def test_every_make_target_exists(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_every_linked_file_is_there(link):
    assert (ROOT / link).exists()


@pytest.mark.parametrize("line", re.findall(r"^lods (.+?)(?:\s+#.*)?$", README, re.M))
def test_every_command_line_is_understood(line):
    """Parsed into the command's dataclass with the flags as written; running them all would take hours."""
    parse(shlex.split(line))
