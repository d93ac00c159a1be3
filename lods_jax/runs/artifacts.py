"""What a person sees of a scene: renders on white, previews, a turntable video, stills, the scene's own files and the page."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from lods_jax.config import Config
from lods_jax.core.cameras import Orbit, turntable
from lods_jax.core.errors import one_line
from lods_jax.core.images import grid, to_uint8, write_png
from lods_jax.core.types import Camera, Render, TrainState
from lods_jax.core.videos import write_video
from lods_jax.priors.adapter_files import save_embedding, save_lora
from lods_jax.runs.page import write_page
from lods_jax.runs.run_directory import read_run
from lods_jax.training.build import Parts
from lods_jax.training.scene_setups import SCENES, Static, particles

AT_ONCE = 4  # views rendered in one call
Viewer = Callable[[Any, Any, Camera], Render]


def viewer(config: Config, size: int) -> Viewer:
    """Builds (theta, aux, n cameras) -> renders of one particle on white, size pixels wide, as NumPy arrays without extras.

    Compiled for AT_ONCE views whatever n is, and again where room runs out.
    """
    represent = SCENES[config.scene]
    static = represent.plan(config, size, {"total": 0})  # the least: what a view needs is known once it is rendered

    @cache
    def render(static: Static) -> Callable:
        scene = represent.eye(config, static)
        keys = jax.random.split(jax.random.key(0), AT_ONCE)  # a white background draws nothing
        return jax.jit(lambda theta, aux, camera: scene.render(theta, aux, camera, keys, scene.probe(aux, AT_ONCE)))

    def see(theta: Any, aux: Any, camera: Camera) -> Render:
        nonlocal static
        n, parts = len(camera.view), []
        for first in range(0, n, AT_ONCE):
            rows = np.minimum(first + np.arange(AT_ONCE), n - 1)
            some = jax.tree.map(lambda x: x[rows], camera)  # noqa: B023 (used at once)
            out = render(static)(theta, aux, some)
            while (grown := represent.plan(config, size, out.extras)) > static:
                static = grown
                out = render(static)(theta, aux, some)
            parts.append(jax.tree.map(np.asarray, out.replace(extras={})))
        return jax.tree.map(lambda *x: np.concatenate(x)[:n], *parts)

    return see


def circle(orbit: Orbit, n: int, elevation: float = 20.0, radius: float | None = None, fov_y: float | None = None) -> Camera:
    """n cameras around the object for people, in degrees; as far away as training ever was, so that nothing is cut off.

    Args:
      radius: the distance instead. fov_y: instead of the middle of training's.
    """
    farthest = {name: (limits[1],) * 2 for name in ("radius", "extent") if (limits := getattr(orbit, name))}
    chosen = {} if radius is None else {"radius": (radius, radius), "extent": None}
    chosen |= {} if fov_y is None else {"fov_y": (fov_y, fov_y)}
    return turntable(n, elevation, orbit._replace(**farthest | chosen))


def output_views(config: Config, orbit: Orbit, n: int) -> Camera:
    """n cameras around the object, as a configuration asks for them."""
    return circle(orbit, n, config.output.elevation, config.output.radius, config.output.fov_y)


def look(config: Config, state: TrainState, see: Viewer, camera: Camera) -> UInt8[np.ndarray, "n h w 3"]:
    """What n cameras see, on white; particles side by side."""
    scenes = zip(particles(config, state.theta), particles(config, state.aux), strict=True)
    return np.concatenate([to_uint8(see(theta, aux, camera).rgb) for theta, aux in scenes], axis=2)


def export(config: Config, parts: Parts, folder: Path, state: TrainState) -> str:
    """The scene in its own format: of the first particle into `folder`, of the others below particles/. Says what it wrote."""
    for i, (theta, aux) in enumerate(zip(particles(config, state.theta), particles(config, state.aux), strict=True)):
        below = folder / "particles" / str(i) if i else folder
        below.mkdir(parents=True, exist_ok=True)
        said = parts.representation.export(below, theta, aux)
        text = said if i == 0 else f"{text}, and in {below}: {said}"
    return text


def write_preview(config: Config, parts: Parts, folder: Path, done: int, state: TrainState, see: Viewer) -> Path:
    """Four sides in a row, as previews/<step>.png; and the scene as it is, for `lods view` and for whoever survives a crash."""
    images = look(config, state, see, output_views(config, parts.orbit, 4))
    export(config, parts, folder, state)
    return write_png(folder / "previews" / f"{done:06d}.png", grid(images, 4))


def write_results(config: Config, parts: Parts, folder: Path, state: TrainState, see: Viewer, say: Callable) -> None:
    """video.mp4 (a turntable), eight stills, one by one and in one picture, the scene in its own format, and what was learned."""
    stills = look(config, state, see, output_views(config, parts.orbit, 8))
    write_png(folder / "stills.png", grid(stills, 4))
    for i, image in enumerate(stills):
        write_png(folder / "stills" / f"{i * 45:03d}.png", image)
    say("", export(config, parts, folder, state))
    if written := write_learned(parts, folder, state.psi):
        say("", f"{' and '.join(written)}: what the prior learned")
    try:
        frames = look(config, state, see, output_views(config, parts.orbit, config.output.frames))
        write_video(folder / "video.mp4", frames, float(config.output.fps))
    except RuntimeError as error:  # no ffmpeg that works: everything else is there
        say("", f"no video: {error}")


def write_learned(parts: Parts, folder: Path, psi: Any) -> list[str]:
    """The learned branch of a Stable Diffusion, as files that PyTorch pipelines read; returns their names."""
    written = []
    if parts.prior_sha256 and "embedding" in psi:
        save_embedding(folder / "negative_prompt_embeds.safetensors", psi["embedding"])
        written.append("negative_prompt_embeds.safetensors")
    if parts.prior_sha256 and "lora" in psi:
        save_lora(folder / "pytorch_lora_weights.safetensors", psi["lora"], parts.objective.queries[parts.objective.fit].lora)
        written.append("pytorch_lora_weights.safetensors")
    return written


def write_page_of(folder: Path, say: Callable) -> None:
    """index.html; what a run lacks, and a page that fails, never fails the run."""
    try:
        write_page([read_run(folder)], folder / "index.html")
    except Exception as error:  # whatever it is: the run is whole without a page
        say("", f"no page: {one_line(error)}")
