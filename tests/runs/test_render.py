"""Views for the scorers of others: names, numbers and cameras are those that they expect."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from lods_jax.cli import main
from lods_jax.core.cameras import project
from lods_jax.core.errors import UserError
from lods_jax.runs import render
from tests.toy import TINY


@pytest.fixture(scope="module")
def run(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("render") / "run"
    assert main([*TINY, "--steps", "2", "--out", str(folder)]) == 0
    return folder


def test_gpteval3d_finds_its_prompts_and_as_many_pictures_as_normals(run, tmp_path, capsys):
    (tmp_path / "prompts.json").write_text('["a corgi"]')
    flags = ["--out", str(tmp_path), "--views", "3", "--size", "32", "--method", "mine"]
    for _ in range(2):  # a second call changes nothing
        assert main(["render", str(run), *flags]) == 0
    assert json.loads((tmp_path / "prompts.json").read_text()) == ["a corgi", "a thing"]
    folder = tmp_path / "methods" / "mine" / "1" / "0"
    names = {f"{kind}_{i}.png" for kind in ("rgb", "normal") for i in range(3)}
    assert {file.name for file in folder.iterdir()} == names
    assert all(Image.open(folder / name).size == (32, 32) for name in names)
    assert f"{folder}: 6 images" in capsys.readouterr().out


def test_t3bench_gets_five_pictures_on_black_in_each_place_of_its_sphere(run, tmp_path, monkeypatch):
    """As few views as are rendered at once, of all that there are."""
    pytest.importorskip("trimesh")
    whole = render.sphere_cameras
    few = lambda *frame: jax.tree.map(lambda x: x[:10], whole(*frame))  # noqa: E731
    monkeypatch.setattr(render, "sphere_cameras", few)
    monkeypatch.setattr(render, "AT_ONCE", 4)
    assert main(["render", str(run), "--layout", "t3bench", "--out", str(tmp_path), "--size", "32"]) == 0
    folder = tmp_path / "lods-lora" / "a_thing"
    assert {file.name for file in folder.iterdir()} == {f"{place:03d}_{i}.png" for place in (0, 1) for i in range(5)}
    wide = np.asarray(Image.open(folder / "000_0.png"))
    assert wide[0, 0].max() < 32 < wide[12:20, 12:20].max()  # on white the corner would be the brightest


def test_t3benchs_cameras_see_the_whole_object_from_all_around_and_its_middle_in_the_middle():
    pytest.importorskip("trimesh")
    middle, half = np.array([0.1, -0.2, 0.05]), 0.4
    camera = render.sphere_cameras(middle, half)
    assert len(camera.view) == 162 * 5
    pixels, depth = project(camera, jnp.asarray(middle, jnp.float32)[None], 512, 512)
    np.testing.assert_allclose(pixels, 256, atol=1e-2)
    np.testing.assert_allclose(depth, 2.2 * half, rtol=1e-5)
    eyes = np.asarray(camera.c2w[::5, :3, 3])
    np.testing.assert_allclose(eyes.mean(0), middle, atol=1e-5)  # the places surround it evenly
    widest = jax.tree.map(lambda x: x[::5], camera)
    cube = middle + half * np.array([[0.7, 0, 0], [0, 0.7, 0], [0, 0, -0.7]])
    pixels, _ = project(widest, jnp.asarray(cube, jnp.float32), 512, 512)
    assert float(pixels.min()) > 0
    assert float(pixels.max()) < 512


def test_the_frame_of_an_object_is_where_its_mass_is():
    """Two heavy points two apart, and a speck far away that does not count."""
    points = np.array([[1.0, 0, 0], [3.0, 0, 0], [2.0, 0, 100]])
    middle, half = render.frame_of(points, np.array([1.0, 1.0, 1e-6]))
    np.testing.assert_allclose(middle, [2, 0, 0], atol=1e-3)
    assert half == pytest.approx(1, abs=1e-3)
    with pytest.raises(UserError, match="the scene is empty"):
        render.frame_of(points[:0], np.zeros(0))


def test_what_cannot_be_rendered_is_one_line(run, tmp_path, capsys):
    bare = shutil.copytree(run, tmp_path / "bare")
    shutil.rmtree(bare / "checkpoints")
    (tmp_path / "prompts.json").write_text('{"a": 1}')
    for argv, says in (
        ([str(bare)], "has no checkpoint to render"),
        ([str(run), "--method", "../up"], "--method must be a name"),
        ([str(run), "--size", "32"], "must be a JSON list of prompts"),
    ):
        assert main(["render", *argv, "--out", str(tmp_path)]) == 2
        err = capsys.readouterr().err
        assert says in err
        assert err.count("\n") == 1
