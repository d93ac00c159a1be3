"""Configurations from YAML files and shipped presets, and back."""

import difflib
import reprlib
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from lods_jax.config.aliases import current_keys
from lods_jax.config.conversion import convert, wanted
from lods_jax.config.schema import Config
from lods_jax.config.yaml_text import MAX_BYTES, read_yaml, write_yaml
from lods_jax.core.errors import UserError
from lods_jax.core.files import open_regular
from lods_jax.core.paths import PRESETS, SUITES

T = TypeVar("T")

# Settings that change no bit of a run's state, by how they begin; of its image a run has a copy.
RESUME_SAFE_KEYS = ("output.", "checkpoint.", "parallel", "debug_nans", "image.file", "edit.run")


def differences(old: Config, new: Config) -> list[str]:
    """The settings in which a resumed run would differ from the run so far.

    Args:
        old: the configuration of the run.
        new: the one to resume with.

    Returns:
        Lines "name: old -> new".

    Examples:
        >>> differences(Config(), Config(steps=800))
        ['steps: 400 -> 800']
    """
    was = {name: value for name, _, value in leaves(old)}
    now = {name: value for name, _, value in leaves(new)}
    changed = [name for name in now if was[name] != now[name] and not name.startswith(RESUME_SAFE_KEYS)]
    return [f"{name}: {was[name]} -> {now[name]}" for name in changed]


def load(path: str | Path, kind: type[T] = Config) -> T:  # type: ignore[assignment]
    """The configuration of a YAML file or of a shipped preset.

    Settings that the file leaves out come from the preset or file that its key `base` names, and otherwise from the defaults.

    Args:
        path: of the file, or the name of a preset.
        kind: the dataclass that the file stands for: `Config`, or the flags of another command.

    Returns:
        An instance of `kind`.

    Raises:
        UserError: there is no such file or preset, or one of them is no configuration.

    Examples:
        >>> load("gaussians-sds").objective.name
        'sds'
    """
    file = find(path)
    return from_mapping(kind, with_bases(file, (file.resolve(),), kind), str(file))


def with_bases(file: Path, chain: tuple[Path, ...], kind: type = Config) -> dict[str, Any]:
    """The keys and values of a file, laid over those of its base.

    Args:
        file: its path.
        chain: the files that led here, the file itself last.
        kind: the dataclass that the file stands for.

    Returns:
        Nested keys and values.

    Raises:
        UserError: the base is unknown, is no configuration, or leads back to a file of the chain.
    """
    with open_regular(file) as stream:
        data = mapping_of(stream.read(MAX_BYTES + 1), str(file))
    name = data.pop("base", None)
    from_mapping(kind, data, str(file))  # here a mistake is told with the name of the file that holds it
    if name is None:
        return data
    if not isinstance(name, str):
        raise UserError(f"{file}: base must be the name of a preset or a file, got {shown(name)}")
    beside = file.parent / name
    try:
        base = beside if beside.is_file() else find(name)
    except UserError as error:
        raise UserError(f"{file}: base: {error}") from None
    check_no_circle(file, base, chain)
    return merged(with_bases(base, (*chain, base.resolve()), kind), data, kind)


def check_no_circle(file: Path, base: Path, chain: tuple[Path, ...]) -> None:
    """Checks that a base is none of the files that led to it.

    Args:
        file: that names the base.
        base: its path.
        chain: the files that led here.

    Raises:
        UserError: it is.
    """
    if base.resolve() in chain:
        raise UserError(f"{file}: base goes in a circle: {' -> '.join(link.name for link in (*chain, base))}")


def layered(preset: str | Path, layers: Iterable[tuple[Mapping[str, Any], str]]) -> Config:
    """The configuration of a preset or file with other keys and values laid over it.

    Args:
        preset: a path, or the name of a preset.
        layers: (nested keys and values, what names them in errors) pairs; a later one wins.

    Returns:
        The configuration.

    Raises:
        UserError: there is no such preset, or a layer is no part of a configuration.

    Examples:
        >>> layered("gaussians-sds", [({"objective": {"guidance_scale": "30"}}, "my suite")]).objective.guidance_scale
        30.0
    """
    file = find(preset)
    data = with_bases(file, (file.resolve(),))
    for layer, source in layers:
        current = current_keys(dict(layer), source)
        from_mapping(Config, current, source)  # here a mistake is told with what names the layer
        data = merged(data, current)
    return from_mapping(Config, data, str(file))


def merged(base: Mapping[str, Any], over: Mapping[str, Any], kind: type = Config) -> dict[str, Any]:
    """Nested keys and values laid over others.

    An objective of another name replaces that of the base, since its options belong to the name.

    Args:
        base: nested keys and values.
        over: those that win.
        kind: the dataclass that they stand for.

    Returns:
        New nested keys and values.

    Examples:
        >>> merged({"steps": 1, "output": {"fps": 5, "size": 64}}, {"output": {"fps": 9}})
        {'steps': 1, 'output': {'fps': 9, 'size': 64}}
    """
    out = dict(base)
    for key, value in over.items():
        old, new = (nested(key, x, kind) for x in (base.get(key), value))
        another = key == "objective" and isinstance(old, dict) and new.get("name", old.get("name")) != old.get("name")
        out[key] = merged(old, new, kind) if isinstance(old, dict) and isinstance(new, dict) and not another else new
    return out


def nested(key: str, value: Any, kind: type) -> Any:
    """A short value in full: `prior: tabletop` stands for `prior: {name: tabletop}`.

    Args:
        key: of the configuration.
        value: as the file has it.
        kind: the dataclass that has the key.

    Returns:
        {"name": value} where the field is a dataclass with a name; else the value.

    Examples:
        >>> nested("prior", "tabletop", Config)
        {'name': 'tabletop'}
    """
    hint = typing.get_type_hints(kind).get(key)
    named = is_dataclass(hint) and "name" in typing.get_type_hints(hint)
    return {"name": value} if named and isinstance(value, str) else value


def parse_yaml(text: str | bytes, source: str) -> Config:
    """The configuration of a YAML text without a base.

    Args:
        text: YAML.
        source: names the text in errors.

    Returns:
        The configuration.

    Raises:
        UserError: the text is no configuration.

    Examples:
        >>> parse_yaml("steps: 800", "my.yaml").steps
        800
    """
    return from_mapping(Config, mapping_of(text, source), source)


def mapping_of(text: str | bytes, source: str) -> dict[str, Any]:
    """The keys and values of a YAML text, under their current names.

    Args:
        text: YAML.
        source: names the text in errors.

    Returns:
        Nested keys and values.

    Raises:
        UserError: the text is not YAML, or holds something else.
    """
    data = read_yaml(text, source)
    if not isinstance(data or {}, dict):
        raise UserError(f"{source} must hold keys and values, got {shown(data)}")
    return current_keys(data or {}, source)


def find(name: str | Path) -> Path:
    """The path of the configuration `name`: a file, or a shipped preset such as "gaussians-sds". See `find_named`."""
    return find_named(name, {path.stem: path for path in sorted(PRESETS.rglob("*.yaml")) if path.parent != SUITES}, "preset")


def find_named(name: str | Path, shipped: Mapping[str, Path], what: str) -> Path:
    """The path of a user's file, or of one that comes with the package.

    Args:
        name: a path, or a key of `shipped`.
        shipped: {name: path}.
        what: they are, for the error.

    Returns:
        The path; of a file and a shipped one of the same name, the file.

    Raises:
        UserError: there is neither.
    """
    if Path(name).is_file():
        return Path(name)
    if str(name) not in shipped:
        raise UserError(f"no file {name}, and no {what} of that name: {', '.join(shipped)}")
    return shipped[str(name)]


def dump(config: Config) -> str:
    """The configuration as YAML, which `load` reads back.

    Args:
        config: any.

    Returns:
        The text, whole and flat.
    """

    def plain(x):
        if isinstance(x, dict):
            return {name: plain(value) for name, value in x.items()}
        return [plain(value) for value in x] if isinstance(x, tuple) else x

    return write_yaml(plain(asdict(config)))


def from_mapping(kind: type[T], data: Mapping[Any, Any], source: str, prefix: str = "", root: type | None = None) -> T:
    """A dataclass from nested keys and values.

    Args:
        kind: the dataclass.
        data: nested keys and values, texts as `read_yaml` gives them.
        source: names the file in errors.
        prefix: of the keys in errors.
        root: the dataclass that the whole file stands for; None for `kind`.

    Returns:
        An instance; what `data` leaves out keeps its default.

    Raises:
        UserError: a key is unknown, or a value has the wrong type.
    """
    hints, values, root = typing.get_type_hints(kind), {}, root or kind
    for key, value in data.items():
        name = f"{prefix}{key}"
        if key not in hints:
            raise UserError(f"{source}: {unknown(name, keys(root))}")
        if is_dataclass(hints[key]):
            value = nested(key, value, kind) if not prefix else value
            if not isinstance(value, dict):
                raise UserError(f"{source}: {name} must hold keys and values, got {shown(value)}")
            values[key] = from_mapping(hints[key], value, source, f"{name}.", root)
        else:
            try:
                values[key] = convert(hints[key], value)
            except (TypeError, ValueError):
                raise UserError(f"{source}: {name} must be {wanted(hints[key])}, got {shown(value)}") from None
    return kind(**values)


def unknown(name: str, known: Sequence[str]) -> str:
    """An error message for an unknown key, with the nearest one or the way to nest it.

    Args:
        name: dotted.
        known: all keys there are.

    Returns:
        The text.
    """
    if "." in name and name in known:
        outer, _, inner = name.rpartition(".")
        return f"the key {name} must be written as {': {'.join(outer.split('.'))}: {{{inner}: ...{'}' * name.count('.')}"
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    return f"there is no key {name}; the nearest is {nearest}"


def shown(value: Any) -> str:
    """A value of a file as an error message shows it: at most a line of it."""
    return "nothing" if value is None else reprlib.repr(value)


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields every key of a configuration.

    Args:
        config: a dataclass of dataclasses and values.
        prefix: of the names.

    Yields:
        (dotted name, field, value).
    """
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            yield from leaves(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", item, value


def keys(kind: type, prefix: str = "") -> list[str]:
    """Every dotted key of a dataclass of settings.

    Args:
        kind: the dataclass.
        prefix: of the names.

    Returns:
        Names in their order.
    """
    hints = typing.get_type_hints(kind)
    below = lambda name, hint: keys(hint, f"{name}.") if isinstance(hint, type) and is_dataclass(hint) else [name]  # noqa: E731
    return [key for item in fields(kind) for key in below(f"{prefix}{item.name}", hints[item.name])]
