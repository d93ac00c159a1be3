"""A run of a radiance field: it leaves what people open, goes on bit for bit with its occupancy grid, and is exported."""

import shutil

import numpy as np
import pytest
import trimesh

from lods_jax.cli import main
from lods_jax.runs import export
from lods_jax.runs.page import lacking
from lods_jax.runs.run_directory import read_run
from lods_jax.scenes.density_field import Surface, query_rows
from lods_jax.scenes.ply import read_ply
from tests.toy import TINY, batch, final, metrics, same

FLAGS = [*TINY[: TINY.index("--gaussians.capacity")], "--checkpoint.every", "4", "--checkpoint.keep", "9", "--scene", "nerf"]
FLAGS += ["--nerf.samples", "16", "--nerf.refresh-every", "3"]


pytestmark = pytest.mark.usefixtures("toy", "coarse")


@pytest.fixture(scope="module")
def coarse():
    """Grids of a sixteenth of the points."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "COARSE", 24)
        patch.setattr(export, "FINE", 50)
        yield


@pytest.fixture(scope="module")
def whole(toy, coarse, tmp_path_factory):
    out = tmp_path_factory.mktemp("nerf") / "batch"
    batch(FLAGS, ["a thing"], out)
    return out / "a-thing"


@pytest.mark.slow
def test_what_fields_compile_to_the_mesh_is_shared_in_a_batch(tmp_path):
    """Their meshes have different numbers of vertices, and their weights are different."""
    for function in (query_rows, export.pixel_rows):  # of no run: a test before this one may have compiled them
        function.clear_cache()
    out = tmp_path / "batch"
    names = batch(FLAGS, ["a thing", "a toy"], out)
    assert {"jit(query_rows)", "jit(pixel_rows)", "jit(nerf_refine)"} <= {*names[0]}
    assert names[1] == []
    assert lacking(read_run(out / "a-toy")) == ""


def test_it_leaves_what_people_open(whole):
    assert lacking(read_run(whole)) == ""
    assert "samples" in metrics(whole)[-1]
    assert len(read_ply(whole / "scene.ply")["means"]) > 100
    mesh = trimesh.load(whole / "mesh.glb", force="mesh", process=False)
    assert len(mesh.faces) <= 10_000
    assert mesh.volume > 0.01
    assert mesh.visual.material.metallicFactor == 0


def test_it_goes_on_bit_for_bit_with_its_occupancy_grid(whole, tmp_path):
    folder = tmp_path / "killed"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "checkpoints" / "8")
    assert main(["resume", str(folder)]) == 0
    same(final(folder), final(whole))


@pytest.mark.parametrize(("to", "files"), [("obj", ("mesh.obj", "mesh.mtl", "mesh.png")), ("ply", ("mesh.ply",))])
def test_meshes_for_other_programs(whole, tmp_path, capsys, to, files):
    assert main(["export", str(whole), "--to", to, "--out", str(tmp_path / "to"), "--faces", "500", "--texture", "64"]) == 0
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == sorted(files)
    mesh = trimesh.load(tmp_path / "to" / f"mesh.{to}", force="mesh", process=False)
    assert 100 < len(mesh.faces) <= 500
    assert float(capsys.readouterr().out.rsplit("IoU ", 1)[1]) > 0.9


def test_t3benchs_scorers_find_the_mesh_of_a_field_with_its_z_up(whole, tmp_path):
    flags = ["--layout", "t3bench", "--method", "mine", "--group", "multi", "--faces", "500", "--texture", "64"]
    assert main(["render", str(whole), *flags, "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("mine_multi/a_thing*/save/it*-export/model.obj")
    scene, upright = trimesh.load(path), trimesh.load(whole / "mesh.glb", force="mesh")
    np.testing.assert_allclose(scene.extents[[1, 2, 0]], upright.extents, rtol=0.1)  # a GLB has y up


def test_videos_of_colour_depth_and_normals(whole, tmp_path):
    assert main(["export", str(whole), "--to", "mp4", "--out", str(tmp_path)]) == 0
    assert all((tmp_path / f"{name}.mp4").stat().st_size > 500 for name in ("video", "depth", "normal"))


def test_what_cannot_be_exported_is_told_in_one_line(whole, capsys):
    assert main(["export", str(whole), "--particle", "1"]) == 2
    assert capsys.readouterr().err == "lods: --particle must be in 0..0, got 1\n"
    assert main(["export", str(whole), "--faces", "2"]) == 2
    assert "--faces must lie in 4..100000000, got 2" in capsys.readouterr().err


def test_a_level_is_found_by_what_is_seen():
    """A ball whose density falls slowly, seen as large as it is at a density of 6."""
    ball = Surface(0.8, lambda x: np.repeat(np.maximum(10 * (1 - np.linalg.norm(x, axis=1, keepdims=True)), 0), 4, 1))
    camera = export.turntable_cameras(export.Orbit(extent=(0.8, 0.8)), 3)
    level = 6.0
    seen = export.silhouettes(export.marching_cubes(export.grid(ball, export.COARSE), 0.8, level), camera)
    found = export.best_level(ball, camera, seen)
    steps = export.LEVELS * np.quantile(export.grid(ball, export.COARSE), 0.999)
    assert found == min(steps, key=lambda x: abs(x - level))


def test_normals_of_a_tilted_plane():
    """Depth of a plane with a known normal in the camera's frame, whole and cut to a disc: a normal holds up to the edge."""
    camera, h = export.turntable_cameras(export.Orbit(extent=(0.8, 0.8)), 1), 16
    normal = np.array([0.3, 0.2, 0.9]) / np.linalg.norm([0.3, 0.2, 0.9])
    scale = 2 * np.tan(float(camera.fov_y[0]) / 2) / h
    y, x = np.mgrid[:h, :h] + 0.5
    ray = np.stack([(x - h / 2) * scale, (h / 2 - y) * scale, -np.ones_like(x)], -1)
    depth = -2.0 / (ray @ normal)
    disc = np.hypot(x - h / 2, y - h / 2) < 6
    for seen, held in ((np.ones((h, h), bool), np.s_[2:-2, 2:-2]), (disc, disc)):
        render = export.Render(None, None, (depth * seen)[None, ..., None].astype(np.float32), {})
        np.testing.assert_allclose(export.normals_of(render, camera)[0][held] @ normal, 1, atol=1e-3)
