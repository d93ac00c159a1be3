"""A suite of `lods bench`: which methods meet which scenes, priors, prompts and seeds, read from a YAML file.

A method is a configuration: a preset, and keys and values laid over it. An objective, a preset, a remedy switched off are all
methods, so that a comparison of objectives and an ablation are read and run alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lods_jax.config import bounded, check_ranges, from_mapping
from lods_jax.config.conversion import real
from lods_jax.config.loading import check_no_circle, find_named, shown
from lods_jax.config.yaml_text import MAX_BYTES, read_yaml
from lods_jax.core.errors import UserError
from lods_jax.core.files import open_regular
from lods_jax.core.paths import SUITES
from lods_jax.runs.batch import slug
from lods_jax.runs.prompt_files import read_prompts


@dataclass(frozen=True)
class Arm:
    """What a method or a scene says of a run: a preset, and keys and values of a configuration that are laid over it."""

    preset: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Of a method: {dotted key: values} that tuning begins with, as texts of YAML."""


@dataclass(frozen=True)
class Tuning:
    """How the values of grids are chosen: by the mean of one figure over prompts and seeds that the table does not have."""

    prompts: tuple[str, ...] = ()
    """None: nothing is tuned, and grids are left aside."""
    seeds: tuple[int, ...] = bounded((0,), 0, 2**32 - 1)
    figure: str = "color_error"
    """Not one of the table."""
    most: int = bounded(9, 1, 1000)
    """Trials of a method at most; all methods get as many."""


@dataclass(frozen=True)
class Suite:
    """A suite, whole. `read_suite` says which keys a file may leave out."""

    title: str = ""
    preset: str = "gaussians-lods-lora"
    """What methods begin with that name no preset."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Keys and values of a configuration, laid over the preset of every method."""
    prompts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """{name of a set: prompts}."""
    seeds: tuple[int, ...] = bounded((1,), 0, 2**32 - 1)
    priors: tuple[str, ...] = ()
    """None: the prior of each method's preset."""
    scenes: Mapping[str, Arm] = field(default_factory=dict)
    methods: Mapping[str, Arm] = field(default_factory=dict)
    baseline: str = ""
    """The method that others are compared with run by run; by default the first."""
    figures: tuple[str, ...] = ()
    """Rows of the table. None: every figure but that of tuning."""
    rank_by: str = "kid"
    """The figure that ranks methods."""
    looks: int = bounded(0, 0, 100)
    """At how many steps of a run this figure is measured, for its curve over seconds and predictions; 0: at the end alone."""
    curves: tuple[str, ...] = ()
    """Figures whose course over the steps of a run the page shows, from the same looks."""
    clip: str = ""
    """Folder of a CLIP that judges every run too, as `lods evaluate --clip` does."""
    minutes: float | None = bounded(None, 0, 1e6)
    """What a run takes, on the machine that `title` names."""
    tuning: Tuning = field(default_factory=Tuning)


NESTED = ("settings", "prompts", "scenes", "methods")  # keys that hold names of the user's own


def shipped() -> dict[str, Path]:
    """The suites that come with the package, by name."""
    return {path.stem: path for path in sorted(SUITES.glob("*.yaml"))}


def find_suite(name: str) -> Path:
    """The path of the suite `name`: a file, or a shipped one such as "tabletop-quick". See `find_named`."""
    return find_named(name, shipped(), "suite")


def read_suite(name: str) -> Suite:
    """The suite of a YAML file, or a shipped one. What the file leaves out comes from the suite that its key `base` names.

    Args:
        name: a path, or the name of a shipped suite.

    Returns:
        The suite.

    Raises:
        UserError: there is no such file, or it is no suite; one line names the key and what it may hold.
    """
    file = find_suite(name)
    data = with_bases(file, (file.resolve(),))
    suite = from_mapping(Suite, {key: value for key, value in data.items() if key not in NESTED}, str(file))
    check_ranges(suite, called=lambda key: f"{file}: {key}")
    methods = arms(data.get("methods"), f"{file}: methods", grids=True)
    suite = replace(
        suite,
        settings=mapping(data.get("settings"), f"{file}: settings"),
        prompts=prompt_sets(data.get("prompts"), file),
        scenes=arms(data.get("scenes"), f"{file}: scenes") or {"": Arm()},
        methods=methods,
        baseline=suite.baseline or next(iter(methods), ""),
    )
    check_suite(suite, file)
    return suite


def with_bases(file: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
    """The keys and values of a suite, laid over those of its base: methods and scenes by name, everything else as a whole.

    Args:
        file: its path.
        chain: the files that led here, the file itself last.

    Returns:
        Nested keys and values. Paths of objectives and prompts that lie beside their file are written in full.

    Raises:
        UserError: the file is no YAML of keys and values, or bases go in a circle.
    """
    with open_regular(file) as stream:
        data = mapping(read_yaml(stream.read(MAX_BYTES + 1), str(file)), str(file))
    data = beside(data, file.parent)
    name = data.pop("base", None)
    if name is None:
        return data
    base = file.parent / str(name) if (file.parent / str(name)).is_file() else find_suite(str(name))
    check_no_circle(file, base, chain)
    below = with_bases(base, (*chain, base.resolve()))
    for key in ("methods", "scenes", "tuning"):
        if isinstance(below.get(key), dict) and isinstance(data.get(key), dict):
            data[key] = below[key] | data[key]
    return below | data


def beside(value: Any, folder: Path) -> Any:
    """Names of files that lie in a folder, written in full: "mine.py:csd" in a suite is the file beside the suite.

    Args:
        value: of a suite: a text, a list, keys and values, or None.
        folder: of the suite.

    Returns:
        The value.
    """
    if isinstance(value, dict):
        return {key: beside(x, folder) for key, x in value.items()}
    if isinstance(value, list):
        return [beside(x, folder) for x in value]
    name, colon, function = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    path = name if colon and name.endswith(".py") else value
    if isinstance(path, str) and Path(path).suffix in (".py", ".txt", ".json", ".jsonl", ".csv", ".tsv"):
        here = folder / path
        return f"{here.resolve()}{colon}{function}" if here.is_file() and colon else str(here) if here.is_file() else value
    return value


def mapping(value: Any, source: str) -> dict[str, Any]:
    """Keys and values; none for nothing.

    Args:
        value: of a YAML file.
        source: names it in errors.

    Returns:
        The keys and values.

    Raises:
        UserError: the value is something else.
    """
    if not isinstance(value or {}, dict):
        raise UserError(f"{source} must hold keys and values, got {shown(value)}")
    return dict(value or {})


def arms(value: Any, source: str, grids: bool = False) -> dict[str, Arm]:
    """The methods or the scenes of a suite.

    Args:
        value: {name: {preset, grid, keys of a configuration}}.
        source: names it in errors.
        grids: whether they may have one.

    Returns:
        {name: arm}.

    Raises:
        UserError: something else.
    """
    found: dict[str, Arm] = {}
    for name, held in mapping(value, source).items():
        own = mapping(held, f"{source}.{name}")
        preset, grid = own.pop("preset", None), own.pop("grid", None) if grids else None
        if not isinstance(preset, str | None):
            raise UserError(f"{source}.{name}.preset must be the name of a preset or a file, got {shown(preset)}")
        for key, values in mapping(grid, f"{source}.{name}.grid").items():
            if not isinstance(values, list) or len(values) < 2 or not all(isinstance(x, str) for x in values):
                raise UserError(f"{source}.{name}.grid.{key} must be a list of two values or more, got {shown(values)}")
            if len({value_of(x) for x in values}) < len(values):
                raise UserError(f"{source}.{name}.grid.{key} must name each value once, got {', '.join(values)}")
        found[name] = Arm(preset, own, {key: tuple(values) for key, values in (grid or {}).items()})
    return found


def value_of(text: str) -> float | str:
    """The number that a text of YAML is, else the text itself.

    Examples:
        >>> value_of("1.0") == value_of("1")
        True
    """
    try:
        return real(text)
    except ValueError:
        return text


def prompt_sets(value: Any, file: Path) -> dict[str, tuple[str, ...]]:
    """The sets of prompts of a suite.

    Args:
        value: a list of prompts, a file of prompts, or {name of a set: one of these}.
        file: of the suite, for errors.

    Returns:
        {name: prompts}; the name of a list alone is "".

    Raises:
        UserError: there is no such file, or the value is something else.
    """
    sets = {}
    for name, held in (value if isinstance(value, dict) else {"": value}).items():
        where = f"{file}: prompts{'.' * bool(name)}{name}"
        if isinstance(held, str):
            try:
                sets[name] = tuple(read_prompts(held))
            except UserError as error:
                raise UserError(f"{where}: {error}") from None
        elif isinstance(held, list) and held and all(isinstance(x, str) and x.strip() for x in held):
            sets[name] = tuple(dict.fromkeys(held))
        else:
            raise UserError(f"{where} must be a list of prompts or a file of them, got {shown(held)}")
    return sets


def check_suite(suite: Suite, file: Path) -> None:
    """Checks that the parts of a suite fit each other.

    Args:
        suite: as read.
        file: of the suite, for errors.

    Raises:
        UserError: one line on what does not.
    """
    if not suite.methods:
        raise UserError(f"{file} has no methods: say methods: {{SDS: {{objective: sds}}}}, for example")
    if suite.baseline not in suite.methods:
        raise UserError(f"{file}: the baseline {suite.baseline} is none of the methods {', '.join(suite.methods)}")
    if suite.curves and not suite.looks:
        raise UserError(f"{file}: curves are drawn from looks, and there are none: say looks: 4, for example")
    for key, names in (("methods", suite.methods), ("scenes", suite.scenes), ("priors", suite.priors)):
        folders = [slug(name) for name in names]
        for name in names:
            if folders.count(slug(name)) > 1:
                raise UserError(f"{file}: {key} must differ in letters or digits, got {', '.join(map(repr, names))}")
    if len(suite.scenes) > 1 and (own := [name for name, arm in suite.methods.items() if arm.preset]):
        raise UserError(f"{file}: with several scenes the preset is that of the scene; take it out of the method {own[0]}")
    t = suite.tuning
    if t.prompts:
        if t.figure in (*suite.figures, suite.rank_by):
            raise UserError(f"{file}: tuning.figure must not be one of the table, or the table shows what it was tuned for")
        if shared := {prompt for prompts in suite.prompts.values() for prompt in prompts} & set(t.prompts):
            raise UserError(f"{file}: tuning.prompts must not be prompts of the table, got {', '.join(sorted(shared))}")
        sizes = {name: trials_of(arm) for name, arm in suite.methods.items()}
        if len(set(sizes.values())) > 1:
            said = ", ".join(f"{name} {n}" for name, n in sizes.items())
            raise UserError(f"{file}: every method must get as many trials, and the grids begin with {said}")
        if max(sizes.values()) > t.most:
            raise UserError(f"{file}: tuning.most must be at least the {max(sizes.values())} trials of a grid, got {t.most}")


def trials_of(arm: Arm) -> int:
    """The number of trials that the grid of a method (an arm) begins with.

    Examples:
        >>> trials_of(Arm(grid={"seed": ("1", "2"), "steps": ("1", "2", "3")}))
        6
    """
    n = 1
    for values in arm.grid.values():
        n *= len(values)
    return n
