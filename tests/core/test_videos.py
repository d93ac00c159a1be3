"""What a written video promises to players, read back by an independent decoder."""

import numpy as np
import pytest

from lods_jax.core import videos


def clip(h, w, n=12):
    """A smooth image that drifts."""
    t, y, x = np.meshgrid(np.arange(n) / n, np.arange(h) / h, np.arange(w) / w, indexing="ij")
    return np.stack([0.5 + 0.4 * np.sin(2 * np.pi * (x + t)), y, 0.5 + 0.4 * np.cos(2 * np.pi * (y - t))], -1)


@pytest.fixture(scope="module")
def read():
    import mediapy

    mediapy.set_ffmpeg(videos.ffmpeg_path())
    return mediapy.read_video


def test_frames_come_back_nearly_equal(tmp_path, read):
    frames = clip(48, 64)
    back = np.asarray(read(videos.write_video(tmp_path / "v.mp4", frames, fps=12.0)), np.float64) / 255
    assert back.shape == frames.shape
    assert -10 * np.log10(np.mean((back - frames) ** 2)) > 30


def test_odd_edges_repeat_their_last_line(tmp_path, read):
    back = np.asarray(read(videos.write_video(tmp_path / "v.mp4", clip(47, 63))), np.float64)
    assert back.shape[1:3] == (48, 64)
    assert np.abs(back[:, -1] - back[:, -2]).mean() < 8


def test_players_find_h264_and_the_index_first(tmp_path):
    data = videos.write_video(tmp_path / "v.mp4", clip(32, 32)).read_bytes()
    assert b"avc1" in data
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_an_ffmpeg_that_fails_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(videos, "ffmpeg_path", lambda: "false")
    with pytest.raises(RuntimeError, match="wrote no video"):
        videos.write_video(tmp_path / "v.mp4", clip(32, 32))
    assert not list(tmp_path.iterdir())
