"""`lods view`: the splats of a run in a browser, through viser, also while the run is under way. On this machine alone."""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lods_jax.core.errors import UserError, tell
from lods_jax.core.quaternions import covariance
from lods_jax.runs.run_directory import read_run
from lods_jax.scenes.ply import read_ply
from lods_jax.scenes.spherical_harmonics import Y00

HOST = "127.0.0.1"  # never to the network: whoever reaches the port sees the run
EVERY = 1.0  # seconds between looks at the folder


def view(folder: Path, port: int) -> None:
    """Serves the splats of a run in a browser until Ctrl-C, and updates them whenever the run has written them.

    Args:
        folder: of the run.
        port: the first to try.

    Raises:
        UserError: viser is not installed, or the folder holds no run.
    """
    run = read_run(folder)
    try:
        import viser
    except ImportError as error:
        raise UserError("lods view needs viser: pip install 'lods_jax[viewer]'") from error
    with own_pages_only():
        server = viser.ViserServer(host=HOST, port=port, verbose=False)
    server.scene.set_up_direction("+z")
    server.initial_camera.position = (2.0, 0.8, 0.8)  # in front of the object, a little above
    server.initial_camera.look_at = (0.0, 0.0, 0.0)
    tell(f"{run.config.prompt!r}, {run.end}: http://{HOST}:{server.get_port()} (Ctrl-C ends)")
    if missing := run.missing("scene.ply"):
        tell(f"missing: {missing}; shown as soon as a run writes it")
    try:
        for file in changes(folder / "scene.ply"):
            splats = read_ply(file)
            server.scene.add_gaussian_splats("/scene", **as_viser(splats))
            tell(f"{len(splats['means']):,} Gaussians, step {read_run(folder).step}")
    finally:
        server.stop()


@contextmanager
def own_pages_only() -> Iterator[None]:
    """Servers that are made within the block answer their own pages only.

    A page of any site may open a WebSocket to this machine, and viser does not check where requests come from.
    """
    from websockets.asyncio import server as sockets

    serve = sockets.serve

    def guarded(*args: Any, process_request: Callable, **options: Any) -> Any:
        def answer(connection: Any, request: Any) -> Any:
            if not is_own_page(request.headers.get_all("Host"), request.headers.get_all("Origin")):
                return connection.respond(403, "This page is of another site.\n")
            return process_request(connection, request)

        return serve(*args, process_request=answer, **options)

    sockets.serve = guarded
    try:
        yield
    finally:
        sockets.serve = serve


def is_own_page(hosts: Sequence[str], origins: Sequence[str]) -> bool:
    """Whether a request comes from a page of this server, under a name that only this machine has, or from no page.

    Args:
        hosts: its `Host` headers; the port may be that of a tunnel. A name that a foreign site has pointed here is refused.
        origins: its `Origin` headers, which a browser sets for a WebSocket.

    Returns:
        True if it does.

    Examples:
        >>> is_own_page(["localhost:8080"], ["https://example.org"])
        False
    """
    if len(hosts) != 1 or not re.fullmatch(r"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]+)?", hosts[0]):
        return False
    return all(origin in (f"http://{hosts[0]}", f"https://{hosts[0]}") for origin in origins)


def changes(file: Path) -> Iterator[Path]:
    """Yields a file each time that it has changed, without end.

    Args:
        file: need not exist yet.

    Yields:
        Its path.
    """
    seen = None
    while True:
        stamp = file.stat().st_mtime_ns if file.is_file() else None
        if stamp is not None and stamp != seen:
            seen = stamp
            yield file
        time.sleep(EVERY)


def as_viser(splats: dict[str, Float[np.ndarray, "..."]]) -> dict[str, np.ndarray]:
    """Gaussians as viser takes them.

    Args:
        splats: from `ply.read_ply`.

    Returns:
        centers [n 3], covariances [n 3 3], rgbs [n 3] and opacities [n 1].
    """
    return {
        "centers": splats["means"],
        "covariances": np.asarray(covariance(jnp.asarray(splats["quats"]), jnp.exp(splats["log_scales"]))),
        "rgbs": np.clip(0.5 + Y00 * splats["sh"][:, 0], 0, 1),
        "opacities": 1 / (1 + np.exp(-splats["opacity_logits"][:, None])),
    }
