"""The layout is a law: packages stand on five floors and import from the floors below alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "lods_jax").rglob("*.py"))

# From the ground up. A package imports from the floors below it, and its modules from each other without a circle.
FLOORS = [
    {"core"},
    {"config", "scenes", "priors", "distillation"},
    {"training", "tabletop"},
    {"runs"},
    {"cli"},
]
FLOOR = {package: i for i, floor in enumerate(FLOORS) for package in floor}
# At the top of lods_jax/ beside the packages: the public API, and two files whose place Python fixes.
TOP = {"__init__.py", "__main__.py", "py.typed"}


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in FILES}


def package(module: str) -> str:
    """`lods_jax.priors.lora` belongs to `priors`; the package's own __init__ and __main__ to no floor."""
    return [*module.split("."), ""][1]


def imports(file: Path) -> set[str]:
    """The modules of this package that a file imports, also inside functions."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name} line {node.lineno}: write the import in full"
            for alias in node.names:
                # `from lods_jax.priors import lora` names a module, `from lods_jax.core.types import Cond` what is in one.
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES else node.module)
    return {name for name in found if name.split(".")[0] == "lods_jax"}


HOUSED = [name for name in MODULES if package(name) in FLOOR]


def test_every_package_has_a_floor_and_nothing_else_lies_at_the_top():
    entries = {path.name for path in (ROOT / "lods_jax").iterdir() if path.name != "__pycache__"}
    assert entries - TOP == set(FLOOR)
    assert len(entries - {"__main__.py", "py.typed"}) <= 10


@pytest.mark.parametrize("name", HOUSED)
def test_every_module_imports_only_from_the_floors_below_and_its_own_package(name):
    mine = package(name)
    others = {package(target) for target in imports(MODULES[name])} - {mine}
    wrong = sorted(other for other in others if other not in FLOOR or FLOOR[other] >= FLOOR[mine])
    assert not wrong, f"{name} must not import {', '.join(wrong)}"


def test_the_embedded_world_is_reached_through_the_registry_of_priors_alone():
    """As a prior of a user's own would be: nothing but the public API names the package."""
    assert not [name for name in HOUSED if package(name) != "tabletop" and "tabletop" in map(package, imports(MODULES[name]))]


@pytest.mark.parametrize("mine", sorted(FLOOR))  # in one order, whichever process collects
def test_the_modules_of_a_package_form_no_circle(mine):
    within = {
        name: {t for t in imports(MODULES[name]) if package(t) == mine and t != name} for name in HOUSED if package(name) == mine
    }
    while free := {name for name, targets in within.items() if not targets & within.keys()}:
        within = {name: targets for name, targets in within.items() if name not in free}
    assert not within, f"a circle among {', '.join(sorted(within))}"


def test_distillation_stands_on_core_alone():
    """Scenes and priors are arguments of the train step."""
    below = {package(target) for name in HOUSED if package(name) == "distillation" for target in imports(MODULES[name])}
    assert below == {"core", "distillation"}


@pytest.mark.parametrize("name", ["lods_jax.tabletop.objects", "lods_jax.tabletop.dataset"])
def test_the_embedded_world_needs_only_core(name):
    outside = {package(target) for target in imports(MODULES[name])} - {"tabletop"}
    assert outside <= {"core"}
    inside = {target for target in imports(MODULES[name]) if package(target) == "tabletop"}
    assert inside <= {"lods_jax.tabletop", "lods_jax.tabletop.objects"}, sorted(inside)


@pytest.mark.parametrize("name", ["lods_jax", "lods_jax.config", "lods_jax.cli"])
def test_the_command_line_loads_no_jax(name):
    """`import jax` alone costs 2 s, and `lods --help` must answer at once."""
    code = f"import {name}, sys; print(*({{'jax', 'flax', 'diffusers', 'transformers'}} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not loaded.split()
