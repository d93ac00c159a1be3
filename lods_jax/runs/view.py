"""`lods view`: the splats of a run in a browser, through viser, also while the run is under way. On this machine alone."""

import time
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lods_jax.core.errors import UserError
from lods_jax.runs.run_directory import read_run
from lods_jax.scenes.gaussian_rasterizer_reference import covariance
from lods_jax.scenes.ply import read_ply
from lods_jax.scenes.spherical_harmonics import Y00

HOST = "127.0.0.1"  # never to the network: whoever reaches the port sees the run
EVERY = 1.0  # seconds between looks at the folder


def view(folder: Path, port: int) -> None:
    """Serves until Ctrl-C; shows scene.ply again whenever the run has written it anew."""
    run = read_run(folder)
    try:
        import viser
    except ImportError as error:
        raise UserError("lods view needs viser: pip install 'lods_jax[viewer]'") from error
    server = viser.ViserServer(host=HOST, port=port, verbose=False)
    server.scene.set_up_direction("+z")
    server.initial_camera.position = (2.0, 0.8, 0.8)  # in front of the object, a little above
    server.initial_camera.look_at = (0.0, 0.0, 0.0)
    print(f"{run.config.prompt!r}, {run.end}: http://{HOST}:{server.get_port()} (Ctrl-C ends)", flush=True)
    if missing := run.missing("scene.ply"):
        print(f"missing: {missing}; shown as soon as a run writes it", flush=True)
    try:
        for file in changes(folder / "scene.ply"):
            splats = read_ply(file)
            server.scene.add_gaussian_splats("/scene", **as_viser(splats))
            print(f"{len(splats['means']):,} Gaussians, step {read_run(folder).step}", flush=True)
    finally:
        server.stop()


def changes(file: Path) -> Iterator[Path]:
    """The file each time that it has changed, for ever."""
    seen = None
    while True:
        stamp = file.stat().st_mtime_ns if file.is_file() else None
        if stamp is not None and stamp != seen:
            seen = stamp
            yield file
        time.sleep(EVERY)


def as_viser(splats: dict[str, Float[np.ndarray, "..."]]) -> dict[str, np.ndarray]:
    """Centres, covariances, colours and opacities, as viser takes them: [n 3], [n 3 3], [n 3], [n 1]."""
    return {
        "centers": splats["means"],
        "covariances": np.asarray(covariance(jnp.asarray(splats["quats"]), jnp.exp(splats["log_scales"]))),
        "rgbs": np.clip(0.5 + Y00 * splats["sh"][:, 0], 0, 1),
        "opacities": 1 / (1 + np.exp(-splats["opacity_logits"][:, None])),
    }
