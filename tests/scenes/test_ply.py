import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lods_jax.core.cameras import turntable
from lods_jax.scenes.gaussian_rasterizer import rasterize
from lods_jax.scenes.ply import FLIP, ROW, Y00, read_ply, read_points, read_vertices, write_ply, write_splat


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


def test_a_scene_that_has_been_through_a_file_looks_the_same(tmp_path):
    """Rendered, colours from every side included as long as they are of degree 0."""
    original = splats(30, 1) | {"log_scales": splats(30, 1)["log_scales"] * 0.3 - 2}
    write_ply(tmp_path / "a.ply", original)
    camera, n = turntable(2), len(original["means"])

    @jax.jit
    def look(s):
        scales, opacity = jnp.exp(s["log_scales"]), jax.nn.sigmoid(s["opacity_logits"])
        options = {"height": 32, "width": 32, "capacity": 64 * n, "probe": jnp.zeros((2, n, 2))}
        return rasterize(s["means"], s["quats"], scales, opacity, s["sh"], jnp.ones((2, 3)), camera, **options)

    before, after = (look({k: jnp.asarray(x) for k, x in s.items()}) for s in (original, read_ply(tmp_path / "a.ply")))
    assert float(before.opacity.mean()) > 0.05
    np.testing.assert_allclose(after.rgb, before.rgb, atol=1e-5)
    np.testing.assert_allclose(after.opacity, before.opacity, atol=1e-5)


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
        (lambda data: data.replace(b"binary_little_endian", b"binary_big_endian"), "not a PLY file in binary little endian"),
        (lambda data: data.replace(b"float opacity", b"float opaqueness"), "no property opacity"),
        (lambda data: data.replace(b"property float x", b"property list uchar int x"), "x, y and z, and each a number"),
        (lambda data: data.replace(b"property float x", b"property float w"), "x, y and z, and each a number"),
        (lambda data: data.replace(b"element vertex 5", b"element vertex -5"), "does not begin with an element vertex"),
        (lambda data: data.replace(b"element vertex 5", b"element vertex 99999999999"), "cut short"),
        (lambda data: data.replace(b"binary_little_endian", b"ascii"), "cut short|no number"),
        (lambda data: b"", "not a PLY file in binary little endian"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, damage, message):
    write_ply(tmp_path / "a.ply", splats())
    (tmp_path / "b.ply").write_bytes(damage((tmp_path / "a.ply").read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        read_ply(tmp_path / "b.ply")
    assert "\n" not in str(error.value)


CLOUD = np.array([[0, 0, 2, 255, 0, 51], [1, 2, 3, 0, 102, 255], [-1, 0.5, 0, 0, 0, 0]])


def cloud(path, layout, color="uchar", extra=b""):
    """The three points of CLOUD as other programs write them."""
    names = [*((f"float {x}") for x in "xyz"), *(f"{color} {x}" for x in ("red", "green", "blue"))]
    head = ["ply", f"format {layout} 1.0", "comment made by hand", "element vertex 3", *(f"property {n}" for n in names)]
    table = CLOUD / [1, 1, 1, 255, 255, 255] if color == "float" else CLOUD
    if layout == "ascii":
        rows = "\n".join(" ".join(f"{x:g}" for x in row) for row in table).encode()
    else:
        kind = np.dtype([(f"f{i}", "<f4" if i < 3 or color == "float" else "u1") for i in range(6)])
        rows = np.array([tuple(row) for row in table], kind).tobytes()
    path.write_bytes("\n".join([*head, "element face 0", "property list uchar int vertex_index", "end_header\n"]).encode() + rows)
    return path


@pytest.mark.parametrize(("layout", "color"), [("ascii", "uchar"), ("binary_little_endian", "uchar"), ("ascii", "float")])
def test_point_clouds_read_alike_whatever_their_layout(tmp_path, layout, color):
    points = read_points(cloud(tmp_path / "a.ply", layout, color))
    np.testing.assert_allclose(points["means"], CLOUD[:, :3], atol=1e-6)
    np.testing.assert_allclose(points["rgb"], CLOUD[:, 3:] / 255, atol=1e-5)


def test_a_splat_file_is_a_start_as_it_is(tmp_path):
    original = splats()
    write_ply(tmp_path / "a.ply", original)
    np.testing.assert_allclose(read_points(tmp_path / "a.ply")["log_scales"], original["log_scales"], atol=1e-6)


@pytest.mark.parametrize("k", [1, 4])
def test_a_scene_without_gaussians_is_written_too(tmp_path, k):
    """A run whose objective has pruned everything still ends in order."""
    assert write_ply(tmp_path / "a.ply", splats(0, k)) == 0
    assert read_ply(tmp_path / "a.ply")["sh"].shape == (0, k, 3)
    assert write_splat(tmp_path / "a.splat", splats(0, k)) == 0
    assert (tmp_path / "a.splat").stat().st_size == 0


def test_a_splat_file_holds_the_same_gaussians_in_32_bytes_each(tmp_path):
    """Against the PLY file, which is exact: positions and sizes as they are, colour, opacity and rotation to a byte."""
    some = splats(50, 1)
    some["means"][7] = np.nan
    write_ply(tmp_path / "a.ply", some)
    assert write_splat(tmp_path / "a.splat", some) == 1
    assert (tmp_path / "a.splat").stat().st_size == 49 * 32
    rows, column = np.fromfile(tmp_path / "a.splat", ROW), read_vertices(tmp_path / "a.ply")
    xyz = np.stack([column[k] for k in "xyz"], 1)
    order = [int(np.flatnonzero((xyz == mean).all(1))[0]) for mean in rows["mean"]]
    assert sorted(order) == list(range(49))
    pick = lambda *keys: np.stack([column[k][order] for k in keys], 1)  # noqa: E731
    np.testing.assert_allclose(rows["scale"], np.exp(pick("scale_0", "scale_1", "scale_2")), rtol=1e-6)
    rgb = np.clip(0.5 + Y00 * pick("f_dc_0", "f_dc_1", "f_dc_2"), 0, 1)
    np.testing.assert_allclose(rows["rgba"][:, :3] / 255, rgb, atol=0.51 / 255)
    np.testing.assert_allclose(rows["rgba"][:, 3] / 255, 1 / (1 + np.exp(-pick("opacity")[:, 0])), atol=0.51 / 255)
    quats = pick("rot_0", "rot_1", "rot_2", "rot_3")
    quats /= np.linalg.norm(quats, axis=1, keepdims=True)
    np.testing.assert_allclose((rows["quat"].astype(float) - 128) / 128, quats, atol=1.01 / 128)


def test_the_most_visible_come_first(tmp_path):
    some = splats(40, 1)
    write_splat(tmp_path / "a.splat", some)
    rows = np.fromfile(tmp_path / "a.splat", ROW)
    seen = rows["scale"].prod(1) * rows["rgba"][:, 3]
    np.testing.assert_allclose(seen, np.sort(seen)[::-1], rtol=0.05)  # opacity is rounded to a byte here
