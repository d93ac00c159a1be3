"""YAML 1.2 as a configuration uses it: keys with texts, with lists, and with keys again.

A scalar stays the text that stands in the file, and the field that it is for says how it reads: `yes` is a prompt or a truth
value, 0400 is four hundred, 2024-01-01 is no date. Only an empty place and a plain `null` are None.
"""

import io
import warnings
from collections.abc import Iterator
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import ReusedAnchorWarning, YAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent, Event
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode
from ruamel.yaml.reader import ReaderError

from lods_jax.core.errors import UserError

MAX_BYTES = 1 << 17  # of a file: thirty times a whole configuration
MAX_VALUES = 4000  # a whole configuration has about 300; reading takes 50 microseconds each
MAX_DEPTH = 16
NULL = ("", "~", "null", "Null", "NULL")


def read_yaml(text: str | bytes, source: str) -> Any:
    """Parses a YAML text.

    Args:
        text: bytes are UTF-8, or UTF-16 with a byte order mark.
        source: names the text in errors.

    Returns:
        None, a text, a list, or a dict with texts as keys, nested as in the text. Scalars stay texts.

    Raises:
        UserError: the text is not YAML, is too large, or has a key twice.

    Examples:
        >>> read_yaml("steps: 0400", "my.yaml")
        {'steps': '0400'}
    """
    if len(text) > MAX_BYTES:
        raise UserError(f"{source} holds more than {MAX_BYTES:,} bytes: it is no configuration")
    yaml = YAML(typ="safe", pure=True)  # the reader in C is one of YAML 1.1
    try:
        check_size(yaml.parse(text), source)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReusedAnchorWarning)  # a name may be given anew, and its last meaning counts
            root = YAML(typ="safe", pure=True).compose(text)
        return None if root is None else value_of(root, source, {})
    except (YAMLError, ValueError) as error:
        raise UserError(f"{source} is not YAML: {problem(error)}") from None


def check_size(events: Iterator[Event], source: str) -> None:
    """Checks the size of a text before it is composed.

    Args:
        events: of the parser.
        source: names the text in errors.

    Raises:
        UserError: it holds more values, or deeper ones, than a configuration.
    """
    depth = 0
    for i, event in enumerate(events):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if i > MAX_VALUES or depth > MAX_DEPTH:
            what = f"more than {MAX_VALUES:,} values" if i > MAX_VALUES else f"values nested more than {MAX_DEPTH} deep"
            raise UserError(f"{source} holds {what}: it is no configuration")


def value_of(node: Node, source: str, seen: dict[int, Any]) -> Any:
    """The value of a node.

    Args:
        node: of the composed document.
        source: names the text in errors.
        seen: {id: value} of nodes that others refer to, so that references do not multiply.

    Returns:
        None, a text, a list or a dict.

    Raises:
        UserError: a key is no word or comes twice.
    """
    if id(node) in seen:
        return seen[id(node)]
    if isinstance(node, ScalarNode):
        return None if node.style is None and node.value in NULL else node.value
    if isinstance(node, MappingNode):
        value: Any = {}
        seen[id(node)] = value  # before what it holds, which may refer back to it
        lines: dict[str, int] = {}
        for key, held in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, ScalarNode):
                raise UserError(f"{source}, line {line}: a key must be a word")
            if key.value in value:
                raise UserError(f"{source} has the key {key.value} twice, in lines {lines[key.value]} and {line}: take one out")
            value[key.value], lines[key.value] = value_of(held, source, seen), line
        return value
    value = seen[id(node)] = []
    value.extend(value_of(held, source, seen) for held in node.value)
    return value


def problem(error: Exception) -> str:
    """What is wrong with a text and in which line, from an error of the library, without its excerpts.

    Args:
        error: of ruamel.yaml.

    Returns:
        One line.
    """
    if isinstance(error, ReaderError):
        return f"it is no UTF-8 text, byte {error.position} ({error.reason})"
    mark, said = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
    return f"{said}, line {mark.line + 1}" if mark is not None else str(said)


def write_yaml(data: dict[str, Any]) -> str:
    r"""The YAML text of nested dicts, lists, texts, numbers and truth values, in their order; `read_yaml` reads it.

    Args:
        data: nested keys and values.

    Returns:
        The text.

    Examples:
        >>> write_yaml({"steps": 800})
        '{steps: 800}\n'
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style, yaml.width, yaml.allow_unicode = None, 130, True
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    text = io.StringIO()
    yaml.dump(data, text)
    return text.getvalue()
