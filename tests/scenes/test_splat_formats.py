"""Packed splats against a reader that goes word by word, as the formats are documented."""

from pathlib import Path

import numpy as np
import pytest

from lods_jax.scenes.ply import read_ply, write_ply, write_splat
from lods_jax.scenes.ply_format import read_ply_tables
from lods_jax.scenes.spherical_harmonics import Y00
from lods_jax.scenes.splat_formats import decompress, read_splat_columns
from tests.scenes.test_ply import splats

FILES = Path(__file__).parents[1] / "data" / "user_files"


def bits(word, low, n):
    return ((int(word) >> low) & (2**n - 1)) / (2**n - 1)


def by_hand(tables, i):
    """Gaussian i of a compressed PLY, one word after the other."""
    vertex, chunk = tables["vertex"], {name: column[i // 256] for name, column in tables["chunk"].items()}
    mix = lambda name, t: chunk[f"min_{name}"] + (chunk[f"max_{name}"] - chunk[f"min_{name}"]) * t  # noqa: E731
    p, q, s, c = (vertex[f"packed_{name}"][i] for name in ("position", "rotation", "scale", "color"))
    out = {axis: mix(axis, t) for axis, t in zip("xyz", (bits(p, 21, 11), bits(p, 11, 10), bits(p, 0, 11)), strict=True)}
    for j, t in enumerate((bits(s, 21, 11), bits(s, 11, 10), bits(s, 0, 11))):
        out[f"scale_{j}"] = mix(f"scale_{'xyz'[j]}", t)
    rest = [(bits(q, low, 10) - 0.5) * 2**0.5 for low in (20, 10, 0)]
    rest.insert(int(q) >> 30, np.sqrt(max(0, 1 - sum(x * x for x in rest))))
    out |= {f"rot_{j}": x for j, x in enumerate(rest)}
    for j in range(3):
        t = bits(c, 24 - 8 * j, 8)
        out[f"f_dc_{j}"] = ((mix("rgb"[j], t) if "min_r" in chunk else t) - 0.5) / Y00
    a = bits(c, 0, 8)
    out["opacity"] = np.inf if a == 1 else -np.inf if a == 0 else np.log(a / (1 - a))
    return out | {name: float(column[i]) * 8 / 255 - 4 for name, column in tables.get("sh", {}).items()}


def packed(n, colors=False, rest=0, seed=0):
    rng, ends = np.random.default_rng(seed), (*"xyz", "scale_x", "scale_y", "scale_z", *("rgb" if colors else ""))
    chunks = -(-n // 256)
    low = {f"min_{name}": rng.normal(size=chunks).astype(np.float32) for name in ends}
    chunk = low | {f"max_{name}": low[f"min_{name}"] + rng.random(chunks).astype(np.float32) for name in ends}
    words = rng.integers(0, 2**32, (4, n), dtype=np.uint32)
    vertex = dict(zip(("packed_position", "packed_rotation", "packed_scale", "packed_color"), words, strict=True))
    sh = {f"f_rest_{i}": rng.integers(0, 256, n).astype(np.uint8) for i in range(rest)}
    return {"chunk": chunk, "vertex": vertex} | ({"sh": sh} if sh else {})


def write_tables(path, tables):
    kinds = {"f4": "float", "u4": "uint", "u1": "uchar"}
    head, body = ["ply", "format binary_little_endian 1.0"], b""
    for name, table in tables.items():
        rows = np.rec.fromarrays(list(table.values()), names=list(table))
        head += [f"element {name} {len(rows)}", *(f"property {kinds[c.dtype.str[1:]]} {key}" for key, c in table.items())]
        body += rows.tobytes()
    path.write_bytes("\n".join([*head, "end_header\n"]).encode() + body)


@pytest.mark.parametrize("tables", [packed(600), packed(256, colors=True), packed(40, colors=True, rest=45), packed(3, rest=9)])
def test_a_compressed_ply_is_what_its_words_say(tables):
    found = decompress(tables)
    for i in (0, 1, 255, 256, 599, len(found["x"]) - 1):
        if i < len(found["x"]):
            expected = by_hand(tables, i)
            assert set(expected) == set(found)
            np.testing.assert_allclose([found[key][i] for key in expected], list(expected.values()), rtol=1e-5, atol=1e-6)


def test_the_file_of_supersplat_is_what_its_words_say():
    tables = read_ply_tables(FILES / "gs_supersplat_compressed.ply", ("vertex", "chunk"))
    found = decompress(tables)
    for i in range(8):
        expected = by_hand(tables, i)
        np.testing.assert_allclose([found[key][i] for key in expected], list(expected.values()), rtol=1e-5, atol=1e-6)


def test_unpacked_rotations_are_of_length_one():
    """But for words that no packer writes, whose small three are too long for a largest one."""
    q = np.stack([decompress(packed(600))[f"rot_{i}"] for i in range(4)], 1)
    norm = np.linalg.norm(q, axis=1)
    assert norm.min() > 1 - 1e-6
    np.testing.assert_allclose(norm[norm < 1 + 1e-6], 1, atol=1e-6)


def test_a_compressed_file_is_read_as_the_plain_one_with_its_columns(tmp_path):
    tables = packed(300, colors=True, rest=24)
    write_tables(tmp_path / "packed.ply", tables)
    plain = {name: np.asarray(column, np.float32) for name, column in decompress(tables).items()}
    write_tables(tmp_path / "plain.ply", {"vertex": plain})
    one, other = read_ply(tmp_path / "packed.ply"), read_ply(tmp_path / "plain.ply")
    for name in one:
        np.testing.assert_allclose(one[name], other[name], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("chunk"), "lacks the property min_x"),
        (lambda t: t["chunk"].pop("max_scale_z"), "lacks the property max_scale_z"),
        (lambda t: t["vertex"].pop("packed_scale"), "lacks the property packed_scale"),
        (lambda t: t.update(chunk={k: v[:1] for k, v in t["chunk"].items()}), "a chunk for each 256"),
        (lambda t: t.update(sh={"f_rest_0": np.zeros(5, np.uint8)}), "a row of sh"),
    ],
)
def test_what_a_compressed_file_lacks_is_one_line(tmp_path, change, says):
    tables = packed(300)
    change(tables)
    write_tables(tmp_path / "a.ply", tables)
    with pytest.raises(ValueError, match=rf"a\.ply .*{says}"):
        read_ply(tmp_path / "a.ply")


def test_a_splat_file_is_read_as_it_was_written(tmp_path):
    """To the byte that it keeps of colours, opacities and rotations; the order is by what is seen most."""
    some = splats(50, 1)
    write_splat(tmp_path / "a.splat", some)
    write_ply(tmp_path / "a.ply", some)
    found, exact = read_ply(tmp_path / "a.splat"), read_ply(tmp_path / "a.ply")
    order = [int(np.argmin(np.abs(exact["means"] - mean).sum(1))) for mean in found["means"]]
    assert sorted(order) == list(range(50))
    np.testing.assert_allclose(found["log_scales"], exact["log_scales"][order], atol=1e-5)
    rgb = lambda sh: np.clip(0.5 + Y00 * sh[:, 0], 0, 1)  # noqa: E731
    np.testing.assert_allclose(rgb(found["sh"]), rgb(exact["sh"])[order], atol=0.51 / 255)
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    np.testing.assert_allclose(sigmoid(found["opacity_logits"]), sigmoid(exact["opacity_logits"])[order], atol=0.51 / 255)
    same = np.abs(np.sum(found["quats"] * exact["quats"][order], 1))
    assert same.min() > 0.999


@pytest.mark.parametrize("extra", [1, 31])
def test_a_splat_file_of_another_size_is_none(tmp_path, extra):
    (tmp_path / "a.SPLAT").write_bytes(bytes(64 + extra))
    with pytest.raises(ValueError, match=r"a\.SPLAT is no \.splat file"):
        read_ply(tmp_path / "a.SPLAT")
    assert len(read_splat_columns(FILES / "gs.splat")["x"]) == 8
