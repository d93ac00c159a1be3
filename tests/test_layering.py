"""The layout is a law: imports point to the rows above, and the 3-D and prior columns do not know each other."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "lods_jax").rglob("*.py"))

# One row per line, each importing only from the lines above it. A part is a file or a package below lods_jax.
ROWS = [
    {"", "types", "rng", "numerics"},  # "" is lods_jax/__init__.py
    {"cameras", "diffusion"},
    {"rendering", "scenes", "priors"},
    {"objectives", "sampling", "penalties", "prompts"},
    {"train", "refine", "perp_neg", "posed"},
    {
        "build",
        "representations",
        "config",
        "checkpoint",
        "folder",
        "processes",
        "run",
        "results",
        "evaluate",
        "export",
        "compare",
        "view",
        "provenance",
        "generate",
        "distil",
        "cost",
        "batch",
        "pictures",
        "schedules",
    }
    | {"io", "flags", "cli", "__main__", "tabletop"},
]
ROW = {part: i for i, row in enumerate(ROWS) for part in row}


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in FILES}


def part(module: str) -> str:
    """The row table's name of a module: `lods_jax.priors.exact` belongs to `priors`."""
    return [*module.split("."), ""][1]


def imports(file: Path) -> set[str]:
    """The modules of this package that a file imports, also inside functions."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name} line {node.lineno}: write the import in full"
            for alias in node.names:
                # `from lods_jax.priors import exact` names a module, `from lods_jax.types import Cond` what is in one.
                full = f"{node.module}.{alias.name}"
                is_module = full in MODULES or (node.module == "lods_jax" and alias.name in ROW)
                found.add(full if is_module else node.module)
    return {name for name in found if name.split(".")[0] == "lods_jax"}


def allowed(source: str, target: str) -> bool:
    """Whether part `source` may import part `target`."""
    top = ROW["cli"]  # the last row puts everything together, itself included
    within = source == target or (source, target) == ("scenes", "rendering") or ROW[source] == ROW[target] == top
    return within or ROW[target] < ROW[source]


@pytest.mark.parametrize("name", MODULES)
def test_every_module_has_a_row_and_imports_only_the_rows_above(name):
    assert part(name) in ROW, f"{name} has no row: give it one, in the layout and here"
    wrong = sorted(target for target in imports(MODULES[name]) if not allowed(part(name), part(target)))
    assert not wrong, f"{name} must not import {', '.join(wrong)}"


@pytest.mark.parametrize("name", [name for name in MODULES if part(name) == "train"])
def test_the_train_step_knows_no_scene_and_no_prior(name):
    assert {part(target) for target in imports(MODULES[name])}.isdisjoint({"scenes", "rendering", "priors"})


@pytest.mark.parametrize("name", sorted(MODULES.keys() & {"lods_jax.tabletop.objects", "lods_jax.tabletop.dataset"}))
def test_the_embedded_world_needs_only_cameras_and_diffusion(name):
    outside = {target for target in imports(MODULES[name]) if part(target) != "tabletop"}
    assert all(ROW[part(target)] <= 1 for target in outside), sorted(outside)
    inside = {target for target in imports(MODULES[name]) if part(target) == "tabletop"}
    assert inside <= {"lods_jax.tabletop", "lods_jax.tabletop.objects"}, sorted(inside)


@pytest.mark.parametrize("name", sorted(MODULES.keys() & {"lods_jax", "lods_jax.config", "lods_jax.cli"}))
def test_the_command_line_loads_no_jax(name):
    """`import jax` alone costs 2 s, and `lods --help` must answer at once."""
    code = f"import {name}, sys; print(*({{'jax', 'flax', 'diffusers', 'transformers'}} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not loaded.split()
