from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lods_jax.core.cameras import turntable
from lods_jax.scenes.gaussian_rasterizer import rasterize
from lods_jax.scenes.ply import FLIP, MAX_LOGIT, read_ply, read_points, write_ply, write_splat
from lods_jax.scenes.ply_format import read_ply_tables
from lods_jax.scenes.spherical_harmonics import Y00, real_harmonics
from lods_jax.scenes.splat_formats import ROW


def splats(n=5, k=4, seed=0):
    rng = np.random.default_rng(seed)
    quats = rng.normal(size=(n, 4))
    shapes = {"means": (n, 3), "log_scales": (n, 3), "opacity_logits": (n,), "sh": (n, k, 3)}
    made = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return made | {"quats": (quats / np.linalg.norm(quats, axis=1, keepdims=True)).astype(np.float32)}


def vertices(path):
    return read_ply_tables(path, ["vertex"])["vertex"]


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


@pytest.mark.parametrize("k", [1, 16])
def test_a_scene_that_has_been_through_a_file_looks_the_same(tmp_path, k):
    """Rendered, colours that depend on the side included."""
    original = splats(30, k) | {"log_scales": splats(30, k)["log_scales"] * 0.3 - 2}
    write_ply(tmp_path / "a.ply", original)
    camera, n = turntable(2), len(original["means"])

    @jax.jit
    def look(s):
        scales, opacity = jnp.exp(s["log_scales"]), jax.nn.sigmoid(s["opacity_logits"])
        options = {"height": 32, "width": 32, "capacity": 64 * n, "means2d_probe": jnp.zeros((2, n, 2))}
        return rasterize(s["means"], s["quats"], scales, opacity, s["sh"], jnp.ones((2, 3)), camera, **options)

    before, after = (look({k: jnp.asarray(x) for k, x in s.items()}) for s in (original, read_ply(tmp_path / "a.ply")))
    assert float(before.opacity.mean()) > 0.05
    np.testing.assert_allclose(after.rgb, before.rgb, atol=1e-5)
    np.testing.assert_allclose(after.opacity, before.opacity, atol=1e-5)


@pytest.mark.parametrize("k", [4, 9, 16])
def test_a_viewer_sees_the_colours_of_the_run_from_every_side(tmp_path, k):
    """The coefficients of the file, along a direction of the file's world, give what the run shows along the same one of ours."""
    original, degree = splats(k=k), int(np.sqrt(k)) - 1
    write_ply(tmp_path / "a.ply", original)
    column, directions = vertices(tmp_path / "a.ply"), np.random.default_rng(1).normal(size=(40, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    dc = np.stack([column[f"f_dc_{i}"] for i in range(3)], 1)[:, None]
    rest = np.stack([column[f"f_rest_{i}"] for i in range(3 * (k - 1))], 1).reshape(5, 3, k - 1).transpose(0, 2, 1)
    theirs = np.einsum("dk,nkc->ndc", real_harmonics(directions @ FLIP.T, degree), np.concatenate([dc, rest], 1))
    ours = np.einsum("dk,nkc->ndc", real_harmonics(directions, degree), original["sh"])
    np.testing.assert_allclose(theirs, ours, atol=1e-5)
    assert np.abs(rest - original["sh"][:, 1:]).max() > 0.1  # that they are turned is no matter of rounding


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
        (lambda data: data.replace(b"float opacity", b"float opaqueness"), "no property opacity"),
        (lambda data: data.replace(b"property float x", b"property list uchar int x"), "is damaged|cut short|no property x"),
        (lambda data: data.replace(b"property float x", b"property float w"), "no property x"),
        (lambda data: data.replace(b"property float x", b"property float y"), "vertex property y twice"),
        (lambda data: data.replace(b"element vertex 5", b"element vertex -5"), "the line 'element vertex -5'"),
        (lambda data: data.replace(b"element vertex 5", b"element vertex " + b"9" * 5000), "the line 'element vertex 99"),
        (lambda data: data.replace(b"element vertex 5", b"element vertex 99999999999"), "cut short"),
        (lambda data: data.replace(b"element vertex", b"element corner"), "holds no vertices"),
        (lambda data: data.replace(b"binary_little_endian", b"ascii"), "numbers, its header says|cut short|no number"),
        (lambda data: data.replace(b"format", b"comment"), "names no format"),
        (lambda data: data.replace(b"end_header", b"end_heade"), "the line 'end_heade'"),
        (lambda data: data.replace(b"property float f_rest_8\n", b"") + b"....", "8 properties f_rest"),
        (lambda data: b"", "not a PLY file"),
        (lambda data: b"end_header\n", "not a PLY file"),
        (lambda data: b"ply\n" * 400_000, "the line 'ply'"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line_with_its_name(tmp_path, damage, message):
    write_ply(tmp_path / "a.ply", splats())
    (tmp_path / "b.ply").write_bytes(damage((tmp_path / "a.ply").read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        read_ply(tmp_path / "b.ply")
    assert "\n" not in str(error.value)
    assert str(tmp_path / "b.ply") in str(error.value)
    assert len(str(error.value)) < 400


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
    points = read_points(cloud(tmp_path / "a.ply", layout, color)).columns
    np.testing.assert_allclose(points["means"], CLOUD[:, :3], atol=1e-6)
    np.testing.assert_allclose(points["rgb"], CLOUD[:, 3:] / 255, atol=1e-5)


def test_a_splat_file_is_a_start_as_it_is(tmp_path):
    original = splats()
    write_ply(tmp_path / "a.ply", original)
    np.testing.assert_allclose(read_points(tmp_path / "a.ply").columns["log_scales"], original["log_scales"], atol=1e-6)


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
    rows, column = np.fromfile(tmp_path / "a.splat", ROW), vertices(tmp_path / "a.ply")
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


# --- files of other programs ----------------------------------------------------------------------------------------------------
FILES = Path(__file__).parents[1] / "data" / "user_files"
CORNERS = 0.3 * np.stack(np.meshgrid(*[[-1, 1]] * 3, indexing="ij"), -1).reshape(8, 3)  # of the cube in every file
GREY = {"pc_nocolour.ply"}


def names(pattern, *without):
    return sorted(file.name for file in FILES.glob(pattern) if file.name not in without)


@pytest.mark.parametrize(
    "name",
    [
        *names("pc_*.ply", *(f"pc_{x}.ply" for x in ("allnan", "comma", "dup", "empty", "nan", "one", "utm"))),
        "cloudcompare.ply",
        "meshlab.ply",
    ],
)
def test_every_program_s_cube_has_its_corners_and_its_colours(name):
    """Whatever line ends, byte order and names of colours it writes; the corner (+, +, +) is (128, 64, 32)."""
    points = read_points(FILES / name).columns
    order = np.lexsort(np.round(points["means"], 3).T[::-1])
    np.testing.assert_allclose(points["means"][order], CORNERS, atol=1e-6)
    color = [128, 128, 128] if name in GREY else [128, 64, 32]
    np.testing.assert_allclose(255 * points["rgb"][order][-1], color, atol=0.6)


@pytest.mark.parametrize(
    "name", [*names("gs_*.ply", "gs_nan_mean.ply", "gs_rest7.ply", "gs_supersplat_compressed.ply"), "gs.splat"]
)
def test_every_program_s_splats_stand_where_they_stood_and_have_their_colours(name):
    """(x, y, z) of the file, y down, is (x, z, -y) here; the last corner is (128, 64, 32)."""
    found = read_ply(FILES / name)
    np.testing.assert_allclose(found["means"][-1], [0.3, 0.3, -0.3], atol=1e-6)
    np.testing.assert_allclose(255 * (0.5 + Y00 * found["sh"][-1, 0]), [128, 64, 32], atol=0.6)
    np.testing.assert_allclose(np.linalg.norm(found["quats"], axis=1), 1, atol=1e-6)
    assert all(np.isfinite(value).all() for value in found.values())


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("gs_rest7.ply", "7 properties f_rest"),
        ("ply_one_f_rest.ply", "1 properties f_rest"),
        ("pc_comma.ply", "no number"),
        ("ply_5000_digits.ply", "the line 'element vertex 99"),
        ("ply_double_x.ply", "vertex property x twice"),
        ("ply_no_lines.ply", "is not a PLY file"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_the_file_s_name(name, says):
    with pytest.raises(ValueError, match=says) as error:
        read_points(FILES / name)
    assert name in str(error.value)


@pytest.mark.parametrize(
    ("name", "rows", "says"),
    [
        ("gs_nan_mean.ply", 7, "1 of 8 Gaussians cannot be rendered"),
        ("pc_nan.ply", 7, "1 of 8 points cannot be rendered"),
        ("pc_allnan.ply", 0, "8 of 8 points"),
        ("pc_nocolour.ply", 8, "all is grey"),
        ("pc_ushort.ply", 8, "65,535 is taken for white"),
        ("gs_2dgs.ply", 8, "a hundredth as thick"),
        ("gs_quat0.ply", 8, "the quaternion 0"),
    ],
)
def test_what_was_done_to_a_file_is_said(name, rows, says):
    points = read_points(FILES / name)
    assert len(points.columns["means"]) == rows
    assert any(says in note for note in points.notes)


def test_a_ply_named_splat_is_a_ply(tmp_path):
    (tmp_path / "a.splat").write_bytes((FILES / "gs_sh3.ply").read_bytes())
    np.testing.assert_array_equal(read_ply(tmp_path / "a.splat")["sh"], read_ply(FILES / "gs_sh3.ply")["sh"])


def test_map_coordinates_keep_their_decimals():
    means = read_points(FILES / "pc_utm.ply").columns["means"]
    np.testing.assert_allclose(means - means.mean(0), CORNERS, atol=1e-6)


def test_opacities_of_one_and_of_nothing_are_finite_logits():
    found = read_ply(FILES / "gs_inf.ply")
    np.testing.assert_array_equal(found["opacity_logits"][:3], np.float32([MAX_LOGIT, -MAX_LOGIT, 2]))


# --- colours of any kind --------------------------------------------------------------------------------------------------------
RGB = np.array([[255, 0, 51], [0, 102, 255], [0, 0, 0]])


@pytest.mark.parametrize(
    ("kind", "names", "values"),
    [
        ("uchar", ("red", "green", "blue"), RGB),
        ("char", ("red", "green", "blue"), RGB.astype(np.uint8).view(np.int8).reshape(3, 3)),
        ("ushort", ("red", "green", "blue"), 257 * RGB),
        ("short", ("red", "green", "blue"), RGB),
        ("int", ("diffuse_red", "diffuse_green", "diffuse_blue"), RGB),
        ("uint", ("r", "g", "b"), 257 * RGB),
        ("float", ("r", "g", "b"), RGB / 255),
        ("float", ("red", "green", "blue"), RGB),
        ("double", ("vertex_red", "vertex_green", "vertex_blue"), 257 * RGB),
        ("uchar", ("red", "green", "blue"), RGB / 255),  # against its header: a text file can
    ],
)
@pytest.mark.parametrize("layout", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_colours_are_those_of_the_file_whatever_they_are_kept_in(tmp_path, layout, kind, names, values):
    kinds = {"uchar": "u1", "char": "i1", "ushort": "u2", "short": "i2", "int": "i4", "uint": "u4", "float": "f4", "double": "f8"}
    if layout != "ascii" and kind == "uchar" and values is not RGB:
        pytest.skip("bytes are whole")
    head = ["ply", f"format {layout} 1.0", "element vertex 3", *(f"property float {x}" for x in "xyz")]
    head += [*(f"property {kind} {name}" for name in names), "end_header\n"]
    if layout == "ascii":
        body = "\n".join(f"{i} 0 0 " + " ".join(f"{v:.9g}" for v in row) for i, row in enumerate(values)).encode()
    else:
        order = "<" if "little" in layout else ">"
        rows = np.zeros(3, [("x", order + "f4", 3), ("c", order + kinds[kind], 3)])
        rows["x"][:, 0], rows["c"] = range(3), values
        body = rows.tobytes()
    (tmp_path / "a.ply").write_bytes("\n".join(head).encode() + body)
    points = read_points(tmp_path / "a.ply").columns
    np.testing.assert_allclose(points["rgb"], RGB / 255, atol=1e-6)
    np.testing.assert_array_equal(points["means"][:, 0], range(3))
