"""What a run says of the file that its Gaussians start from: what was done to it, and what to pass for another start."""

from dataclasses import replace

import numpy as np
import pytest

from lods_jax.config import Config, GaussianConfig
from lods_jax.core.errors import UserError
from lods_jax.scenes.ply import write_ply
from lods_jax.training import gaussian_setup
from lods_jax.training.build import scene_setup
from lods_jax.training.gaussian_setup import points_of_file

ROOM = GaussianConfig(capacity=64, init_count=50, sh_degree=1)


def splats(n=30, k=4, spread=0.2):
    rng = np.random.default_rng(0)
    shapes = {"means": (n, 3), "quats": (n, 4), "opacity_logits": (n,), "sh": (n, k, 3)}
    made = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return made | {"means": spread * made["means"], "log_scales": np.full((n, 3), -3, np.float32)}


def config(tmp_path, gaussians=ROOM, **changes):
    write_ply(tmp_path / "a.ply", splats(**changes))
    return Config(gaussians=replace(gaussians, init_type=str(tmp_path / "a.ply")))


def test_a_file_that_fits_is_taken_without_a_word(tmp_path):
    made = config(tmp_path)
    assert scene_setup(made).notes() == []
    np.testing.assert_allclose(points_of_file(made.gaussians, 0.88, 0)[0]["means"], splats()["means"], atol=1e-6)
    assert scene_setup(Config()).notes() == []


@pytest.mark.parametrize(
    ("changes", "gaussians", "says"),
    [
        (
            {"n": 51},
            ROOM,
            "50 of its 51 rows are drawn at random: pass --gaussians.init-count 51 --gaussians.capacity 102 for more",
        ),
        ({"k": 16}, ROOM, "depend on the view to degree 3: pass --gaussians.sh-degree 3"),
        ({"spread": 20.0}, ROOM, "centred from"),
        ({"spread": 20.0}, replace(ROOM, fit="never"), "pass --gaussians.fit auto"),
        ({}, replace(ROOM, fit="always"), "centred from"),
    ],
)
def test_what_is_done_to_a_file_is_said_with_its_name(tmp_path, changes, gaussians, says):
    (note,) = scene_setup(config(tmp_path, gaussians, **changes)).notes()
    assert note.startswith(f"{tmp_path / 'a.ply'}: ")
    assert says in note


def test_of_a_large_file_some_rows_are_looked_at_and_all_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(gaussian_setup, "ENOUGH", 40)
    made = config(tmp_path, replace(ROOM, init_count=20), n=300)
    start, (note,) = points_of_file(made.gaussians, 0.88, 0)
    assert start["means"].shape == (20, 3)
    assert "20 of its 300 rows" in note
    distance = np.abs(np.asarray(start["means"])[:, None] - splats(n=300)["means"][None]).max(-1)
    assert distance.min(1).max() < 1e-6  # rows of the file, whole
    assert len(set(distance.argmin(1))) == 20


@pytest.mark.parametrize("n", [0, 3])
def test_a_file_of_nothing_that_can_be_rendered_is_refused(tmp_path, n):
    made = config(tmp_path, n=n)
    if n:
        text = (tmp_path / "a.ply").read_bytes()
        (tmp_path / "a.ply").write_bytes(text[: text.index(b"end_header") + 11] + np.full(3 * 26, np.nan, "<f4").tobytes())
    with pytest.raises(UserError, match=r"a\.ply holds no point that can be rendered"):
        scene_setup(made).notes()
