"""The PLY format (Turk 1994): elements, which are tables with named columns, as text or as binary of either byte order.

Read as people's files have it: lines that end in LF, CR or both, a byte order mark, blank lines, comments of any text, elements
in any order, and properties that are lists. `ply_header` reads the header.
"""

import os
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from lods_jax.core.files import open_regular
from lods_jax.scenes.ply_header import BYTE_ORDER, MAX_HEADER, Element, Header, parse_header

MAX_LINE = 1 << 20  # bytes of a row of text
MAX_RAGGED = 1_000_000  # rows whose lists differ in length, which are read one by one: some seconds
Table = dict[str, np.ndarray]  # a column of n numbers for each property that is no list


class Body(NamedTuple):
    """The binary part of a file, after the header.

    Attributes:
        file: opened.
        order: "<" or ">".
        size: of the file, bytes.
    """

    file: BinaryIO
    order: str
    size: int


def read_ply_tables(path: str | Path, names: Collection[str]) -> dict[str, Table]:
    """Reads elements of a PLY file.

    Args:
        path: of the file.
        names: of the elements to read, such as "vertex"; others are skipped.

    Returns:
        {element: {property: [n]}} for those of `names` that are there, without lists. Numbers of a text file that do not fit the
            type of their header are float64.

    Raises:
        ValueError: the file is no PLY file, contradicts itself or is cut short; one line.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            header = parse_header(file.read(MAX_HEADER))
            file.seek(header.size)
            return read_tables(file, header, size, names)
        except ValueError as error:
            raise ValueError(f"{path} {error}") from None


def read_tables(file: BinaryIO, header: Header, size: int, names: Collection[str]) -> dict[str, Table]:
    """Reads elements of a file that is positioned behind its header.

    Args:
        file: opened.
        header: of the file.
        size: of the file, bytes.
        names: of the elements to read.

    Returns:
        {element: {property: [n]}}.
    """
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


def cut_short(element: Element, there: str) -> ValueError:
    """The error of an element that has fewer rows than its header says.

    Args:
        element: of the header.
        there: what there is instead.

    Returns:
        The error, to be raised.
    """
    return ValueError(f"is cut short: its header says {element.count:,} rows of the element {element.name}, and {there}")


# --- binary -----------------------------------------------------------------------------------------------------------------
def read_binary(body: Body, element: Element, keep: bool) -> Table:
    """Reads the next rows of a binary file.

    Args:
        body: positioned before them.
        element: that they belong to.
        keep: whether the numbers are wanted; otherwise the rows are skipped.

    Returns:
        {property: [n]}, memory-mapped where possible.

    Raises:
        ValueError: rows are missing, or lists do not fit.
    """
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
    """The dtype of a row whose lists have given lengths.

    Args:
        element: of the header.
        order: "<" or ">".
        lengths: of the lists.

    Returns:
        A structured dtype.
    """
    fields, lists = [], enumerate(lengths)
    for p in element.properties:
        if p.length:
            i, length = next(lists)
            fields += [(f"length {i}", order + p.length), (f"list {i}", order + p.dtype, length)]
        else:
            fields.append((p.name, order + p.dtype))
    return np.dtype(fields)


def next_lengths(body: Body, element: Element) -> list[int]:
    """The lengths of the lists of the next row; the file stays before it.

    Args:
        body: positioned before the row.
        element: that it belongs to.

    Returns:
        One number per list.
    """
    start, lengths = body.file.tell(), []
    read_row(body, element, lengths)
    body.file.seek(start)
    return lengths


def read_ragged(body: Body, element: Element) -> Table:
    """Reads the next rows one by one, since their lists differ in length.

    Args:
        body: positioned before them.
        element: that they belong to.

    Returns:
        {property: [n]}.

    Raises:
        ValueError: there are too many such rows.
    """
    if element.count > MAX_RAGGED:
        raise ValueError(f"has {element.count:,} rows of the element {element.name} with lists of different lengths: too many")
    rows = [read_row(body, element, []) for _ in range(element.count)]
    names = [p for p in element.properties if not p.length]
    return {p.name: np.array([row[i] for row in rows], p.dtype) for i, p in enumerate(names)}


def read_row(body: Body, element: Element, lengths: list[int]) -> list[np.generic]:
    """The numbers of the next row.

    Args:
        body: positioned before it.
        element: that it belongs to.
        lengths: gets the lengths of the row's lists.

    Returns:
        One number per property that is no list.

    Raises:
        ValueError: the file ends within the row, or a list does not fit.
    """

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
    """Yields the words of each line that has any.

    Args:
        file: positioned behind the header.

    Yields:
        Words of one line.

    Raises:
        ValueError: a line is too long.
    """
    rest = b""
    while chunk := file.read(MAX_LINE):
        *lines, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
        if len(rest) > MAX_LINE:
            raise ValueError(f"is damaged: it has a row of more than {MAX_LINE:,} bytes")
        yield from filter(None, map(bytes.split, lines))
    if words := rest.split():
        yield words


def read_text(lines: Iterator[list[bytes]], element: Element, size: int, keep: bool) -> Table:
    """Reads the next rows of a text file.

    Args:
        lines: from `text_lines`.
        element: that they belong to.
        size: of the file, bytes.
        keep: whether the numbers are wanted; otherwise the rows are skipped.

    Returns:
        {property: [n]}.

    Raises:
        ValueError: rows are missing, or hold something else than numbers.
    """
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
    """Rows of words as numbers.

    Args:
        rows: of words.
        element: that they belong to.
        columns: words per row.

    Returns:
        [rows columns] float64.

    Raises:
        ValueError: a row has another number of words, or a word is no number.
    """
    if wrong := [len(words) for words in rows if len(words) != columns]:
        raise ValueError(f"is damaged: a row of the element {element.name} has {wrong[0]} numbers, its header says {columns}")
    try:
        return np.array(rows, np.float64).reshape(len(rows), columns)
    except ValueError:
        raise ValueError(f"is damaged: a row of the element {element.name} holds something that is no number") from None


def without_lists(words: list[bytes], element: Element) -> list[bytes]:
    """The words of a row that belong to no list.

    Args:
        words: of the row.
        element: that it belongs to.

    Returns:
        The other words; words beyond the row's end are kept, so that it is found too long.
    """
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
    """Converts a column to the dtype of the header, unless that would change numbers.

    Args:
        column: float64 [n].
        dtype: of the header.

    Returns:
        [n].
    """
    if dtype[0] == "f":
        with np.errstate(over="ignore"):
            return column.astype(dtype)
    limits = np.iinfo(dtype)
    fits = np.all((column >= limits.min) & (column <= limits.max) & (column == np.round(column)))
    return column.astype(dtype) if fits else column
