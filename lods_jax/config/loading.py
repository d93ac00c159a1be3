"""Configurations from YAML files and shipped presets, and back."""

import difflib
import math
import re
import reprlib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from lods_jax.config.aliases import current_keys
from lods_jax.config.schema import Config
from lods_jax.config.yaml_text import MAX_BYTES, read_yaml, write_yaml
from lods_jax.core.errors import UserError
from lods_jax.core.paths import PRESETS

T = TypeVar("T")

TRUTH = {word: word in ("true", "yes", "on") for word in ("true", "yes", "on", "false", "no", "off")}
REAL = r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?\.?(?:inf|Inf|INF)|\.?(?:nan|NaN|NAN)"
# Settings that change no bit of a run's state, by how they begin; of its image a run has a copy.
RESUME_SAFE_KEYS = ("output.", "checkpoint.", "parallel", "debug_nans", "image.file")


def differences(old: Config, new: Config) -> list[str]:
    """The settings in which a run that goes on would be another run, as `name: old -> new`."""
    was = {name: value for name, _, value in leaves(old)}
    now = {name: value for name, _, value in leaves(new)}
    changed = [name for name in now if was[name] != now[name] and not name.startswith(RESUME_SAFE_KEYS)]
    return [f"{name}: {was[name]} -> {now[name]}" for name in changed]


def load(path: str | Path, kind: type[T] = Config) -> T:
    """The configuration of a YAML file, or of a shipped preset by its name.

    What the file leaves out is as in the preset or file that its key `base` names, if it has one, and else keeps its default.

    Args:
        path: a file, or the name of a preset.
        kind: the dataclass that the file stands for: that of a run, or the flags of another command.

    Returns:
        The dataclass.

    Raises:
        UserError: there is no such file or preset, or one of them is no configuration.
    """
    file = find(path)
    return from_mapping(kind, with_bases(file, (file.resolve(),), kind), str(file))


def with_bases(file: Path, chain: tuple[Path, ...], kind: type = Config) -> dict[str, Any]:
    """The keys and values of a file, laid over those of its base. `chain` holds the files that led here, itself last."""
    with file.open("rb") as stream:
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
    if base.resolve() in chain:
        raise UserError(f"{file}: base goes in a circle: {' -> '.join(link.name for link in (*chain, base))}")
    return merged(with_bases(base, (*chain, base.resolve()), kind), data, kind)


def merged(base: Mapping[str, Any], over: Mapping[str, Any], kind: type = Config) -> dict[str, Any]:
    """Nested keys and values laid over others. An objective of another name replaces that of the base: options go with a name."""
    out = dict(base)
    for key, value in over.items():
        old, new = (nested(key, x, kind) for x in (base.get(key), value))
        another = key == "objective" and isinstance(old, dict) and new.get("name", old.get("name")) != old.get("name")
        out[key] = merged(old, new, kind) if isinstance(old, dict) and isinstance(new, dict) and not another else new
    return out


def nested(key: str, value: Any, kind: type) -> Any:
    """`prior: tabletop` is short for `prior: {name: tabletop}` in a dataclass whose prior is one itself."""
    hint = typing.get_type_hints(kind).get(key)
    named = is_dataclass(hint) and "name" in typing.get_type_hints(hint)
    return {"name": value} if named and isinstance(value, str) else value


def parse_yaml(text: str | bytes, source: str) -> Config:
    """The configuration of a text that stands for itself; `source` names it in errors."""
    return from_mapping(Config, mapping_of(text, source), source)


def mapping_of(text: str | bytes, source: str) -> dict[str, Any]:
    """The keys and values of a text, under the names of today."""
    data = read_yaml(text, source)
    if not isinstance(data or {}, dict):
        raise UserError(f"{source} must hold keys and values, got {shown(data)}")
    return current_keys(data or {}, source)


def find(name: str | Path) -> Path:
    """A file as it is, or a shipped preset: `gaussians-sds`, say."""
    if Path(name).is_file():
        return Path(name)
    presets = {path.stem: path for path in sorted(PRESETS.rglob("*.yaml"))}
    if str(name) in presets:
        return presets[str(name)]
    raise UserError(f"no config file {name}, and no preset of that name: {', '.join(presets)}")


def dump(config: Config) -> str:
    """The configuration as YAML; `load` gives it back."""

    def plain(x):
        if isinstance(x, dict):
            return {name: plain(value) for name, value in x.items()}
        return [plain(value) for value in x] if isinstance(x, tuple) else x

    return write_yaml(plain(asdict(config)))


def from_mapping(kind: type[T], data: Mapping[Any, Any], source: str, prefix: str = "", root: type | None = None) -> T:
    """A dataclass from nested keys and values; every unknown key and wrong type is a UserError that names it.

    Args:
        kind: the dataclass.
        data: keys and values of a file.
        source: the file's name, for errors.
        prefix: of the keys, for errors.
        root: the dataclass that all of the file stands for; by default `kind`.
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
    """What is wrong with a key that there is none of. A dot does not nest in YAML, as it does on the command line."""
    if "." in name and name in known:
        outer, _, inner = name.rpartition(".")
        return f"the key {name} must be written as {': {'.join(outer.split('.'))}: {{{inner}: ...{'}' * name.count('.')}"
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    return f"there is no key {name}; the nearest is {nearest}"


def shown(value: Any) -> str:
    """A value of a file as an error shows it: not more than a line of it."""
    return "nothing" if value is None else reprlib.repr(value)


def convert(kind: Any, value: Any) -> Any:
    """A value of a YAML file, as `read_yaml` gives it, as the type of a field. TypeError or ValueError if it is none."""
    origin, of = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in of:
            return None
        return first_that_fits([x for x in of if x is not type(None)], value)
    if origin is Literal:
        return value if value in of else refuse(value)
    if origin is tuple and of[-1] is Ellipsis:
        return tuple(convert(of[0], x) for x in (value if isinstance(value, list) else refuse(value)))
    if origin is tuple:
        return tuple(convert(k, x) for k, x in zip(of, value if isinstance(value, list) else refuse(value), strict=True))
    if origin is dict:
        pairs = value.items() if isinstance(value, dict) else refuse(value)
        return {convert(of[0], k): convert(of[1], x) for k, x in pairs}
    if kind is str and value is None:
        return ""  # `negative_prompt:` and nothing behind it
    text = value if isinstance(value, str) else refuse(value)
    if kind is bool:
        return TRUTH[text.lower()] if text.lower() in TRUTH else refuse(value)
    return text if kind is str else whole(text) if kind is int else real(text)


def refuse(value: Any) -> typing.NoReturn:
    raise ValueError(value)


def real(text: str) -> float:
    """The number that a text of YAML 1.2 is; underscores may part its digits."""
    if not re.fullmatch(REAL, text):
        raise ValueError(text)
    number = float(re.sub(r"\.(?=inf|nan)", "", text.lower()).replace("_", ""))
    if math.isinf(number) and "inf" not in text.lower():  # 1e999
        raise ValueError(text)
    return number


def whole(text: str) -> int:
    """The whole number that a text is: also 1e3, 3.0, 0o17 and 0x1f, and 010 is ten."""
    if re.fullmatch(r"0o[0-7]+|0x[0-9a-fA-F]+", text):
        return int(text, 0)
    if re.fullmatch(r"[-+]?[0-9][0-9_]*", text):
        return int(text.replace("_", ""))
    number = real(text)
    return int(number) if number.is_integer() else refuse(text)


def first_that_fits(kinds: Sequence[Any], value: Any) -> Any:
    """`value` as the first of several types that it can be read as."""
    for kind in kinds[:-1]:
        try:
            return convert(kind, value)
        except (TypeError, ValueError):
            pass
    return convert(kinds[-1], value)


def wanted(kind: Any) -> str:
    """A type as a person would say it."""
    origin, of = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return " or ".join(map(str, of))
    if origin is tuple:
        return f"a list of {wanted(of[0])} each" if of[-1] is Ellipsis else f"{len(of)} numbers"
    if origin is dict:
        return f"names with {wanted(of[1])} each"
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if x is type(None) else wanted(x) for x in of)
    return {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}[kind]


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, field, value) of every key."""
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            yield from leaves(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", item, value


def keys(kind: type, prefix: str = "") -> list[str]:
    """Every dotted key of a configuration."""
    hints = typing.get_type_hints(kind)
    below = lambda name, hint: keys(hint, f"{name}.") if is_dataclass(hint) else [name]  # noqa: E731
    return [key for item in fields(kind) for key in below(f"{prefix}{item.name}", hints[item.name])]
