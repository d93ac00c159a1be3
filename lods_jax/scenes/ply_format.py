"""The PLY format (Turk 1994): elements, which are tables with named columns, as text or as binary of either byte order.

Read as people's files have it: lines that end in LF, CR or both, a byte order mark, blank lines, comments of any text, elements
in any order, and properties that are lists. Sizes are looked at before anything is read: what is no PLY file, or announces more
than it holds, costs neither memory nor time.
"""

import os
import re
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from lods_jax.core.files import open_regular

TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"), **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"), **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"), **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"), **dict.fromkeys(("double", "float64"), "f8"),
}  # fmt: skip
BYTE_ORDER = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
MAGIC, BOM = re.compile(rb"\s*ply[ \t]*(\r\n|\n|\r)", re.IGNORECASE), b"\xef\xbb\xbf"  # a byte order mark may come first
MAX_HEADER = 1 << 20  # bytes
MAX_LINE = 1 << 20  # bytes of a row of text
MAX_RAGGED = 1_000_000  # rows whose lists differ in length, which are read one by one: some seconds
Table = dict[str, np.ndarray]  # a column of n numbers for each property that is no list


class Property(NamedTuple):
    name: str
    dtype: str  # of the number, or of the items of the list
    length: str | None = None  # dtype of a list's length; None of a number


class Element(NamedTuple):
    name: str
    count: int
    properties: list[Property]


class Header(NamedTuple):
    layout: str  # a key of BYTE_ORDER
    elements: list[Element]
    size: int  # bytes


class Body(NamedTuple):
    """What follows a binary header."""

    file: BinaryIO
    order: str  # "<" or ">"
    size: int  # of the file, bytes


def read_ply_tables(path: str | Path, names: Collection[str]) -> dict[str, Table]:
    """Reads elements of a PLY file.

    Args:
      path: the file.
      names: of the elements to read, such as "vertex"; others are passed over.

    Returns:
      {element: {property: [n] numbers}} for those of `names` that are there, without properties that are lists. Numbers of a text
      file that do not fit the type of their header are float64.

    Raises:
      ValueError: in one line, for what is no PLY file, contradicts itself, or is cut short.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            header = parse_header(file.read(MAX_HEADER))
            file.seek(header.size)
            return read_tables(file, header, size, names)
        except ValueError as error:
            raise ValueError(f"{path} {error}") from None


def is_ply(path: str | Path) -> bool:
    """Whether a file begins as a PLY file does, whatever it is named."""
    with open_regular(path) as file:
        return MAGIC.match(file.read(256).removeprefix(BOM)) is not None


def read_tables(file: BinaryIO, header: Header, size: int, names: Collection[str]) -> dict[str, Table]:
    """The elements of these names, from a file of so many bytes that stands behind its header."""
    left, tables = sum(element.name in names for element in header.elements), {}
    lines = text_lines(file)
    for element in header.elements:
        if len(tables) == left:
            break
        keep = element.name in names
        if not element.count or not element.properties:
            table = {p.name: np.zeros(0, p.dtype) for p in element.properties if not p.length}
        elif header.layout == "ascii":
            table = read_text(lines, element, size, keep)
        else:
            table = read_binary(Body(file, BYTE_ORDER[header.layout], size), element, keep)
        if keep:
            tables[element.name] = table
    return tables


# --- header -----------------------------------------------------------------------------------------------------------------
def parse_header(data: bytes) -> Header:
    """The header at the beginning of `data`. A complaint is worded to follow the name of the file."""
    start = len(BOM) if data.startswith(BOM) else 0
    if not (magic := MAGIC.match(data[start : start + 256])):
        raise ValueError("is not a PLY file: it does not begin with the line `ply`; other formats have to be converted")
    # A file has one kind of line end. Where that is a lone CR, an LF after the header is the first byte of the body.
    newline = b"\r" if magic[1] == b"\r" else b"\n"
    layout, elements, at = "", [], start + magic.end()
    while (end := data.find(newline, at)) >= 0:
        line, at = data[at:end], end + 1
        # Escaped and cut, as words of a damaged file end up in messages.
        match words := [word[:80].decode("latin-1").encode("unicode_escape").decode() for word in line.split()]:
            case [] | ["comment" | "obj_info", *_]:
                pass
            case ["end_header"]:
                check_header(layout, elements)
                return Header(layout, elements, at)
            case ["format", name, *_] if name in BYTE_ORDER:
                layout = name
            case ["element", name, count] if re.fullmatch("[0-9]{1,15}", count):
                elements.append(Element(name.lower(), int(count), []))
            case ["property", "list", length, dtype, name] if elements and {length, dtype} <= TYPES.keys():
                elements[-1].properties.append(Property(name.lower(), TYPES[dtype], TYPES[length]))
            case ["property", dtype, name] if elements and dtype in TYPES:
                elements[-1].properties.append(Property(name.lower(), TYPES[dtype]))
            case _:
                raise ValueError(f"is damaged: its header has the line {' '.join(words)[:80]!r}")
    raise ValueError("is not a whole PLY file: its header has no end")


def check_header(layout: str, elements: list[Element]) -> None:
    """Raises ValueError for what could only be read by guessing."""
    if not layout:
        raise ValueError(f"is damaged: its header names no format, which is {', '.join(BYTE_ORDER)}")
    for of, names in [("element", [e.name for e in elements]), *((e.name, [p.name for p in e.properties]) for e in elements)]:
        if twice := next((name for i, name in enumerate(names) if name in names[:i]), None):
            raise ValueError(f"is damaged: its header has the {'element' if of == 'element' else f'{of} property'} {twice} twice")
    if bad := next((p.name for e in elements for p in e.properties if p.length and p.length[0] == "f"), None):
        raise ValueError(f"is damaged: the length of the list {bad} is no whole number")


def cut_short(element: Element, there: str) -> ValueError:
    return ValueError(f"is cut short: its header says {element.count:,} rows of the element {element.name}, and {there}")


# --- binary -----------------------------------------------------------------------------------------------------------------
def read_binary(body: Body, element: Element, keep: bool) -> Table:
    """The next rows; nothing of them unless they are to be kept."""
    start, ragged = body.file.tell(), any(p.length for p in element.properties)
    lengths = next_lengths(body, element) if ragged else []
    row = row_dtype(element, body.order, lengths)
    end = start + element.count * row.itemsize
    if end <= body.size:
        if not keep and not ragged:
            body.file.seek(end)
            return {}
        # Mapped, so that whoever needs some of the rows alone need not have room for all.
        rows = np.asarray(np.memmap(body.file, row, "r", start, element.count))
        body.file.seek(end)
        if all((rows[f"length {i}"] == length).all() for i, length in enumerate(lengths)):
            return {p.name: rows[p.name] for p in element.properties if not p.length}
    if not ragged:
        raise cut_short(element, f"{body.size - start:,} bytes are there, not {end - start:,}")
    body.file.seek(start)
    return read_ragged(body, element)


def row_dtype(element: Element, order: str, lengths: list[int]) -> np.dtype:
    """A row whose lists have these lengths."""
    fields, lists = [], enumerate(lengths)
    for p in element.properties:
        if p.length:
            i, length = next(lists)
            fields += [(f"length {i}", order + p.length), (f"list {i}", order + p.dtype, length)]
        else:
            fields.append((p.name, order + p.dtype))
    return np.dtype(fields)


def next_lengths(body: Body, element: Element) -> list[int]:
    """The lengths of the lists of the next row, before which the file stays."""
    start, lengths = body.file.tell(), []
    read_row(body, element, lengths)
    body.file.seek(start)
    return lengths


def read_ragged(body: Body, element: Element) -> Table:
    """The next rows one by one, as their lists have different lengths."""
    if element.count > MAX_RAGGED:
        raise ValueError(f"has {element.count:,} rows of the element {element.name} with lists of different lengths: too many")
    rows = [read_row(body, element, []) for _ in range(element.count)]
    names = [p for p in element.properties if not p.length]
    return {p.name: np.array([row[i] for row in rows], p.dtype) for i, p in enumerate(names)}


def read_row(body: Body, element: Element, lengths: list[int]) -> list[np.generic]:
    """The numbers of the next row; the lengths of its lists are added to `lengths`."""

    def number(dtype: str) -> np.generic:
        data = body.file.read(int(dtype[1:]))
        if len(data) < int(dtype[1:]):
            raise cut_short(element, "the file ends within them")
        return np.frombuffer(data, body.order + dtype)[0]

    numbers = []
    for p in element.properties:
        if not p.length:
            numbers.append(number(p.dtype))
            continue
        length = int(number(p.length))
        end = body.file.tell() + length * int(p.dtype[1:])
        if not body.file.tell() <= end <= body.size:
            raise ValueError(f"is damaged: a list {p.name} has the length {length}")
        lengths.append(length)
        body.file.seek(end)
    return numbers


# --- text -------------------------------------------------------------------------------------------------------------------
def text_lines(file: BinaryIO) -> Iterator[list[bytes]]:
    """The words of each line that has any."""
    rest = b""
    while chunk := file.read(MAX_LINE):
        *lines, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
        if len(rest) > MAX_LINE:
            raise ValueError(f"is damaged: it has a row of more than {MAX_LINE:,} bytes")
        yield from filter(None, map(bytes.split, lines))
    if words := rest.split():
        yield words


def read_text(lines: Iterator[list[bytes]], element: Element, size: int, keep: bool) -> Table:
    """The next rows, from a file of so many bytes; nothing of them unless they are to be kept."""
    if element.count > size:  # a row takes a byte and more
        raise cut_short(element, f"the file has {size:,} bytes")
    numbers = [p for p in element.properties if not p.length]
    parts, done = [], 0
    while done < element.count:
        rows = list(islice(lines, min(element.count - done, 1 << 14)))
        if not rows:
            raise cut_short(element, f"{done:,} are there")
        done += len(rows)
        if keep:
            lists = len(numbers) < len(element.properties)
            parts.append(to_numbers([without_lists(row, element) for row in rows] if lists else rows, element, len(numbers)))
    columns = np.concatenate(parts).T if keep else []
    return {p.name: as_declared(column, p.dtype) for p, column in zip(numbers, columns, strict=keep)}


def to_numbers(rows: list[list[bytes]], element: Element, columns: int) -> np.ndarray:
    """Rows of words as float64 [rows columns]."""
    if wrong := [len(words) for words in rows if len(words) != columns]:
        raise ValueError(f"is damaged: a row of the element {element.name} has {wrong[0]} numbers, its header says {columns}")
    try:
        return np.array(rows, np.float64).reshape(len(rows), columns)
    except ValueError:
        raise ValueError(f"is damaged: a row of the element {element.name} holds something that is no number") from None


def without_lists(words: list[bytes], element: Element) -> list[bytes]:
    """The words of a row that belong to no list."""
    kept, at = [], 0
    for p in element.properties:
        end = at + 1
        if not p.length:
            kept += words[at:end]
        elif at < len(words) and words[at].isdigit():
            end += min(int(words[at][:9]), len(words))
        at = end
    return kept + words[at:]  # what is left over makes the row too long


def as_declared(column: np.ndarray, dtype: str) -> np.ndarray:
    """The numbers in the type of the header, or as they are where that would change them."""
    if dtype[0] == "f":
        with np.errstate(over="ignore"):
            return column.astype(dtype)
    limits = np.iinfo(dtype)
    fits = np.all((column >= limits.min) & (column <= limits.max) & (column == np.round(column)))
    return column.astype(dtype) if fits else column
