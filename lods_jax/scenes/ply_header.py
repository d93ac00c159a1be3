"""The header of a PLY file (Turk 1994): which elements it has, with which properties.

Sizes are checked before anything else is read: a file that is no PLY file, or announces more than it holds, costs neither memory
nor time.
"""

import re
from pathlib import Path
from typing import NamedTuple

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


class Property(NamedTuple):
    """A column of an element, or a list in each of its rows.

    Attributes:
        name: in lower case.
        dtype: of the number, or of the items of the list.
        length: dtype of the list's length; None for a number.
    """

    name: str
    dtype: str
    length: str | None = None


class Element(NamedTuple):
    """A table of the file.

    Attributes:
        name: in lower case.
        count: number of rows.
        properties: in their order.
    """

    name: str
    count: int
    properties: list[Property]


class Header(NamedTuple):
    """The header of a file.

    Attributes:
        layout: a key of `BYTE_ORDER`.
        elements: in their order.
        size: bytes.
    """

    layout: str
    elements: list[Element]
    size: int


def is_ply(path: str | Path) -> bool:
    """Whether the file at a path begins as a PLY file does, whatever its name."""
    with open_regular(path) as file:
        return MAGIC.match(file.read(256).removeprefix(BOM)) is not None


def parse_header(data: bytes) -> Header:
    """The header of a PLY file.

    Args:
        data: the beginning of the file.

    Returns:
        The header.

    Raises:
        ValueError: the data is no whole header; worded to follow the name of the file.
    """
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
    """Checks a header for what could only be read by guessing.

    Args:
        layout: the format it names.
        elements: it lists.

    Raises:
        ValueError: there is no format, a name comes twice, or the length of a list is no whole number.
    """
    if not layout:
        raise ValueError(f"is damaged: its header names no format, which is {', '.join(BYTE_ORDER)}")
    for of, names in [("element", [e.name for e in elements]), *((e.name, [p.name for p in e.properties]) for e in elements)]:
        if twice := next((name for i, name in enumerate(names) if name in names[:i]), None):
            raise ValueError(f"is damaged: its header has the {'element' if of == 'element' else f'{of} property'} {twice} twice")
    if bad := next((p.name for e in elements for p in e.properties if p.length and p.length[0] == "f"), None):
        raise ValueError(f"is damaged: the length of the list {bad} is no whole number")
