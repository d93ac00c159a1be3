"""Points and images out of a generator: what the formats allow is read right, and anything else is read or is one line.

Nothing is drawn from files that somebody has met: a generator writes what the formats allow, damage is made to it, and headers
are put together from words that mean something in another place. `make slow-test` draws twenty times as many.
"""

import io
import time
import warnings
from contextlib import suppress
from functools import cache

import numpy as np
import pytest
from PIL import Image, features

from lods_jax.core.cutouts import cut_out, framed
from lods_jax.core.images import read_depth, read_rgba
from lods_jax.scenes.ply import read_ply, read_points, write_ply, write_splat
from lods_jax.scenes.spherical_harmonics import Y00

MANY = [400, pytest.param(8000, marks=pytest.mark.slow)]
SECONDS = 5.0  # that no file of some kB may take
KINDS = {"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4", "double": "f8"}


def attempt(file, data, reader):
    """A value, or one line that names the file, in time and without a word from NumPy or Pillow."""
    file.write_bytes(data)
    began, value, said = time.monotonic(), None, str(file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            value = reader(file)
        except ValueError as error:
            said = str(error)
    assert len(said.splitlines()) == 1
    assert str(file) in said
    assert len(said) < 600 + len(str(file))
    assert time.monotonic() - began < SECONDS
    return value


def damaged(rng, data):
    """A few bytes flipped, cut, put in, doubled or exchanged for words of the format."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        at, size = int(rng.integers(0, len(data) + 1)), int(rng.integers(1, 40))
        kind = rng.integers(0, 6)
        some = rng.integers(0, 256, size).astype(np.uint8).tobytes()
        if kind == 0:
            data[at : at + len(some)] = some
        elif kind == 1:
            del data[at : at + size]
        elif kind == 2:
            data[at:at] = some
        elif kind == 3:
            data[at:at] = data[at : at + size] * int(rng.integers(1, 50))
        elif kind == 4 and rng.random() < 0.3:
            del data[at:]
        else:
            data[at:at] = WORDS[rng.integers(len(WORDS))]
    return bytes(data)


WORDS = [
    *(b"\n", b"\r", b"\r\n", b" ", b"-1", b"nan", b"inf", b"-inf", b"1e400", b"99999999999999999999", b"0", b"2147483648"),
    *(b"\nelement vertex 3\n", b"\nelement face 1000000000\n", b"\nproperty list uchar int a\n", b"\nproperty double x\n"),
    *(
        b"end_header\n",
        b"comment ",
        b"format ascii 1.0\n",
        b"format binary_big_endian 1.0\n",
        b"ply\n",
        b"\xef\xbb\xbf",
        b"\xff\xfe",
    ),
    *(
        b"property float f_rest_0\n",
        b"property uchar red\n",
        b"packed_position",
        b"element chunk 1\n",
        b"list",
        b"float",
        b"\0\0\0\0",
    ),
]


# --- points -----------------------------------------------------------------------------------------------------------------
def random_table(rng):
    """Columns that a cloud or splats may have, in any order, with others between them, some of them lists."""
    n = int(rng.integers(1, 9))
    columns = {axis: rng.normal(size=n).astype(rng.choice(["f4", "f8"])) for axis in "xyz"}
    white, kind = [(255, "u1"), (65535, "u2"), (255, "i4"), (1, "f4"), (255, "f8")][rng.integers(5)]
    rgb = np.concatenate([rng.random((n - 1, 3)), [[1.0, 0, 1.0]]])  # the last tells what white is
    names = [("red", "green", "blue"), ("r", "g", "b"), ("diffuse_red", "diffuse_green", "diffuse_blue")][rng.integers(3)]
    colors = rgb * white if kind[0] == "f" else np.round(rgb * white)
    columns |= {name: colors[:, i].astype(kind) for i, name in enumerate(names)}
    if splat := bool(rng.random() < 0.4):
        columns |= {f"scale_{i}": rng.normal(size=n).astype("f4") for i in range(3)}
        columns |= {f"rot_{i}": rng.normal(size=n).astype("f4") for i in range(4)} | {"opacity": rng.normal(size=n).astype("f4")}
    columns |= {f"extra_{i}": rng.integers(0, 9, n).astype("i2") for i in range(rng.integers(0, 3))}
    order = [list(columns)[i] for i in rng.permutation(len(columns))]
    lists = {f"list_{i}": [rng.integers(0, 99, rng.integers(0, 4)) for _ in range(n)] for i in range(rng.integers(0, 2))}
    for name in lists:
        order.insert(int(rng.integers(0, len(order) + 1)), name)
    return n, {name: columns.get(name, lists.get(name)) for name in order}, rgb.astype(np.float32), names, splat


def random_ply(rng, n, table):
    """The table in any layout, with any line ends and comments, perhaps behind another element."""
    layout = ["ascii", "binary_little_endian", "binary_big_endian"][rng.integers(3)]
    newline, order = [b"\n", b"\r\n", b"\r"][rng.integers(3)], ">" if "big" in layout else "<"
    names = {dtype: name for name, dtype in KINDS.items()}
    head = ["ply", f"format {layout} 1.0", "comment end_header", "obj_info made up"][: int(rng.integers(2, 5))]
    before = rng.random() < 0.5
    if before:
        head += ["element face 2", "property list uchar int vertex_indices"]
    head.append(f"element vertex {n}")
    for name, column in table.items():
        kind = "list uchar short" if isinstance(column, list) else names[column.dtype.str[1:]]
        head.append(f"property {kind} {name}")
    rows = [[[("u1", 3)] + [("i4", i) for i in range(3)]]] * 2 if before else []
    for i in range(n):
        cells = []
        for column in table.values():
            item = column[i]
            cells.append(
                [("u1", len(item)), *(("i2", v) for v in item)] if isinstance(column, list) else [(column.dtype.str[1:], item)]
            )
        rows.append(cells)
    flat = [[cell for cells in row for cell in cells] for row in rows]
    if layout == "ascii":
        body = b"".join(" ".join(f"{float(v):.17g}" for _, v in row).encode() + newline for row in flat)
    else:
        body = b"".join(np.array(v, order + kind).tobytes() for row in flat for kind, v in row)
    return newline.join(line.encode() for line in [*head, "end_header"]) + newline + body


@pytest.mark.parametrize("count", MANY)
def test_whatever_the_format_allows_is_read_right(tmp_path, count):
    for seed in range(count):
        rng = np.random.default_rng(seed)
        n, table, rgb, _, splat = random_table(rng)
        found = attempt(tmp_path / "a.ply", random_ply(rng, n, table), read_points)
        assert found is not None, seed
        xyz = np.stack([table[axis].astype(np.float64) for axis in "xyz"], 1)
        means = xyz[:, [0, 2, 1]] * [1, 1, -1] if splat else xyz
        np.testing.assert_allclose(found.columns["means"], means, rtol=1e-6, err_msg=str(seed))
        colors = 0.5 + Y00 * found.columns["sh"][:, 0] if splat else found.columns["rgb"]
        np.testing.assert_allclose(colors, rgb, atol=0.51 / 255, err_msg=str(seed))


@cache
def whole_points(folder):
    """Files of splats and points that are read, as bytes."""
    rng = np.random.default_rng(0)
    shapes = {"means": (6, 3), "quats": (6, 4), "log_scales": (6, 3), "opacity_logits": (6,), "sh": (6, 4, 3)}
    splats = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    write_ply(folder / "whole.ply", splats)
    write_splat(folder / "whole.splat", splats)
    ends = [f"{end}_{axis}" for end in ("min", "max") for axis in (*"xyz", "scale_x", "scale_y", "scale_z")]
    head = [
        "ply",
        "format binary_little_endian 1.0",
        "element chunk 1",
        *(f"property float {end}" for end in ends),
        "element vertex 6",
    ]
    head += [*(f"property uint packed_{x}" for x in ("position", "rotation", "scale", "color")), "element sh 6"]
    head += [*(f"property uchar f_rest_{i}" for i in range(9)), "end_header\n"]
    body = rng.normal(size=12).astype("<f4").tobytes() + rng.integers(0, 256, 6 * 25).astype(np.uint8).tobytes()
    made = [random_ply(rng, n, table) for n, table, *_ in (random_table(rng) for _ in range(12))]
    return [(folder / "whole.ply").read_bytes(), "\n".join(head).encode() + body, *made], (folder / "whole.splat").read_bytes()


def check_points(points):
    rows = {len(value) for value in points.columns.values()}
    assert len(rows) == 1
    assert all(np.isfinite(value).all() for value in points.columns.values())
    if "rgb" in points.columns:
        assert points.columns["rgb"].min(initial=0) >= 0
        assert points.columns["rgb"].max(initial=0) <= 1
    else:
        np.testing.assert_allclose(np.linalg.norm(points.columns["quats"], axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("count", MANY)
def test_damaged_points_are_read_or_are_one_line(tmp_path, count):
    plys, splat = whole_points(tmp_path)
    read = 0
    for seed in range(count):
        rng = np.random.default_rng(seed)
        suffix, data = (".splat", splat) if seed % 10 == 0 else (".ply", plys[seed % len(plys)])
        points = attempt(tmp_path / f"a{suffix}", damaged(rng, data), read_points)
        if points is not None:
            check_points(points)
            read += 1
    assert 0 < read < count  # damage was made, and not everything refused


@pytest.mark.parametrize("count", MANY)
def test_headers_of_words_in_the_wrong_place_are_one_line(tmp_path, count):
    lines = [
        "ply",
        "format ascii 1.0",
        "format binary_little_endian 1.0",
        "format",
        "end_header",
        "",
        "comment",
        "element",
        "property",
    ]
    lines += [f"element {name} {n}" for name in ("vertex", "face", "chunk", "sh") for n in (0, 1, 7, 10**9, "x", -1, "9" * 400)]
    lines += [
        f"property {kind} {name}" for kind in ("float", "uchar", "quad") for name in (*"xyz", "red", "opacity", "packed_color")
    ]
    lines += ["property list uchar int i", "property list float int i", "property list uint double d", "property list int"]
    for seed in range(count):
        rng = np.random.default_rng(seed)
        chosen = [lines[i] for i in rng.integers(0, len(lines), rng.integers(1, 14))]
        whole = (
            ["ply", "format " + ["ascii", "binary_big_endian"][seed % 2] + " 1.0", *chosen, "end_header"] if seed % 4 else chosen
        )
        body = rng.integers(0, 256, rng.integers(0, 200)).astype(np.uint8).tobytes()
        points = attempt(tmp_path / "a.ply", "\n".join(whole).encode() + b"\n" + body, read_points)
        if points is not None:
            check_points(points)
            attempt(tmp_path / "a.ply", (tmp_path / "a.ply").read_bytes(), read_ply)


# --- images ---------------------------------------------------------------------------------------------------------------
@cache
def whole_pictures():
    """An image in every format and kind of number, as bytes."""
    rng = np.random.default_rng(0)
    rgba = Image.fromarray(rng.integers(0, 256, (24, 20, 4)).astype(np.uint8))
    grey = rng.random((24, 20)).astype(np.float32)
    pictures = [(rgba.convert(mode), "PNG", {}) for mode in ("RGBA", "RGB", "L", "LA", "P", "1")]
    pictures += [(rgba.convert(mode), "TIFF", {"compression": c}) for mode in ("RGB", "CMYK") for c in (None, "tiff_lzw")]
    pictures += [(Image.fromarray(x), "TIFF", {}) for x in (grey, (9e4 * grey).astype(np.int32), (6e4 * grey).astype(np.uint16))]
    pictures += [
        (Image.fromarray((6e4 * grey).astype(np.uint16)), "PNG", {}),
        (rgba.convert("RGB"), "JPEG", {}),
        (rgba, "WEBP", {}),
    ]
    pictures += [(rgba.convert("RGB"), "BMP", {}), (rgba.convert("P"), "GIF", {}), (rgba.convert("RGB"), "PPM", {})]
    if features.check("avif"):
        pictures.append((rgba, "AVIF", {}))
    data = []
    for picture, kind, options in pictures:
        file = io.BytesIO()
        picture.save(file, kind, **options)
        data.append(file.getvalue())
    return data


def as_picture(file):
    """What a run makes of an image; what has no object is left."""
    rgba = read_rgba(file)
    assert rgba.shape[2] == 4
    assert np.isfinite(rgba).all()
    assert rgba.min() >= 0
    assert rgba.max() <= 1
    with suppress(ValueError):
        assert np.isfinite(framed(cut_out(rgba), 16, 0.7)).all()
    return rgba


def as_depth(file):
    depth = read_depth(file)
    assert np.isfinite(depth).all()
    return depth


def test_every_picture_is_read_before_it_is_damaged(tmp_path):
    assert all(attempt(tmp_path / "a.png", data, as_picture) is not None for data in whole_pictures())


@pytest.mark.parametrize("count", MANY)
def test_damaged_pictures_are_read_or_are_one_line(tmp_path, count):
    read, pictures = 0, whole_pictures()
    for seed in range(count):
        data = damaged(np.random.default_rng(seed), pictures[seed % len(pictures)])
        read += attempt(tmp_path / "a.png", data, as_depth if seed % 3 == 0 else as_picture) is not None
    assert 0 < read < count
