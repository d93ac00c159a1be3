"""From the texts of a YAML file to the types of a configuration's fields."""

import math
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

TRUTH = {word: word in ("true", "yes", "on") for word in ("true", "yes", "on", "false", "no", "off")}
REAL = r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?\.?(?:inf|Inf|INF)|\.?(?:nan|NaN|NAN)"


def convert(kind: Any, value: Any) -> Any:
    """A value of a YAML file as the type of a field.

    Args:
        kind: the type.
        value: as `read_yaml` gives it.

    Returns:
        The value.

    Raises:
        ValueError: the value does not have the type; or TypeError.

    Examples:
        >>> convert(float, "1e-3")
        0.001
    """
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
    if kind is Path:
        return Path(text)
    return text if kind is str else whole(text) if kind is int else real(text)


def refuse(value: Any) -> typing.NoReturn:
    """Raises a ValueError for a value of the wrong type, within an expression.

    Args:
        value: named in the error.

    Raises:
        ValueError: always.
    """
    raise ValueError(value)


def real(text: str) -> float:
    """The number that a text of YAML 1.2 is; underscores may separate its digits.

    Args:
        text: of the file.

    Returns:
        The number.

    Raises:
        ValueError: the text is no number, or one too large for a float.

    Examples:
        >>> real("1_000.5")
        1000.5
    """
    if not re.fullmatch(REAL, text):
        raise ValueError(text)
    number = float(re.sub(r"\.(?=inf|nan)", "", text.lower()).replace("_", ""))
    if math.isinf(number) and "inf" not in text.lower():  # 1e999
        raise ValueError(text)
    return number


def whole(text: str) -> int:
    """The whole number that a text is: also 1e3, 3.0, 0o17 and 0x1f. 010 is ten.

    Args:
        text: of the file.

    Returns:
        The number.

    Raises:
        ValueError: the text is no whole number.

    Examples:
        >>> whole("1e3"), whole("010")
        (1000, 10)
    """
    if re.fullmatch(r"0o[0-7]+|0x[0-9a-fA-F]+", text):
        return int(text, 0)
    if re.fullmatch(r"[-+]?[0-9][0-9_]*", text):
        return int(text.replace("_", ""))
    number = real(text)
    return int(number) if number.is_integer() else refuse(text)


def first_that_fits(kinds: Sequence[Any], value: Any) -> Any:
    """A value as the first of several types that fits.

    Args:
        kinds: the types, in order.
        value: as `read_yaml` gives it.

    Returns:
        The value.

    Raises:
        ValueError: it fits none of them; or TypeError.
    """
    for kind in kinds[:-1]:
        try:
            return convert(kind, value)
        except (TypeError, ValueError):
            pass
    return convert(kinds[-1], value)


def wanted(kind: Any) -> str:
    """A kind (the type of a field) in words, for an error message.

    Examples:
        >>> wanted(int | None)
        'a whole number or null'
    """
    origin, of = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return " or ".join(map(str, of))
    if origin is tuple:
        return f"a list of {wanted(of[0])} each" if of[-1] is Ellipsis else f"{len(of)} numbers"
    if origin is dict:
        return f"names with {wanted(of[1])} each"
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if x is type(None) else wanted(x) for x in of)
    return {int: "a whole number", float: "a number", str: "a text", bool: "true or false", Path: "a path"}[kind]
