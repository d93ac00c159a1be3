import numpy as np
import pytest

from lods_jax.io.ply import FLIP, read_ply, write_ply


def splats(n=5, k=4, seed=0):
    rng = np.random.default_rng(seed)
    quats = rng.normal(size=(n, 4))
    shapes = {"means": (n, 3), "log_scales": (n, 3), "opacity_logits": (n,), "sh": (n, k, 3)}
    made = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return made | {"quats": (quats / np.linalg.norm(quats, axis=1, keepdims=True)).astype(np.float32)}


def rotation(q):
    w, x, y, z = q
    return np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip


@pytest.mark.parametrize("k", [1, 4, 9, 16])
def test_what_is_written_is_read(tmp_path, k):
    original = splats(k=k)
    assert write_ply(tmp_path / "a.ply", original) == 0
    back = read_ply(tmp_path / "a.ply")
    for name, value in original.items():
        np.testing.assert_allclose(back[name], value, atol=1e-6)


def test_up_is_up_for_viewers_that_take_y_as_down(tmp_path):
    """A point above the origin has negative y in the file, and orientations turn with the points."""
    original = splats(n=1, k=1) | {"means": np.array([[0, 0, 2.0]], np.float32)}
    write_ply(tmp_path / "a.ply", original)
    row = np.frombuffer((tmp_path / "a.ply").read_bytes().split(b"end_header\n")[1], "<f4")
    np.testing.assert_allclose(row[:3], [0, -2, 0], atol=1e-6)
    np.testing.assert_allclose(rotation(row[-4:]), FLIP @ rotation(original["quats"][0]), atol=1e-5)


def test_rows_that_are_not_finite_are_dropped_and_counted(tmp_path):
    bad = splats()
    bad["means"][2, 0], bad["log_scales"][4, 1] = np.nan, np.inf
    assert write_ply(tmp_path / "a.ply", bad) == 2
    np.testing.assert_allclose(read_ply(tmp_path / "a.ply")["means"], bad["means"][[0, 1, 3]], atol=1e-6)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-4], "cut short"),
        (lambda data: data.replace(b"binary_little_endian", b"ascii"), "not a binary little-endian PLY"),
        (lambda data: data.replace(b"float opacity", b"float opaqueness"), "no property opacity"),
        (lambda data: data.replace(b"property float x", b"property uchar x"), "float properties only"),
        (lambda data: b"", "not a binary little-endian PLY"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, damage, message):
    write_ply(tmp_path / "a.ply", splats())
    (tmp_path / "b.ply").write_bytes(damage((tmp_path / "a.ply").read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        read_ply(tmp_path / "b.ply")
    assert "\n" not in str(error.value)
