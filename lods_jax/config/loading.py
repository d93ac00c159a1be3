"""Configurations from YAML files and shipped presets, and back."""

import difflib
import reprlib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from lods_jax.config.schema import Config
from lods_jax.core.errors import UserError
from lods_jax.core.paths import PRESETS

T = TypeVar("T")


MOST_BYTES = 1 << 20  # of a file
# Settings that change no bit of a run's state, by how they begin; of its picture a run has a copy.
FREE = ("output.", "checkpoint.", "parallel", "debug_nans", "picture.file")


def differences(old: Config, new: Config) -> list[str]:
    """The settings in which a run that goes on would be another run, as `name: old -> new`."""
    was = {name: value for name, _, value in leaves(old)}
    now = {name: value for name, _, value in leaves(new)}
    return [f"{name}: {was[name]} -> {now[name]}" for name in now if was[name] != now[name] and not name.startswith(FREE)]


def load(path: str | Path) -> Config:
    """The configuration of a YAML file, or of a shipped preset by its name; what it leaves out keeps its default."""
    file = find(path)
    if file.stat().st_size > MOST_BYTES:
        raise UserError(f"{file} holds {file.stat().st_size:,} bytes: a configuration has {MOST_BYTES:,} at most")
    try:
        return parse_yaml(file.read_text(encoding="utf-8"), str(file))
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not YAML: {error}") from error


def parse_yaml(text: str, source: str) -> Config:
    """The configuration of a text; `source` names it in errors."""
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # an impossible date is a ValueError
        raise UserError(f"{source} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data or {}, dict):
        raise UserError(f"{source} must hold keys and values, got a {type(data).__name__}")
    return from_mapping(Config, data or {}, source)


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
    plain = lambda x: {k: plain(v) for k, v in x.items()} if isinstance(x, dict) else list(x) if isinstance(x, tuple) else x  # noqa: E731
    return yaml.safe_dump(plain(asdict(config)), sort_keys=False, default_flow_style=None, width=130, allow_unicode=True)


def from_mapping(kind: type[T], data: Mapping[Any, Any], source: str, prefix: str = "") -> T:
    """A dataclass from nested keys and values; every unknown key and wrong type is a UserError that names it."""
    hints, values = typing.get_type_hints(kind), {}
    for key, value in data.items():
        name = f"{prefix}{key}"
        if key not in hints:
            nearest = difflib.get_close_matches(name, keys(Config), n=1, cutoff=0.0)[0]
            raise UserError(f"{source}: there is no key {name}; the nearest is {nearest}")
        if is_dataclass(hints[key]):
            # `prior: tabletop` is short for `prior: {name: tabletop}`.
            value = {"name": value} if isinstance(value, str) and "name" in typing.get_type_hints(hints[key]) else value
            if not isinstance(value, dict):
                raise UserError(f"{source}: {name} must hold keys and values, got {reprlib.repr(value)}")
            values[key] = from_mapping(hints[key], value, source, f"{name}.")
        else:
            try:
                values[key] = convert(hints[key], value)
            except (TypeError, ValueError):
                raise UserError(f"{source}: {name} must be {wanted(hints[key])}, got {reprlib.repr(value)}") from None
    return kind(**values)


def convert(kind: Any, value: Any) -> Any:
    """`value` of a YAML file as the type of a field. PyYAML reads 1e-3 as a text, and 1 is fine where 1.0 is meant."""
    origin, of = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else convert(next(x for x in of if x is not type(None)), value)
    if origin is Literal:
        if value not in of:
            raise ValueError
        return value
    if origin is tuple:
        if not isinstance(value, list) or len(value) != len(of):
            raise ValueError
        return tuple(convert(k, x) for k, x in zip(of, value, strict=True))
    if origin is dict:
        return {convert(of[0], k): convert(of[1], x) for k, x in value.items()}
    if kind is bool and isinstance(value, bool):
        return value
    if kind is bool or isinstance(value, bool) or value is None or (kind is str and not isinstance(value, str)):
        raise TypeError
    if kind is int and isinstance(value, float) and not value.is_integer():
        raise ValueError
    return kind(value)


def wanted(kind: Any) -> str:
    """A type as a person would say it."""
    origin, of = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return " or ".join(map(str, of))
    if origin is tuple:
        return f"{len(of)} numbers"
    if origin is dict:
        return f"names with {wanted(of[1])} each"
    if origin in (typing.Union, types.UnionType):
        return f"{wanted(of[0])} or null"
    return {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}[kind]


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, field, value) of every key."""
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            yield from leaves(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", item, value


def keys(kind: type) -> list[str]:
    """Every dotted key of the configuration."""
    return [name for name, _, _ in leaves(kind())]
