"""The public API: every name is there, documented and known to type checkers, and a script of one's own needs nothing else."""

import ast
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lods_jax

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ast.parse(Path(lods_jax.__file__).read_text())
EXAMPLE = ROOT / "examples" / "own_objective_and_scene.py"


@pytest.mark.parametrize("name", lods_jax.__all__)
def test_every_name_is_there_and_says_what_it_is(name):
    assert getattr(lods_jax, name).__doc__
    assert name in dir(lods_jax)


def test_type_checkers_see_the_names_that_are_there():
    (block,) = [node for node in SOURCE.body if isinstance(node, ast.If)]
    stub = {alias.asname: (node.module, alias.name) for node in block.body for alias in node.names}
    there = {name: (f"lods_jax.{module}", attribute) for name, (module, attribute) in lods_jax._API.items()}
    there["objectives"] = ("lods_jax.distillation", "objectives")
    assert stub == there
    assert list(lods_jax._API) == sorted(lods_jax.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'lods_jax' has no attribute 'sjs'"):
        _ = lods_jax.sjs


def test_configurations_and_names_load_no_jax():
    code = "import lods_jax, sys; lods_jax.load_config('gaussians-sds'); dir(lods_jax); print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_an_objective_and_a_scene_of_ones_own_take_a_script_of_thirty_lines_and_two_imports(capsys):
    text = EXAMPLE.read_text()
    assert len(text.splitlines()) <= 30
    assert re.findall(r"^(?:import|from) (\S+)", text, re.M) == ["jax.numpy", "lods_jax"]
    end = runpy.run_path(str(EXAMPLE))
    np.testing.assert_allclose(end["state"].theta["color"], 0.7, atol=0.1)  # what the prior knows the lamp to be; one noisy end
    assert end["metrics"]["score_rms"] < 0.1
    assert "step 400" in capsys.readouterr().out


def test_what_a_prompt_alone_does_not_give_is_refused():
    prior = lods_jax.gaussian_prior({"a lamp": 0.7, "": 0.2})
    with pytest.raises(ValueError, match=r"asks with the text 'source' on render latents|on reference latents"):
        next(lods_jax.distill_scene(lods_jax.pixels(2, 2), prior, lods_jax.objectives.dds(), "a lamp", view_words=False))
