"""What README and guides show: their Python runs, their commands and flags exist, their figures are those of the rows."""

import ast
import importlib
import inspect
import re
import shlex
from dataclasses import fields
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import write_tables
from lods_jax import config as configs
from lods_jax.cli import command_line, flags
from lods_jax.distillation.objectives import OBJECTIVES
from lods_jax.distillation.registry import make_objective
from lods_jax.runs.bench.suite import shipped

ROOT = Path(__file__).resolve().parents[1]
SNIPPET = re.compile(r'^-{2}8<-{2} "(\S+\.py)"$', re.M)  # a file that the site shows in this place


def read(path: Path) -> str:
    return SNIPPET.sub(lambda found: (ROOT / found[1]).read_text(encoding="utf-8"), path.read_text(encoding="utf-8"))


PAGES = {str(path.relative_to(ROOT)): read(path) for path in [ROOT / "CONTRIBUTING.md", *write_tables.pages()]}
README = PAGES["README.md"]


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page, without their indentation."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", PAGES[page], re.S | re.M)
    return ["\n".join(line.removeprefix(indent) for line in code.splitlines()) for indent, code in found]


def commands(starts: str) -> list[tuple[str, str]]:
    """(page, command) of each line of a shell block that starts so, behind variables of the environment, without its comment."""
    lines = [(page, line) for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]
    lines += [(page, line) for page in PAGES for line in re.findall(r"^    (\w.*)", PAGES[page], re.M)]  # indented blocks
    pattern = re.compile(rf"(?:[A-Z_]+=\S+ )*{starts}(.*?)(?:\s+#.*|\s*&)?$")
    return [(page, found[1]) for page, line in lines if (found := pattern.match(line))]


# --- Python -------------------------------------------------------------------------------------------------------------------
PYTHON = {page: "\n".join(blocks(page, "python")) for page in PAGES if blocks(page, "python")}
TABLETOP = {"getting-started/python.md", "guides/own-scene.md"}  # compile a step or read the weights of the shipped prior


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] if page.removeprefix("docs/") in TABLETOP else []) for page in PYTHON]
)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": page}
    exec(compile(PYTHON[page], page, "exec"), names)
    # Pages whose text says where they land: one noisy end point, not an average.
    if page == "README.md":
        np.testing.assert_allclose(names["state"].theta["color"], 0.7, atol=0.1)
    if page == "docs/guides/own-prior.md":
        np.testing.assert_allclose(names["color"], names["COLORS"]["orange"], atol=0.1)


@pytest.mark.parametrize("page", PYTHON)
def test_what_the_python_of_a_page_imports_is_there(page):
    """Also of the pages that the fast suite does not run."""
    for node in ast.walk(ast.parse(PYTHON[page])):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name) or importlib.import_module(f"{node.module}.{alias.name}")


def test_an_objective_of_a_guide_is_found_by_the_command_line(tmp_path, monkeypatch):
    (tmp_path / "my_objectives.py").write_text(PYTHON["docs/guides/own-objective.md"])
    monkeypatch.chdir(tmp_path)
    objective = make_objective("my_objectives:half_way", 3.0)
    e = {name: jax.random.normal(jax.random.key(i), (1, 2, 2, 1)) for i, name in enumerate(objective.queries)}
    noise = jax.random.normal(jax.random.key(2), (1, 2, 2, 1))
    sds = (e["y"] - noise) / 3 + (e["y"] - e["null"]) * (2 / 3)
    np.testing.assert_allclose(objective.residual(e, noise, 0), sds, atol=1e-6)


# --- commands -----------------------------------------------------------------------------------------------------------------
@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder with the run that commands name."""
    (tmp_path / "outputs" / "latest").mkdir(parents=True)
    (tmp_path / "outputs" / "latest" / "config.yaml").write_text(configs.dump(configs.load("gaussians-sds")))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("page", "line"), commands("lods "))
def test_every_command_line_is_understood(page, line, elsewhere):
    """Parsed into the command's dataclass with the flags as written; running them all would take hours."""
    command_line.parse(shlex.split(line.replace("RUN/", "outputs/latest/")))


@pytest.mark.parametrize(("page", "line"), commands("python (?=-m experiments|experiments)"))
def test_every_experiment_is_there_with_its_flags(page, line):
    name, *rest = line.removeprefix("-m ").split()
    source = ROOT / (name if name.endswith(".py") else name.replace(".", "/") + ".py")
    text = source.read_text(encoding="utf-8")
    for flag in [word for word in rest if word.startswith("--")]:
        assert f'"{flag}"' in text or f"{flag[2:].replace('-', '_')}:" in text, flag


@pytest.mark.parametrize(("page", "target"), commands("make "))
def test_every_make_target_exists(page, target):
    assert re.search(rf"^{target.split()[0]}:", (ROOT / "Makefile").read_text(), re.M)


def known_flags() -> set[str]:
    names = {f"--{name}" for name in configs.keys(configs.Config)} | {
        f"--{f.name}" for c in flags.COMMANDS.values() for f in fields(c)
    }
    aliases = "--prior --objective --guidance-scale --init-psi --pose-prior --azimuth --elevation --fov --radius --help"
    return {name.replace("_", "-") for name in names} | set(aliases.split())


ELSEWHERE = {
    "--gpu",
    "--train",
    "--export",
    "--seeds",
    "--configurations",
    "--scenes",
    "--refinement",
}  # threestudio's, experiments'


@pytest.mark.parametrize("page", PAGES)
def test_every_flag_in_the_text_exists(page):
    prose = re.sub(r"^ *```.*?^ *```", "", PAGES[page], flags=re.S | re.M)
    written = {flag for code in re.findall(r"`([^`\n]+)`", prose) for flag in re.findall(r"(?<!\S)--[a-z][\w.-]*", code)}
    written = {flag for flag in written if not flag.startswith("--xla")}
    unknown = {flag for flag in written if re.sub(r"(--|\.)no-", r"\1", flag) not in known_flags()} - ELSEWHERE
    assert not unknown


# --- files, names and figures -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)#]+)\)", README + PAGES["CONTRIBUTING.md"]))
def test_every_linked_file_is_there(link):
    assert (ROOT / link).exists()


NAMED_TEST = re.compile(r"`([\w/]*test_\w+\.py)`")


@pytest.mark.parametrize("page", [page for page in PAGES if NAMED_TEST.search(PAGES[page])])
def test_every_test_that_a_page_names_is_there(page):
    there = [f"/{path.relative_to(ROOT)}" for path in (ROOT / "tests").rglob("test_*.py")]
    assert [name for name in NAMED_TEST.findall(PAGES[page]) if not any(path.endswith(f"/{name}") for path in there)] == []


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150
    assert len(re.findall(r"^(?:import|from) ", blocks("README.md", "python")[0], re.M)) == 2


@pytest.mark.parametrize("preset", sorted(path.stem for path in (ROOT / "configs").rglob("*.yaml")))
def test_every_preset_is_told_of_in_a_guide(preset):
    assert any(f"`{preset}`" in page for name, page in PAGES.items() if name.startswith("docs/"))


def test_the_help_of_bench_names_every_suite():
    assert [name for name in shipped() if f"`{name}`" not in inspect.getsource(flags.Bench)] == []


@pytest.mark.parametrize("page", ["README.md", "docs/concepts/objectives.md"])
def test_every_objective_stands_in_the_tables(page):
    rows = [line.split("|")[1] for line in PAGES[page].splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`([\w-]+)`", row)} >= set(OBJECTIVES)


def test_the_default_guidance_scales_are_those_of_the_objectives():
    rows = [
        line.split("|")
        for line in PAGES["docs/concepts/objectives.md"].splitlines()
        if re.match(r"\| `[\w-]+` .*\| +[\d.]* *\|$", line)
    ]
    written = {row[1].strip(" `"): row[-2].strip() for row in rows}
    default = {name: inspect.signature(make).parameters.get("s") for name, make in OBJECTIVES.items()}
    assert written == {name: f"{s.default:g}" if s else "" for name, s in default.items()}


def test_every_package_has_a_page_of_the_api():
    """It shows every module of the package, and everything public in them that has a docstring."""
    packages = [path.parent.name for path in (ROOT / "lods_jax").glob("*/__init__.py")]
    assert all(f"::: lods_jax.{name}\n" in PAGES[f"docs/api/{name}.md"] for name in packages)


@pytest.mark.parametrize("page", [page for page in PAGES if "<!-- table:" in PAGES[page]])
def test_tables_are_those_of_their_rows(page):
    """`python -m experiments.write_tables` writes them."""
    assert write_tables.with_tables(PAGES[page]) == PAGES[page]


def test_a_changed_row_changes_its_page(monkeypatch):
    page, read = PAGES["docs/dev/tpu.md"], write_tables.rows
    monkeypatch.setattr(write_tables, "rows", lambda name: [row | {"seconds": 2 * row.get("seconds", 0.0)} for row in read(name)])
    monkeypatch.setattr(write_tables, "table", lambda name: write_tables.TABLES[name]())
    assert write_tables.with_tables(page) != page
