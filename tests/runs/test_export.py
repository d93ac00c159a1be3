"""A mesh is written where it looks like the scene, and a scene of which there is none to see is refused in one line."""

from types import SimpleNamespace

import numpy as np
import pytest

from lods_jax.core.cameras import Orbit, turntable
from lods_jax.core.errors import UserError
from lods_jax.core.types import Render
from lods_jax.runs import export
from lods_jax.scenes.density_field import Surface

BALL = Surface(0.9, lambda x: np.repeat(np.maximum(10 * (0.7 - np.linalg.norm(x, axis=1, keepdims=True)), 0), 4, 1))


def test_an_encoder_that_fails_is_one_line(tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("ffmpeg wrote no video")

    monkeypatch.setattr(export, "write_video", fails)
    image = np.zeros((2, 4, 4, 1))
    with pytest.raises(UserError, match="wrote no video"):
        export.write_videos(lambda camera: Render(image.repeat(3, -1), image, image, {}), turntable(2), tmp_path, 12.0)


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        (lambda x, y: x > 9, "nothing solid in view"),
        (lambda x, y: (x > 0.7) & (y > 0.7), "agree to an IoU of 0.0"),
    ],
)
def test_a_scene_that_is_almost_empty_or_lies_elsewhere_has_no_mesh(tmp_path, monkeypatch, seen, says):
    """Whatever level was taken, a block would be written."""
    monkeypatch.setattr(export, "COARSE", 16)
    monkeypatch.setattr(export, "FINE", 24)
    y, x = np.mgrid[:96, :96] / 47.5 - 1
    see = lambda camera: SimpleNamespace(opacity=np.repeat(seen(x, y)[None, ..., None], 16, 0).astype(np.float32))  # noqa: E731
    with pytest.raises(UserError, match=says):
        export.write_mesh(BALL, see, Orbit(extent=(0.8, 0.8)), tmp_path / "mesh.ply")
    assert not (tmp_path / "mesh.ply").exists()
