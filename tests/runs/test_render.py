"""Runs for the scorers of others: names, numbers, cameras and colours are those that their sources ask for.

What GPTEval3D and T3Bench open is written down here once more, in `comparison` and `opened`, from what their sources do.
"""

import json
import math
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from lods_jax.cli import commands, main
from lods_jax.cli.command_line import parse
from lods_jax.config import Config
from lods_jax.core.cameras import look_at, rays
from lods_jax.core.errors import UserError
from lods_jax.core.types import Render
from lods_jax.runs import export, render
from lods_jax.scenes.density_field import Surface, grid
from tests.toy import TINY

RADIUS = 0.5


@pytest.fixture(scope="module")
def run(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("render") / "run"
    assert main([*TINY, "--steps", "2", "--seed", "3", "--out", str(folder)]) == 0
    return folder


def ball(size, camera):
    """A grey opaque ball around the origin, seen on white."""
    origin, direction = (np.asarray(x, np.float64) for x in rays(camera, size, size))
    along = -(origin * direction).sum(-1)
    half = RADIUS**2 - (origin**2).sum(-1) + along**2
    hit, t = half > 0, along - np.sqrt(np.maximum(half, 0))
    depth = hit * t * (direction @ np.asarray(camera.c2w)[:, None, :3, 2, None])[..., 0]
    rgb = np.where(hit[..., None], 0.5, 1.0) * np.ones(3)
    return Render(*(x.astype(np.float32) for x in (rgb, hit[..., None], depth[..., None])), {})


# --- GPTEval3D ---------------------------------------------------------------------------------------------------------------
def comparison(method, prompt, views):
    """One half of the picture that GPTEval3D shows to its judge: a square of evenly spread views above their normals.

    It counts the files of the seed 0, takes every (n // views)-th from 0 on, and drops what does not fill a row.
    """
    folder = method / str(prompt) / "0"
    n = len(list(folder.glob("rgb_*.png")))
    assert n == len(list(folder.glob("normal_*.png")))
    edge, chosen = math.isqrt(views), range(0, n, n // views)

    def square(kind):
        tiles = [np.asarray(Image.open(folder / f"{kind}_{i}.png")) for i in chosen][: len(chosen) // edge * edge]
        return np.concatenate([np.concatenate(tiles[i : i + edge], 1) for i in range(0, len(tiles), edge)], 0)

    return np.concatenate([square("rgb"), square("normal")], 0)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """The ball in 120 views, as the object of prompt 7."""
    folder = tmp_path_factory.mktemp("methods") / "mine"
    assert render.write_gpteval3d(partial(ball, 33), render.threestudio_views(Config(), 120), folder / "7" / "0") == 240
    return folder


@pytest.mark.parametrize("views", [1, 4, 9])
def test_gpteval3d_makes_its_squares_of_what_it_finds(seen, views):
    edge = math.isqrt(views) * 33
    assert comparison(seen, 7, views).shape == (2 * edge, edge, 3)


def test_normals_are_those_of_the_world_outward_and_black_beside_the_object(seen):
    """What faces +x is pink and what faces +y green, from wherever it is seen; red, green and blue rise with x, y and z."""
    image = lambda i: np.asarray(Image.open(seen / "7" / "0" / f"normal_{i}.png")).astype(float)  # noqa: E731
    front, side, back = image(0), image(round(119 / 4)), image(round(119 / 2))
    tilt = 127.5 * np.sin(np.deg2rad(15))  # the middle of the ball faces the camera, which is 15 degrees up
    for picture, faces in ((front, (1, 0)), (side, (0, 1)), (back, (-1, 0))):
        expected = 127.5 + np.array([127.5 * np.cos(np.deg2rad(15)) * x for x in faces] + [tilt])
        np.testing.assert_allclose(picture[16, 16], expected, atol=4)  # depths of 33 pixels, and a view 1.5 degrees off
        np.testing.assert_array_equal(picture[0, 0], 0)
    assert front[16, 20, 1] > front[16, 16, 1] > front[16, 12, 1]  # from the front, +y is on the right
    assert back[16, 20, 1] < back[16, 16, 1] < back[16, 12, 1]
    assert front[12, 16, 2] > front[16, 16, 2] > front[20, 16, 2]


def test_the_views_are_those_of_threestudio_around_the_object():
    """Azimuths from 0 to 360 degrees with both ends, 15 degrees up, the front first, then towards +y."""
    camera = render.threestudio_views(Config(), 120)
    angles = np.deg2rad(np.linspace(0, 360, 120))
    np.testing.assert_allclose(np.cos(camera.azimuth), np.cos(angles), atol=1e-5)
    np.testing.assert_allclose(np.sin(camera.azimuth), np.sin(angles), atol=1e-5)
    np.testing.assert_allclose(np.rad2deg(camera.elevation), 15, rtol=1e-5)
    eye = np.asarray(camera.c2w[:, :3, 3] / camera.radius[:, None])
    up = np.deg2rad(15)
    np.testing.assert_allclose(eye[0], [np.cos(up), 0, np.sin(up)], atol=1e-5)
    assert eye[1, 1] > 0


def test_gpteval3d_finds_the_number_of_the_prompt_and_the_seed_that_it_opens(run, tmp_path, capsys):
    """The seed of the run is 3, and a case of letters is no other prompt. A second call leaves no view of the first."""
    (tmp_path / "prompts.json").write_text('["a corgi", "A thing"]')
    flags = ["--out", str(tmp_path), "--size", "32", "--method", "mine"]
    for views in ("12", "9"):
        assert main(["render", str(run), *flags, "--views", views]) == 0
    assert json.loads((tmp_path / "prompts.json").read_text()) == ["a corgi", "A thing"]
    folder = tmp_path / "methods" / "mine" / "1" / "0"
    assert {file.name for file in folder.iterdir()} == {f"{kind}_{i}.png" for kind in ("rgb", "normal") for i in range(9)}
    assert comparison(tmp_path / "methods" / "mine", 1, 9).shape == (2 * 96, 96, 3)
    assert f"{folder}: 18 images of prompt 1 of {tmp_path / 'prompts.json'}" in capsys.readouterr().out


def test_a_new_prompt_goes_to_the_end_of_the_list(tmp_path):
    file = tmp_path / "new" / "prompts.json"
    assert [render.prompt_number(file, text) for text in ("a mug", "a Car", "a mug")] == [0, 1, 0]
    assert json.loads(file.read_text()) == ["a mug", "a Car"]


# --- T3Bench -----------------------------------------------------------------------------------------------------------------
def opened(out, method, group, prompt):
    """The mesh that T3Bench's scorers find for a prompt, loaded and scaled to [-1, 1]^3 as its renderers do."""
    trimesh = pytest.importorskip("trimesh")
    paths = list(out.glob(f"{method}_{group}/{prompt.replace(' ', '_')}*/save/it*-export/model.obj"))
    assert len(paths) == 1
    mesh = trimesh.load(paths[0])
    mesh.vertices -= mesh.vertices.mean(axis=0)  # which a scene of several meshes does not have
    mesh.vertices /= np.abs(mesh.vertices).max()
    return mesh


def test_t3bench_finds_one_mesh_with_its_z_up_and_its_colours_in_place(run, tmp_path, monkeypatch):
    """A column that is high, less wide, and flat, and red where y > 0."""
    monkeypatch.setattr(export, "COARSE", 24)
    monkeypatch.setattr(export, "FINE", 40)
    half = np.array([0.12, 0.25, 0.5])  # x, y, z

    def query(x):
        density = 100 * np.clip(1.1 - np.abs(x / half).max(-1, keepdims=True), 0, 0.2)
        return np.concatenate([density, np.where(x[:, 1:2] > 0, [[1.0, 0, 0]], [[0.0, 0, 1]])], 1)

    column = Surface(0.8, query)
    shape = export.marching_cubes(grid(column, 40), 0.8, 10.0)
    look = lambda camera: Render(None, export.silhouettes(shape, camera)[..., None], None, {})  # noqa: E731
    setup = type("Setup", (), {"surface": lambda self, theta, aux: column})()
    monkeypatch.setattr(render, "restored", lambda run: (setup, {}, {}))
    monkeypatch.setattr(render, "shared_renderer", lambda run, size: lambda theta, aux, camera: look(camera))
    flags = ["--layout", "t3bench", "--group", "surr", "--out", str(tmp_path), "--method", "mine"]
    for _ in range(2):
        assert main(["render", str(run), *flags, "--faces", "2000", "--texture", "128"]) == 0
    mesh = opened(tmp_path, "mine", "surr", "a thing")
    np.testing.assert_allclose(np.ptp(mesh.vertices, axis=0) / 2, half / half[2], atol=0.1)
    colors = np.asarray(mesh.visual.to_color().vertex_colors)[:, :3].astype(float)
    clear = np.abs(mesh.vertices[:, 1]) > 0.1  # away from where the colours meet
    np.testing.assert_array_equal((colors[:, 0] > colors[:, 2])[clear], (mesh.vertices[:, 1] > 0)[clear])


@pytest.mark.parametrize(("name", "n", "distance"), [("quality", 162 * 5, 2.2), ("caption", 12, 4.84)])
def test_t3benchs_cameras_are_those_of_its_renderers(name, n, distance):
    """Eyes on the vertices of its sphere; images upright along z, those from right above and below along y."""
    trimesh = pytest.importorskip("trimesh")
    sphere, middle, half = render.SPHERES[name], np.array([0.1, -0.2, 0.05]), 0.4
    camera = render.sphere_cameras(sphere, middle, half)
    fields = len(sphere.fov_y)
    assert len(camera.view) == n
    vertices = np.asarray(trimesh.creation.icosphere(subdivisions=0 if name == "caption" else 2).vertices)
    c2w = np.asarray(camera.c2w).reshape(-1, fields, 4, 4)
    np.testing.assert_allclose(c2w[:, 0, :3, 3], middle + half * distance * vertices, atol=1e-5)
    poles = np.abs(vertices[:, 2]) > 0.99
    assert poles.sum() == (0 if name == "caption" else 2)
    np.testing.assert_allclose(c2w[poles, 0, :3, 1], np.tile([0, -1, 0], (poles.sum(), 1)), atol=1e-5)  # down is -y
    expected = look_at(camera.c2w[::fields, :3, 3], jnp.tile(jnp.asarray(middle, jnp.float32), (len(vertices), 1)))
    np.testing.assert_allclose(c2w[~poles, 0], np.asarray(expected)[~poles], atol=1e-5)
    np.testing.assert_allclose(np.linalg.det(c2w[:, 0, :3, :3]), 1, rtol=1e-5)
    degrees = [60] if name == "caption" else [60, 45, 36, 30, 24]
    np.testing.assert_allclose(np.rad2deg(camera.fov_y).reshape(-1, fields)[-1], degrees, rtol=1e-5)


def test_t3benchs_pictures_are_on_black_beside_where_its_mesh_is(run, tmp_path, monkeypatch):
    """As few views as are rendered at once, of all that there are."""
    pytest.importorskip("trimesh")
    whole = render.sphere_cameras
    monkeypatch.setattr(render, "sphere_cameras", lambda *of: jax.tree.map(lambda x: x[:10], whole(*of)))
    monkeypatch.setattr(render, "AT_ONCE", 5)
    assert main(["render", str(run), "--layout", "t3bench-views", "--out", str(tmp_path), "--size", "32"]) == 0
    folder = tmp_path / "lods-lora_single" / "a_thing" / "save" / "it0-export"
    names = {kind: {file.name for file in (folder / kind).iterdir()} for kind in ("quality", "caption")}
    assert names["quality"] == {f"{place:03d}_{i}.png" for place in (0, 1) for i in range(5)}
    assert names["caption"] == {f"{place:03d}.png" for place in range(10)}
    wide = np.asarray(Image.open(folder / "quality" / "000_0.png"))
    assert wide[0, 0].max() < 32 < wide[12:20, 12:20].max()  # on white the corner would be the brightest


def test_the_frame_of_an_object_is_where_its_mass_is():
    """Two heavy points two apart, and a speck far away that does not count."""
    points = np.array([[1.0, 0, 0], [3.0, 0, 0], [2.0, 0, 100]])
    middle, half = render.frame_of(points, np.array([1.0, 1.0, 1e-6]))
    np.testing.assert_allclose(middle, [2, 0, 0], atol=1e-3)
    assert half == pytest.approx(1, abs=1e-3)
    with pytest.raises(UserError, match="the scene is empty"):
        render.frame_of(points[:0], np.zeros(0))


# --- refusals ----------------------------------------------------------------------------------------------------------------
def test_what_cannot_be_rendered_is_one_line(run, tmp_path, capsys):
    bare = shutil.copytree(run, tmp_path / "bare")
    shutil.rmtree(bare / "checkpoints")
    (tmp_path / "prompts.json").write_text('{"a": 1}')
    for argv, says in (
        ([str(bare)], f"{bare}: there is no checkpoint to render"),
        ([str(run), "--method", "../up"], "--method must be a name"),
        ([str(run), "--method", "a name"], "--method must be a name"),  # T3Bench hands it to a shell
        ([str(run), "--views", "8"], "--views must lie in 9..10000, got 8"),  # GPTEval3D spreads nine over them
        ([str(run), str(bare)], f"{run} and {bare} are both the object of lods-lora for 'a thing'"),
        ([str(run), "--size", "32"], "must be a JSON list of prompts"),
    ):
        assert main(["render", *argv, "--out", str(tmp_path)]) == 2
        err = capsys.readouterr().err
        assert says in err
        assert err.count("\n") == 1


def test_a_run_that_cannot_be_written_does_not_keep_the_others_from_it(run, tmp_path, capsys):
    bare = shutil.copytree(run, tmp_path / "bare")
    shutil.rmtree(bare / "checkpoints")
    config = bare / "config.yaml"
    config.write_text(config.read_text().replace("a thing", "a toy"))
    flags = ["--out", str(tmp_path / "out"), "--size", "32", "--views", "9"]
    assert main(["render", str(bare), str(run), *flags]) == 2
    assert json.loads((tmp_path / "out" / "prompts.json").read_text()) == ["a thing"]
    assert str(bare) in capsys.readouterr().err


def test_nor_does_one_that_the_disk_refuses(run, tmp_path, capsys, monkeypatch):
    """T3Bench's folders are named by their prompts, which may be too long for it."""
    long = shutil.copytree(run, tmp_path / "long")
    config = long / "config.yaml"
    config.write_text(config.read_text().replace("a thing", "a thing " + 30 * "very long "))
    monkeypatch.setattr(render, "write_sphere", lambda look, sphere, middle, half, folder: folder.mkdir(parents=True) or 1)
    flags = ["--layout", "t3bench-views", "--group", "single", "--out", str(tmp_path / "out")]
    assert main(["render", str(long), str(run), *flags]) == 2
    told = capsys.readouterr()
    assert told.err.startswith(f"lods: {long}: ")
    assert "File name too long" in told.err
    assert "2 images" in told.out


def test_a_reader_that_goes_away_is_no_fault_of_a_run(run, tmp_path, monkeypatch):
    """`lods render ... | head -1`"""

    def nobody(line):
        raise BrokenPipeError

    monkeypatch.setattr(render, "write_sphere", lambda look, sphere, middle, half, folder: 1)
    monkeypatch.setattr(commands, "tell", nobody)
    flags = ["--layout", "t3bench-views", "--group", "single", "--out", str(tmp_path / "out")]
    with pytest.raises(BrokenPipeError):
        commands.render(parse(["render", str(run), *flags]))
