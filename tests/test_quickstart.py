"""The notebook runs from its first cell to its last, and ends with an object on the screen."""

import ast
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lods_jax.priors.registry import embedded_world

NOTEBOOK = Path(__file__).resolve().parents[1] / "examples" / "quickstart.ipynb"
CELLS = [
    "".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"
]


def run(cells: list[str]) -> tuple[dict, list]:
    """The names that the cells define, and what a notebook shows: the value of each cell that ends in an expression."""
    names, shown = {"__name__": "__main__"}, []
    for cell in cells:
        *body, last = ast.parse(cell).body
        if isinstance(last, ast.Expr) and not (
            isinstance(last.value, ast.Call) and getattr(last.value.func, "id", "") == "print"
        ):
            exec(compile(ast.Module(body, []), "cell", "exec"), names)
            shown.append(eval(compile(ast.Expression(last.value), "cell", "eval"), names))
        else:
            exec(compile(cell, "cell", "exec"), names)
    return names, shown


def test_the_notebook_runs_and_shows_its_object(monkeypatch):
    """Three steps of a preset that compiles in a third of the time: a ball of grey fog stands out from the white behind."""
    monkeypatch.setenv("LODS_QUICKSTART_STEPS", "3")
    small = [cell.replace('"views-gaussians-lods-lora"', '"gaussians-lods-embedding"') for cell in CELLS]
    assert small != CELLS
    names, shown = run(small)
    assert int(names["state"].step) == 3
    assert [type(x) for x in shown] == [Image.Image] * 2
    assert shown[-1].size == (8 * 96, 96)
    assert (np.asarray(shown[-1]) < 200).any((1, 2)).sum() > 20  # rows with something that is not white


@pytest.mark.slow
def test_the_object_of_the_notebook_is_the_one_that_was_asked_for(monkeypatch):
    monkeypatch.delenv("LODS_QUICKSTART_STEPS", raising=False)
    names, _ = run(CELLS)
    world, theta, aux = embedded_world(), names["state"].theta, names["state"].aux
    render = names["lods_jax"].scene_renderer(names["components"].setup, world.measured_size)
    figures = world.measure("a red mug", partial(render, theta, aux), np.asarray(theta["means"]), np.asarray(aux["alive"], float))
    assert figures["kind"] >= 0.75
    assert figures["color"] == 1
