"""MP4 videos that browsers, slides and phones play: H.264, yuv420p, the index at the front of the file."""

import shutil
from functools import cache
from pathlib import Path

import numpy as np

from lods_jax.core.files import replacing
from lods_jax.core.images import to_uint8


@cache
def ffmpeg_path() -> str:
    """The ffmpeg that writes videos: the system's own, else that of imageio-ffmpeg.

    Returns:
        Its path.

    Raises:
        RuntimeError: there is neither.
    """
    if found := shutil.which("ffmpeg"):
        return found
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError, OSError) as error:
        raise RuntimeError("no ffmpeg: install it, or `pip install 'imageio-ffmpeg>=0.6,<0.7'`") from error


def write_video(path: str | Path, frames: np.ndarray, fps: float = 24.0) -> Path:
    """Writes frames as an MP4 video (H.264, yuv420p).

    An odd edge repeats its last row or column, because yuv420p needs even sizes.

    Args:
        path: of the file.
        frames: [n h w 3], bytes or colours in [0, 1].
        fps: frames per second.

    Returns:
        The path.

    Raises:
        RuntimeError: no ffmpeg works; one line.
    """
    import mediapy  # half a second with its image libraries

    frames = to_uint8(frames)
    h, w = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), "edge")
    mediapy.set_ffmpeg(ffmpeg_path())
    with replacing(path) as partial:
        try:
            options = {"codec": "h264", "encoded_format": "yuv420p", "crf": 18, "ffmpeg_args": "-movflags +faststart"}
            mediapy.write_video(partial, frames, fps=fps, **options)
        except (RuntimeError, OSError) as error:
            raise RuntimeError(f"ffmpeg at {ffmpeg_path()} wrote no video: {str(error).strip().splitlines()[-1]}") from error
    return Path(path)
