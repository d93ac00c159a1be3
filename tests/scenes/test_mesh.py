"""Laws of meshes: closed, outward, as large as they are, coloured where they should be, and read by other programs."""

import json
import struct
import time
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from lods_jax.scenes.mesh import (
    Mesh,
    bake,
    cover,
    iou,
    marching_cubes,
    silhouette,
    simplify,
    vertex_normals,
    volume,
    without_crumbs,
    write_glb,
    write_mesh_ply,
    write_obj,
)
from lods_jax.scenes.ply import read_points
from tests.runs.browser import Browser, needs_browser

trimesh = pytest.importorskip("trimesh")
BOUND, R, G = 0.8, 0.5, 40
LINE = np.linspace(-BOUND, BOUND, G)
X = np.stack(np.meshgrid(LINE, LINE, LINE, indexing="ij"))
CELL = 2 * BOUND / (G - 1)


def ball(center=(0.0, 0.0, 0.0), radius=R):
    """Densities that fall through 1 at the radius."""
    return 1 + radius - np.linalg.norm(X - np.array(center)[:, None, None, None], axis=0)


def colour(x):
    """Linear in space, within [0, 1]."""
    return np.clip(0.5 + 0.6 * x @ np.array([[0.8, 0.1, 0], [0, 0.7, 0.1], [0.1, 0, 0.8]]), 0, 1)


@pytest.fixture(scope="module")
def sphere():
    return marching_cubes(ball(), BOUND, 1.0)


@pytest.fixture(scope="module")
def baked(sphere):
    return bake(simplify(sphere, 800), colour, 128)


def test_a_ball_is_round_closed_and_looks_outwards(sphere):
    np.testing.assert_allclose(np.linalg.norm(sphere.vertices, axis=1), R, atol=0.02 * CELL)
    assert volume(sphere) == pytest.approx(4 / 3 * np.pi * R**3, rel=0.01)
    edges = np.sort(sphere.faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), 1)
    edges, times = np.unique(edges, axis=0, return_counts=True)
    assert (times == 2).all()
    assert len(sphere.vertices) - len(edges) + len(sphere.faces) == 2  # Euler's characteristic
    cosine = np.sum(vertex_normals(sphere) * sphere.vertices, 1) / R
    assert cosine.min() > 0.99


def test_what_touches_the_border_is_closed_and_nothing_is_said_to_be_nothing():
    assert volume(marching_cubes(np.full((40,) * 3, 2.0), BOUND, 1.0)) == pytest.approx((2 * BOUND + CELL) ** 3, rel=0.01)
    with pytest.raises(ValueError, match=r"no surface at the level 3: densities reach from 0 to 2"):
        marching_cubes(np.where(ball() > 1, 2.0, 0.0), BOUND, 3.0)


def test_crumbs_are_dropped():
    both = np.maximum(ball((0.2, 0, 0), 0.4), ball((-0.6, 0, 0), 0.07))
    whole = marching_cubes(both, BOUND, 1.0)
    left = without_crumbs(whole, 0.1)
    assert left.vertices[:, 0].min() > -0.25 > whole.vertices[:, 0].min()
    assert volume(left) == pytest.approx(volume(marching_cubes(ball((0.2, 0, 0), 0.4), BOUND, 1.0)), rel=1e-5)


def test_fewer_faces_look_alike(sphere):
    small = simplify(sphere, 600)
    assert len(small.faces) <= 600 < len(sphere.faces)
    assert volume(small) == pytest.approx(volume(sphere), rel=0.02)
    masks = [silhouette(mesh.vertices[:, :2] * 40 + 40, mesh.faces, 80) for mesh in (small, sphere)]
    assert iou(*masks) > 0.98
    assert masks[1].sum() == pytest.approx(np.pi * (R * 40) ** 2, rel=0.01)


def test_cover_finds_each_pixel_once_and_its_place():
    corners = np.array([[[0.0, 0.0], [8.0, 0.0], [0.0, 8.0]], [[8.0, 0.0], [8.0, 8.0], [0.0, 8.0]], [[3.0, 3.0]] * 3])
    pixels, face, weights = cover(corners, 8, 8)
    assert set(pixels) == set(range(64))
    centre = np.stack([pixels % 8, pixels // 8], 1) + 0.5
    np.testing.assert_allclose(np.einsum("kc,kcd->kd", weights, corners[face]), centre, atol=1e-9)


def test_a_baked_texture_has_the_colour_of_each_place(baked):
    """Nearest texel at random points of the surface, half a texel off at most."""
    rng = np.random.default_rng(0)
    face = rng.integers(len(baked.faces), size=2000)
    weights = rng.dirichlet((1, 1, 1), 2000)
    mix = lambda x: np.einsum("kc,kcd->kd", weights, x[baked.faces[face]])  # noqa: E731
    texel = np.clip((mix(baked.uv) * 128).astype(int), 0, 127)
    found = baked.texture[texel[:, 1], texel[:, 0]] / 255
    error = np.abs(found - colour(mix(baked.vertices)))
    assert np.median(error) < 0.01
    assert error.max() < 0.06


def test_a_glb_is_y_up_with_its_front_to_z_and_no_metal(baked, tmp_path):
    shifted = baked._replace(vertices=baked.vertices + np.float32([0.1, 0.2, 0.3]))  # front, left, up
    write_glb(tmp_path / "a.glb", shifted)
    data = (tmp_path / "a.glb").read_bytes()
    magic, version, length, size, kind = struct.unpack("<4sII I4s", data[:20])
    assert (magic, version, length, kind, size % 4) == (b"glTF", 2, len(data), b"JSON", 0)
    document, body = json.loads(data[20 : 20 + size]), data[28 + size :]
    place = document["accessors"][document["meshes"][0]["primitives"][0]["attributes"]["POSITION"]]
    middle = (np.array(place["min"]) + np.array(place["max"])) / 2
    np.testing.assert_allclose(middle, [0.2, 0.3, 0.1], atol=0.02)
    material = document["materials"][0]
    assert material["pbrMetallicRoughness"]["metallicFactor"] == 0
    view = document["bufferViews"][document["images"][0]["bufferView"]]
    image = Image.open(BytesIO(body[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]))
    np.testing.assert_array_equal(np.asarray(image), baked.texture)


def test_other_programs_read_what_is_written(baked, sphere, tmp_path):
    for name, write in (("a.glb", write_glb), ("a.obj", write_obj)):
        write(tmp_path / name, baked)
        read = trimesh.load(tmp_path / name, force="mesh", process=False)
        assert read.volume == pytest.approx(volume(baked), rel=1e-3)
        assert np.asarray(read.visual.uv).shape == baked.uv.shape
        np.testing.assert_allclose(read.visual.uv, baked.uv * [1, -1] + [0, 1], atol=1e-4)  # trimesh has its origin below
    write_mesh_ply(tmp_path / "a.ply", sphere._replace(colors=colour(sphere.vertices)))
    read = trimesh.load(tmp_path / "a.ply", process=False)
    assert read.volume == pytest.approx(volume(sphere), rel=1e-4)
    points = read_points(tmp_path / "a.ply").columns
    np.testing.assert_allclose(points["rgb"], colour(points["means"]), atol=1 / 255)


@pytest.mark.parametrize(("up", "axes"), [("y", [1, 2, 0]), ("z", [0, 1, 2])])
def test_an_obj_has_the_axis_up_that_is_asked_for(baked, tmp_path, up, axes):
    """Vertices and normals alike."""
    write_obj(tmp_path / "a.obj", baked, up)
    rows = [row.split() for row in (tmp_path / "a.obj").read_text().splitlines()]
    for kind, expected in (("v", baked.vertices), ("vn", vertex_normals(baked))):
        found = np.array([row[1:] for row in rows if row[0] == kind], float)
        np.testing.assert_allclose(found, expected[:, axes], atol=1e-3)


def test_colours_of_vertices_are_linear_light_in_a_glb(tmp_path):
    one = Mesh(np.eye(3, dtype=np.float32), np.array([[0, 1, 2]]), colors=np.full((3, 3), 0.5))
    write_glb(tmp_path / "a.glb", one)
    data = (tmp_path / "a.glb").read_bytes()
    assert struct.pack("<f", 0.21404114) in data  # sRGB 0.5


@pytest.mark.slow
@needs_browser
def test_a_glb_opens_in_a_three_js_viewer(sphere, tmp_path):
    """A red ball in viser's client, which is three.js: a red disc in the middle of the window, and nothing red at its border."""
    viser = pytest.importorskip("viser")
    write_glb(tmp_path / "a.glb", bake(simplify(sphere, 800), lambda x: np.tile([1.0, 0.0, 0.0], (len(x), 1)), 64))
    server = viser.ViserServer(host="127.0.0.1", port=8765, verbose=False)
    server.initial_camera.position = (2.0, 0.5, 0.5)
    server.scene.add_glb("/ball", (tmp_path / "a.glb").read_bytes())
    with Browser(tmp_path / "profile", 800, 800) as browser:
        browser.call("Page.navigate", url=f"http://127.0.0.1:{server.get_port()}")
        for _ in range(60):
            time.sleep(0.5)
            image = np.asarray(Image.open(browser.screenshot(tmp_path / "shot.png")).convert("RGB"), int)
            red = (image[..., 0] > image[..., 1:].max(-1) + 60)[200:-50, 20:-20]
            if red.mean() > 0.02:
                break
    server.stop()
    assert red.mean() > 0.02
    rows, columns = np.nonzero(red)
    assert abs(np.median(columns) - red.shape[1] / 2) < 60
    assert 0.5 < np.ptp(rows) / np.ptp(columns) < 2
