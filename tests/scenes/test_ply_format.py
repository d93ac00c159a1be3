"""A table that was written in any layout that the format allows, and that people's programs write, is the table that is read."""

import resource

import numpy as np
import pytest

from lods_jax.scenes.ply_format import read_ply_tables

KINDS = {"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4", "double": "f8"}
ALIASES = {
    "int8": "i1",
    "uint8": "u1",
    "int16": "i2",
    "uint16": "u2",
    "int32": "i4",
    "uint32": "u4",
    "float32": "f4",
    "float64": "f8",
}
LAYOUTS = {"ascii": None, "binary_little_endian": "<", "binary_big_endian": ">"}
RNG = np.random.default_rng(0)
XYZ = RNG.normal(size=(6, 3)).astype(np.float32)


def body(layout, rows):
    """Rows of (kind, value), where a list is (kind of its length, kind of its items, values)."""
    out = []
    for row in rows:
        if layout == "ascii":
            cells = [[len(c[2]), *c[2]] if len(c) == 3 else [c[1]] for c in row]
            out.append(" ".join(f"{x:.9g}" for cell in cells for x in cell) + "\n")
            continue
        order = LAYOUTS[layout]
        for cell in row:
            kind, values = (cell[0], cell[1]) if len(cell) == 2 else (cell[1], cell[2])
            if len(cell) == 3:
                out.append(np.array(len(values), order + KINDS[cell[0]]).tobytes())
            out.append(np.array(values, order + KINDS[kind]).tobytes())
    return "".join(out).encode() if layout == "ascii" else b"".join(out)


def ply(path, layout, elements, newline="\n", top=""):
    """Elements are (name, [property lines], rows)."""
    head = ["ply", f"format {layout} 1.0", *([top] if top else [])]
    for name, properties, rows in elements:
        head += [f"element {name} {len(rows)}", *(f"property {p}" for p in properties)]
    end = newline.replace("\n\n", "\n")  # a blank line there would be the body
    path.write_bytes(
        (newline.join([*head, "end_header"]) + end).encode() + b"".join(body(layout, rows) for _, _, rows in elements)
    )
    return path


VERTEX = ("vertex", ["float x", "float y", "float z"], [[("float", v) for v in row] for row in XYZ])
TRIANGLES = ("face", ["list uchar int vertex_indices"], [[("uchar", "int", [0, 1, 2])]] * 4)
MIXED = (
    "face",
    ["list uchar int vertex_indices", "uchar flags"],
    [[("uchar", "int", range(3 + i % 3)), ("uchar", 7)] for i in range(5)],
)
TEXTURED = (
    "face",
    ["list uchar int i", "list uchar float uv"],
    [[("uchar", "int", [0, 1, 2]), ("uchar", "float", [0.5] * 6)]] * 3,
)
CAMERA = ("camera", ["double fx", "uchar id"], [[("double", 500.0), ("uchar", 1)]])


def check(path):
    table = read_ply_tables(path, ["vertex"])["vertex"]
    np.testing.assert_allclose(np.stack([table[axis] for axis in "xyz"], 1), XYZ, rtol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("before", [[], [TRIANGLES], [MIXED], [TEXTURED, CAMERA], [CAMERA, MIXED, TRIANGLES]])
def test_vertices_are_found_behind_any_elements(tmp_path, layout, before):
    check(ply(tmp_path / "a.ply", layout, [*((f"{name}{i}", *of) for i, (name, *of) in enumerate(before)), VERTEX, TRIANGLES]))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("lengths", [(2, 2, 2, 2, 2, 2), (0, 3, 1, 4, 0, 2)])
@pytest.mark.parametrize("place", [0, 2, 3])
def test_lists_among_the_properties_of_a_vertex_are_passed_over(tmp_path, layout, lengths, place):
    properties, rows = list(VERTEX[1]), [list(row) for row in VERTEX[2]]
    properties.insert(place, "list uchar ushort near")
    for row, length in zip(rows, lengths, strict=True):
        row.insert(place, ("uchar", "ushort", range(length)))
    check(ply(tmp_path / "a.ply", layout, [("vertex", properties, rows), TRIANGLES]))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r", " \n", "\n\n", "\t\r\n"])
@pytest.mark.parametrize(
    "top", ["", "comment before end_header", "comment end_header", "obj_info ply", "comment caf\u00e9 \u2603"]
)
def test_line_ends_blanks_and_comments_are_no_matter(tmp_path, layout, newline, top):
    path = ply(tmp_path / "a.ply", layout, [VERTEX], newline, top)
    if layout == "ascii":
        path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", newline.encode()))
    check(path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_byte_order_mark_is_passed_over(tmp_path, layout):
    path = ply(tmp_path / "a.ply", layout, [VERTEX])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    check(path)


def test_a_body_may_begin_with_any_byte(tmp_path):
    """After a header that ends in a lone CR, an LF is data."""
    for first in (b"\n", b"\r"):
        for newline in ("\n", "\r", "\r\n"):
            head = newline.join(
                ["ply", "format binary_little_endian 1.0", "element vertex 1", "property uchar x", "end_header", ""]
            )
            (tmp_path / "a.ply").write_bytes(head.encode() + first)
            assert read_ply_tables(tmp_path / "a.ply", ["vertex"])["vertex"]["x"][0] == first[0]


@pytest.mark.parametrize(("kind", "dtype"), [*KINDS.items(), *ALIASES.items()])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_kind_of_number_keeps_its_value(tmp_path, layout, kind, dtype):
    limits = np.iinfo(dtype) if dtype[0] != "f" else np.finfo(dtype)
    values = np.array([limits.min, 0, 1, limits.max], dtype)
    head = f"ply\nformat {layout} 1.0\nelement vertex 4\nproperty {kind} x\nend_header\n".encode()
    text = "\n".join(f"{v:.17g}" if dtype[0] == "f" else str(v) for v in values).encode()
    (tmp_path / "a.ply").write_bytes(
        head + (text if layout == "ascii" else values.astype((LAYOUTS[layout] or "<") + dtype).tobytes())
    )
    found = read_ply_tables(tmp_path / "a.ply", ["vertex"])["vertex"]["x"]
    np.testing.assert_array_equal(found, values)
    assert found.dtype.str[1:] == dtype


def test_a_text_file_that_says_bytes_and_holds_shares_keeps_the_shares(tmp_path):
    head = b"ply\nformat ascii 1.0\nelement vertex 2\nproperty uchar x\nend_header\n"
    (tmp_path / "a.ply").write_bytes(head + b"0.25\n300\n")
    np.testing.assert_array_equal(read_ply_tables(tmp_path / "a.ply", ["vertex"])["vertex"]["x"], [0.25, 300])


def test_a_large_text_file_is_read_across_its_blocks(tmp_path):
    values = RNG.normal(size=(60_000, 3))
    head = b"ply\nformat ascii 1.0\nelement vertex 60000\nproperty double x\nproperty double y\nproperty double z\nend_header\n"
    (tmp_path / "a.ply").write_bytes(head + "\n".join(" ".join(map(repr, map(float, row))) for row in values).encode())
    table = read_ply_tables(tmp_path / "a.ply", ["vertex"])["vertex"]
    np.testing.assert_array_equal(np.stack([table[axis] for axis in "xyz"], 1), values)


HEAD = "ply\nformat {} 1.0\n{}end_header\n"


@pytest.mark.parametrize(
    ("head", "rest", "says"),
    [
        (HEAD.format("ascii", "element vertex 1\nproperty float x\n"), b"1 2\n", "has 2 numbers, its header says 1"),
        (
            HEAD.format("ascii", "element vertex 2\nproperty float x\nproperty float y\n"),
            b"1\n2 3 4\n",
            "has 1 numbers, its header says 2",
        ),
        (
            HEAD.format("ascii", "element vertex 1\nproperty list uchar int a\nproperty float x\n"),
            b"3 1 2 0.5\n",
            "numbers, its header says 1",
        ),
        (
            HEAD.format("ascii", "element vertex 3\nproperty float x\n"),
            b"1\n2\n",
            "cut short: its header says 3 rows of the element vertex, and 2",
        ),
        (HEAD.format("ascii", "element vertex 999999999999\nproperty float x\n"), b"1\n", "cut short"),
        (HEAD.format("ascii", "element vertex 1\nproperty float x\n"), b"1" * (3 << 20), "a row of more than 1,048,576 bytes"),
        (HEAD.format("binary_little_endian", "element vertex 2\nproperty double x\n"), b"8 bytes.", "8 bytes are there, not 16"),
        (
            HEAD.format("binary_big_endian", "element vertex 1\nproperty list uint double a\n"),
            b"\xff" * 8,
            "list a has the length 4294967295",
        ),
        (
            HEAD.format("binary_big_endian", "element vertex 1\nproperty list char int a\n"),
            b"\xff" * 8,
            "list a has the length -1",
        ),
        (
            HEAD.format("binary_little_endian", "element f 9\nproperty list uchar int a\nelement vertex 1\nproperty float x\n"),
            b"\1abcd\0",
            "cut short|ends within|list a",
        ),
        (
            HEAD.format("ascii", "element vertex 1\nproperty list float int a\n"),
            b"1 1\n",
            "length of the list a is no whole number",
        ),
        (HEAD.format("ascii", "element vertex 1\nelement vertex 1\n"), b"", "element vertex twice"),
        (HEAD.format("ascii", "property float x\n"), b"", "the line 'property float x'"),
        (HEAD.format("ascii", "element vertex 1\nproperty quad x\n"), b"", "the line 'property quad x'"),
        (HEAD.format("middle_endian", ""), b"", "the line 'format middle_endian 1.0'"),
        ("ply\nformat ascii 1.0\n" + "comment x\n" * 200_000, b"", "its header has no end"),
        ("\ufeff\ufeffply\n", b"", "is not a PLY file"),
    ],
)
def test_contradictions_are_one_line(tmp_path, head, rest, says):
    (tmp_path / "a.ply").write_bytes(head.encode() + rest)
    with pytest.raises(ValueError, match=rf"a\.ply .*{says}") as error:
        read_ply_tables(tmp_path / "a.ply", ["vertex"])
    assert "\n" not in str(error.value)


def test_many_lists_of_different_lengths_are_too_many_to_read_one_by_one(tmp_path):
    """Each takes a byte or two: without a bound, a file of some MB would take minutes."""
    head = HEAD.format("binary_little_endian", "element vertex 2000000\nproperty list uchar uchar a\n").encode()
    (tmp_path / "a.ply").write_bytes(head + b"\1\0" + bytes(1_999_999))
    with pytest.raises(ValueError, match="too many"):
        read_ply_tables(tmp_path / "a.ply", ["vertex"])


def test_what_is_no_file_is_one_line(tmp_path):
    for path in (tmp_path, tmp_path / "none.ply", "a\0b"):
        with pytest.raises(ValueError, match=r"is no file|cannot read|null"):
            read_ply_tables(path, ["vertex"])


def test_a_large_file_that_is_no_ply_is_not_read(tmp_path):
    """300 MB, sparse on the disk: only the first MiB is looked at."""
    with (tmp_path / "a.ply").open("wb") as file:
        file.truncate(300 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="is not a PLY file"):
        read_ply_tables(tmp_path / "a.ply", ["vertex"])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 << 10  # KiB
