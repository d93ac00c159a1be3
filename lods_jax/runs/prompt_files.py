"""Files of prompts: text with one per line, JSON, JSON Lines or CSV; each prompt with its place in the file."""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lods_jax.core.errors import UserError
from lods_jax.core.files import open_regular
from lods_jax.core.paths import PRESETS

MAX_BYTES = 1_000_000  # of a file
MAX_LENGTH = 2000  # characters of a prompt
KEYS = ("prompts", "prompt", "text", "caption")  # where JSON and CSV have prompts beside other things


def read_prompts(name: str | Path) -> dict[str, str]:
    """The prompts of a file, each once.

    The suffix is the format: .json (`from_json`), .jsonl or .ndjson with one such value per line, .csv or .tsv with a column
    `prompt`, `text` or `caption`. Anything else is a text with a prompt per line, without empty lines and lines that start with
    #.

    Args:
        name: of a file, or of a shipped set: "tabletop".

    Returns:
        {prompt: place} in their order; a place is "prompts.txt, line 3".

    Raises:
        UserError: there is no such file, or it holds something else; the message names file and line.
    """
    file = find(name)
    text, suffix = decoded(file), file.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        found = from_json_lines(text, str(file))
    elif suffix == ".json":
        found = from_json(parsed(text, str(file)), str(file))
    elif suffix in (".csv", ".tsv"):
        found = from_table(text, str(file), "," if suffix == ".csv" else "\t")
    else:
        lines = ((line.strip(), f"{file}, line {i}") for i, line in enumerate(text.splitlines(), 1))
        found = ((unquoted(line), place) for line, place in lines if not line.startswith("#"))
    try:
        return whole(found, file)
    except RecursionError:
        raise UserError(f"{file} is no file of prompts: it is nested too deeply") from None


def find(name: str | Path) -> Path:
    """The path of a file, or of a shipped set of prompts.

    Args:
        name: of either.

    Returns:
        The path.

    Raises:
        UserError: there is neither, or the file is too large.
    """
    shipped = PRESETS / "prompts" / f"{name}.txt"
    file = Path(name) if Path(name).is_file() or not shipped.is_file() else shipped
    if not file.is_file():
        sets = ", ".join(sorted(path.stem for path in (PRESETS / "prompts").glob("*.txt")))
        raise UserError(f"no file of prompts {name}, and no set of that name: {sets}")
    if file.stat().st_size > MAX_BYTES:
        raise UserError(f"{file} has {file.stat().st_size} bytes: a file of prompts may have {MAX_BYTES}")
    return file


def decoded(file: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 with a byte order mark.

    Args:
        file: its path.

    Returns:
        The text.

    Raises:
        UserError: it is no such text; the message names the line.
    """
    with open_regular(file) as stream:
        data = stream.read()
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = len(data[: error.start].splitlines()) if encoding != "utf-16" else 1
        raise UserError(f"{file}, line {max(line, 1)}: not {encoding[:6].upper().strip('-')} text: save it as UTF-8") from None


def unquoted(line: str) -> str:
    """A line without the quotation marks around all of it.

    Examples:
        >>> unquoted('"a red mug"')
        'a red mug'
    """
    return line[1:-1] if re.fullmatch('"[^"]+"|“[^“”]+”', line) else line


def whole(found: Iterable[tuple[str, str]], file: Path) -> dict[str, str]:
    """Each prompt once, with its first place.

    Args:
        found: (text, place) pairs.
        file: named in errors.

    Returns:
        {prompt: place}.

    Raises:
        UserError: a prompt is too long, or there is none.
    """
    prompts: dict[str, str] = {}
    for text, place in found:
        if len(prompt := text.strip()) > MAX_LENGTH:
            raise UserError(f"{place}: a prompt of {len(prompt)} characters; it may have {MAX_LENGTH}")
        if prompt:
            prompts.setdefault(prompt, place)
    if not prompts:
        raise UserError(f"{file} holds no prompt")
    return prompts


# --- JSON and tables --------------------------------------------------------------------------------------------------------
def parsed(text: str, place: str) -> Any:
    """The value of a JSON text.

    Args:
        text: JSON.
        place: where it stands, for errors.

    Returns:
        The value.

    Raises:
        UserError: the text is not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is not JSON: {error}") from None


def from_json(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """Yields the prompts of a JSON value: texts in lists, however nested, and the value of the first of `KEYS` in an object.

    A text elsewhere in an object may be its version or its licence, and is refused.

    Args:
        value: of JSON.
        place: where it stands, for errors.

    Yields:
        (prompt, place).

    Raises:
        UserError: the value may be no prompt.
    """
    if isinstance(value, str):
        yield value, place
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from from_json(item, f"{place}[{i}]")
    elif isinstance(value, dict) and (key := next((key for key in KEYS if key in value), None)):
        yield from from_json(value[key], f"{place}.{key}")
    elif isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, str):
                raise UserError(f"{place}.{key} is a text that may be no prompt: put prompts into lists, or under the key prompt")
            yield from from_json(item, f"{place}.{key}") if isinstance(item, list | dict) else ()
    else:
        raise UserError(f"{place} must be a prompt, got {json.dumps(value)[:40]}")


def from_json_lines(text: str, file: str) -> Iterator[tuple[str, str]]:
    """Yields the prompts of a text with one JSON value per line.

    Args:
        text: JSON Lines.
        file: named in errors.

    Yields:
        (prompt, place).
    """
    for i, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield from from_json(parsed(line, f"{file}, line {i},"), f"{file}, line {i}")


def from_table(text: str, file: str, delimiter: str) -> Iterator[tuple[str, str]]:
    """Yields the prompts of a table with a column of prompts.

    Args:
        text: CSV or TSV.
        file: named in errors.
        delimiter: of its columns.

    Yields:
        (prompt, place).

    Raises:
        UserError: there is no such column, or the text is no table.
    """
    rows = csv.DictReader(io.StringIO(text), delimiter=delimiter)
    try:
        names = {name.strip().lower(): name for name in rows.fieldnames or () if name}
        column = next((names[key] for key in KEYS if key in names), None)
        if column is None:
            raise UserError(
                f"{file}, line 1: there must be a column prompt, text or caption, got {', '.join(names) or 'nothing'}"
            )
        for row in rows:
            yield row[column] or "", f"{file}, line {rows.line_num}"
    except csv.Error as error:
        raise UserError(f"{file}, line {rows.line_num} is no table: {error}") from None


def pick(prompts: Iterable[str], name: str) -> str:
    """The one prompt that has all words of "lib:two_words", as threestudio writes it.

    Args:
        prompts: to choose from.
        name: the words.

    Returns:
        The prompt.

    Raises:
        UserError: none or several have these words.

    Examples:
        >>> pick(["a red mug", "a blue car"], "lib:blue_car")
        'a blue car'
    """
    words = name.removeprefix("lib:").lower().split("_")
    found = [prompt for prompt in prompts if all(word in re.findall(r"\w+", prompt.lower()) for word in words)]
    if len(found) != 1:
        several = f"{len(found)} prompts have these words: {'; '.join(map(repr, found[:5]))}"
        raise UserError(f"{name}: {several if found else 'no prompt has these words'}")
    return found[0]
