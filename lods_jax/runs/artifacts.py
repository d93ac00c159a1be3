"""What a person sees of a scene: renders on white, previews, a turntable video, stills, the scene's own files and the page."""

from collections.abc import Callable
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
from lods_jax.training.build import Components
from lods_jax.training.compilation import Once, memory
from lods_jax.training.scene_setups import SceneSetup, StaticShapes, unstack_particles

AT_ONCE = 4  # views rendered in one call
SceneRenderer = Callable[[Any, Any, Camera], Render]


def scene_renderer(setup: SceneSetup, size: int, once: Once | None = None) -> SceneRenderer:
    """Builds a renderer of one particle on white for evaluation, previews and videos.

    It compiles for AT_ONCE views whatever their number, and again where the capacity runs out.

    Args:
        setup: of the scene.
        size: edge of the renders, pixels.
        once: holds what is compiled, see `compilation.memory`. Scenes of the same settings may share it.

    Returns:
        A function (theta, aux, n cameras) -> `Render` of NumPy arrays without extras.
    """
    shapes = setup.choose_shapes(size, {"total": 0})  # the least: what a view needs is known once it is rendered

    once = memory() if once is None else once

    def compiled(shapes: StaticShapes) -> Callable:
        scene = setup.eval_scene(shapes)
        keys = jax.random.split(jax.random.key(0), AT_ONCE)  # a white background draws nothing
        return jax.jit(lambda theta, aux, camera: scene.render(theta, aux, camera, keys, scene.means2d_probe(aux, AT_ONCE)))

    def render(*scene: Any) -> Render:
        return once(("render", shapes), lambda: compiled(shapes))(*scene)

    def render_fn(theta: Any, aux: Any, camera: Camera) -> Render:
        nonlocal shapes
        n, chunks = len(camera.view), []
        for first in range(0, n, AT_ONCE):
            rows = np.minimum(first + np.arange(AT_ONCE), n - 1)
            some = jax.tree.map(lambda x: x[rows], camera)  # noqa: B023 (used at once)
            out = render(theta, aux, some)
            while (grown := setup.choose_shapes(size, out.extras)) > shapes:
                shapes = grown
                out = render(theta, aux, some)
            chunks.append(jax.tree.map(np.asarray, out.replace(extras={})))
        return jax.tree.map(lambda *x: np.concatenate(x)[:n], *chunks)

    return render_fn


def turntable_cameras(
    orbit: Orbit, n: int, elevation: float = 20.0, radius: float | None = None, fov_y: float | None = None
) -> Camera:
    """n cameras around the object, at the largest distance of training, so that nothing is cut off.

    Args:
        orbit: the cameras of training.
        n: number of cameras.
        elevation: degrees.
        radius: distance, world units; None for the largest of training.
        fov_y: vertical field of view, degrees; None for the mean of training.

    Returns:
        n cameras at equal azimuths.
    """
    farthest = {name: (limits[1],) * 2 for name in ("radius", "extent") if (limits := getattr(orbit, name))}
    chosen = {} if radius is None else {"radius": (radius, radius), "extent": None}
    chosen |= {} if fov_y is None else {"fov_y": (fov_y, fov_y)}
    return turntable(n, elevation, orbit._replace(**farthest | chosen))


def output_views(config: Config, orbit: Orbit, n: int) -> Camera:
    """n cameras around the object, with the output settings of a configuration.

    Args:
        config: of the run.
        orbit: the cameras of training.
        n: number of cameras.

    Returns:
        n cameras at equal azimuths.
    """
    return turntable_cameras(orbit, n, config.output.elevation, config.output.radius, config.output.fov_y)


def scenes_of(components: Components, state: TrainState) -> list[tuple[Any, Any]]:
    """The scene of each particle.

    Args:
        components: of the run.
        state: of the training.

    Returns:
        (theta, aux) pairs.
    """
    n = components.setup.particles
    return list(zip(unstack_particles(state.theta, n), unstack_particles(state.aux, n), strict=True))


def render_views(
    components: Components, state: TrainState, render_fn: SceneRenderer, camera: Camera
) -> UInt8[np.ndarray, "n h w 3"]:
    """Renders of n cameras on white, particles side by side.

    Args:
        components: of the run.
        state: its state.
        render_fn: from `scene_renderer`.
        camera: n cameras.

    Returns:
        Bytes [n h w*particles 3].
    """
    scenes = zip(
        unstack_particles(state.theta, components.setup.particles),
        unstack_particles(state.aux, components.setup.particles),
        strict=True,
    )
    return np.concatenate([to_uint8(render_fn(theta, aux, camera).rgb) for theta, aux in scenes], axis=2)


def export(components: Components, folder: Path, state: TrainState) -> str:
    """Writes the scene in its own format: the first particle into a folder, the others below particles/.

    Args:
        components: of the run.
        folder: of the run.
        state: its state.

    Returns:
        A line on what was written.
    """
    for i, (theta, aux) in enumerate(
        zip(
            unstack_particles(state.theta, components.setup.particles),
            unstack_particles(state.aux, components.setup.particles),
            strict=True,
        )
    ):
        below = folder / "particles" / str(i) if i else folder
        below.mkdir(parents=True, exist_ok=True)
        said = components.setup.export(below, theta, aux)
        text = said if i == 0 else f"{text}, and in {below}: {said}"
    return text


def write_preview(
    config: Config, components: Components, folder: Path, done: int, state: TrainState, render_fn: SceneRenderer
) -> Path:
    """Writes previews/STEP.png, four sides in a row, and the scene as it is.

    `lods view` shows that scene, and a crash leaves it behind.

    Args:
        config: of the run.
        components: of the run.
        folder: of the run.
        done: steps so far.
        state: its state.
        render_fn: from `scene_renderer`.

    Returns:
        The path of the image.
    """
    images = render_views(components, state, render_fn, output_views(config, components.orbit, 4))
    export(components, folder, state)
    return write_png(folder / "previews" / f"{done:06d}.png", grid(images, 4))


def write_results(
    config: Config, components: Components, folder: Path, state: TrainState, render_fn: SceneRenderer, log: Callable
) -> None:
    """Writes the results of a run: a turntable video, eight stills, the scene in its own format, and the learned branch.

    Args:
        config: of the run.
        components: of the run.
        folder: of the run.
        state: its last state.
        render_fn: from `scene_renderer`.
        log: (phase, text), gets a line for each.
    """
    stills = render_views(components, state, render_fn, output_views(config, components.orbit, 8))
    write_png(folder / "stills.png", grid(stills, 4))
    for i, image in enumerate(stills):
        write_png(folder / "stills" / f"{i * 45:03d}.png", image)
    log("", export(components, folder, state))
    if written := write_learned(components, folder, state.psi):
        log("", f"{' and '.join(written)}: what the prior learned")
    try:
        frames = render_views(components, state, render_fn, output_views(config, components.orbit, config.output.frames))
        write_video(folder / "video.mp4", frames, float(config.output.fps))
    except RuntimeError as error:  # no ffmpeg that works: everything else is there
        log("", f"no video: {error}")


def write_learned(components: Components, folder: Path, psi: Any) -> list[str]:
    """Writes the learned branch of a Stable Diffusion prior as files that PyTorch pipelines read.

    Args:
        components: of the run.
        folder: of the run.
        psi: the learned branch.

    Returns:
        Names of the files.
    """
    written = []
    if components.prior_sha256 and "embedding" in psi:
        save_embedding(folder / "negative_prompt_embeds.safetensors", psi["embedding"], components.prior.pooled)
        written.append("negative_prompt_embeds.safetensors")
    if components.prior_sha256 and "lora" in psi:
        save_lora(
            folder / "pytorch_lora_weights.safetensors",
            psi["lora"],
            components.objective.queries[components.objective.trained_query].lora,
        )
        written.append("pytorch_lora_weights.safetensors")
    return written


def write_page_of(folder: Path, log: Callable) -> None:
    """Writes index.html. A page that fails never fails the run.

    Args:
        folder: of the run.
        log: (phase, text), gets a line if it fails.
    """
    try:
        write_page([read_run(folder)], folder / "index.html")
    except Exception as error:  # whatever it is: the run is whole without a page
        log("", f"no page: {one_line(error)}")
