"""The documentation is a law: every public function says what it takes, gives and raises, and its examples are true."""

import ast
import doctest
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from docstring_parser import DocstringStyle, parse

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(ROOT.joinpath("lods_jax").rglob("*.py"))
PACKAGES = ("cli", "config", "core", "distillation", "priors", "runs", "scenes", "tabletop", "training")
WITH_EXAMPLES = [file for file in MODULES if ">>> " in file.read_text(encoding="utf-8")]
SHORT = 2  # parameters that a summary may name by itself, without `Args:`


def public(body: list, prefix: str = "") -> list[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    """Functions, classes and methods without a leading underscore, and not what is local to a function."""
    found = []
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            found.append((prefix + node.name, node))
            if isinstance(node, ast.ClassDef):
                found += public(node.body, f"{prefix}{node.name}.")
    return found


def parameters(node: ast.FunctionDef) -> list[str]:
    a = node.args
    given = [*a.posonlyargs, *a.args, *filter(None, [a.vararg]), *a.kwonlyargs, *filter(None, [a.kwarg])]
    return [arg.arg for arg in given if arg.arg not in ("self", "cls")]


def own(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function without those of the functions in it, which raise and return for themselves."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            yield child
            yield from own(child)


def raised(node: ast.FunctionDef) -> set[str]:
    """The names of the errors that a function raises by itself and does not catch itself."""
    named = lambda parts: {name.id for part in parts for name in ast.walk(part) if isinstance(name, ast.Name)}  # noqa: E731
    errors = lambda nodes: {  # noqa: E731
        (n, n.exc.func.id)
        for n in nodes
        if isinstance(n, ast.Raise) and isinstance(n.exc, ast.Call) and isinstance(n.exc.func, ast.Name)
    }
    found = errors(own(node))
    for block in (n for n in own(node) if isinstance(n, ast.Try)):
        caught = named(handler.type for handler in block.handlers if handler.type)
        within = errors(m for statement in block.body for m in [statement, *own(statement)])
        found -= {(n, name) for n, name in within if caught & {name, "Exception", "BaseException"}}
    return {name for _, name in found if name[0].isupper()}  # what a helper returns names its class itself


def gives(node: ast.FunctionDef) -> bool:
    """Whether a caller gets something: a value, or what a generator yields."""
    values = [n.value for n in own(node) if isinstance(n, ast.Return | ast.Yield | ast.YieldFrom)]
    return any(v is not None and not (isinstance(v, ast.Constant) and v.value is None) for v in values)


def faults(node: ast.FunctionDef) -> list[str]:
    """What a docstring lacks. A short one has no `Args:`, takes at most two arguments, and names them in its sentences."""
    text, takes = inspect.cleandoc(ast.get_docstring(node) or ""), parameters(node)
    if not text:
        return ["has no docstring"]
    told = parse(text, style=DocstringStyle.GOOGLE)
    wrong = [] if "\n" not in text or text.splitlines()[1] == "" else ["the summary is more than one line"]
    args = [p.arg_name.lstrip("*") for p in told.params]
    if args or len(takes) > SHORT:
        wrong += [f"Args: {', '.join(args) or 'none'}; the function takes {', '.join(takes)}"] if args != takes else []
        wrong += ["no Returns:"] if gives(node) and not told.returns else []
    else:
        words = set(re.findall(r"\w+", text.lower()))
        wrong += [f"neither Args: nor a word of {name}" for name in takes if name.lower() not in words]
    returns = re.search(r"^(?:Returns|Yields):\n((?:    .+\n?)+)", text, re.MULTILINE)
    if returns and sum(line[4] != " " for line in returns[1].splitlines()) > 1:
        wrong.append("Returns: is read as several values; indent the lines that go on")
    wrong += [f"no Raises: {name}" for name in sorted(raised(node) - {r.type_name for r in told.raises})]
    return wrong


def class_faults(node: ast.ClassDef) -> list[str]:
    """What the docstring of a class lacks. A named tuple or a node of a pytree says under `Attributes:` what its fields hold."""
    text, fields = ast.get_docstring(node), [n.target.id for n in node.body if isinstance(n, ast.AnnAssign)]
    if not text:
        return ["has no docstring"]
    told = [p.arg_name for p in parse(text, style=DocstringStyle.GOOGLE).params if p.args[0] == "attribute"]
    plain = {ast.unparse(base) for base in node.bases} & {"NamedTuple", "struct.PyTreeNode"}
    return [f"Attributes: {', '.join(told) or 'none'}; the fields are {', '.join(fields)}"] if plain and told != fields else []


@pytest.mark.parametrize("package", PACKAGES)
def test_everything_public_says_what_it_takes_gives_and_raises(package):
    wrong = []
    for file in MODULES:
        if file.is_relative_to(ROOT / "lods_jax" / package):
            for name, node in public(ast.parse(file.read_text(encoding="utf-8")).body):
                lacks = faults(node) if isinstance(node, ast.FunctionDef) else class_faults(node)
                wrong += [f"{file.relative_to(ROOT)}:{node.lineno} {name}: {fault}" for fault in lacks]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("file", WITH_EXAMPLES, ids=lambda file: str(file.relative_to(ROOT / "lods_jax")))
def test_every_example_gives_what_it_says(file):
    module = importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("def f(x): return x", "has no docstring"),
        ("def f(x):\n  'The same.'\n  return x", "neither Args: nor a word of x"),
        ("def f(a, b, c):\n  'The sum of a, b and c.'", "Args: none; the function takes a, b, c"),
        ("def f(a, b):\n  'Sum.\\n\\nArgs:\\n    b: one.\\n    a: other.\\n'", "Args: b, a; the function takes a, b"),
        ("def f(a):\n  'Sum.\\n\\nArgs:\\n    a: one.\\n'\n  return a", "no Returns:"),
        (
            "def f(a):\n  'Sum.\\n\\nArgs:\\n    a: one.\\n\\nReturns:\\n    A\\n    sum.'\n  return a",
            "Returns: is read as several values; indent the lines that go on",
        ),
        ("def f(a):\n  'a.'\n  raise ValueError(a)", "no Raises: ValueError"),
        ("class C(NamedTuple):\n  'Numbers.'\n  a: int\n  b: int", "Attributes: none; the fields are a, b"),
    ],
)
def test_a_fault_of_a_docstring_is_found(source, fault):
    node = ast.parse(source).body[0]
    assert (faults(node) if isinstance(node, ast.FunctionDef) else class_faults(node)) == [fault]
