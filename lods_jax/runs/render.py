"""`lods render`: views of runs in the layouts that the scorers of GPTEval3D and T3Bench read, without a mesh between."""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lods_jax.core.cameras import look_at
from lods_jax.core.errors import UserError
from lods_jax.core.images import to_uint8, write_png
from lods_jax.core.types import Camera, Render
from lods_jax.runs.artifacts import output_views
from lods_jax.runs.evaluate import shared_renderer
from lods_jax.runs.export import normals_of
from lods_jax.runs.restore import restore_scene
from lods_jax.runs.run_directory import Run, write_json
from lods_jax.training.build import orbit_of, scene_setup
from lods_jax.training.scene_setups import unstack_particles

AT_ONCE = 24  # views in memory: T3Bench has 810 of them
FIELDS_OF_VIEW = tuple(np.pi / k for k in (3, 4, 5, 6, 7.5))  # of T3Bench's five cameras in each place, radians
RADIUS = 2.2  # of T3Bench's sphere around an object that fills [-1, 1]^3
SOLID = 0.5  # opacity from which on a pixel has a normal
Views = Callable[[Camera], Render]


def render(run: Run, layout: str, out: Path, method: str, views: int, size: int) -> str:
    """Writes the views of a run's newest checkpoint, of its first particle.

    Args:
        run: the run.
        layout: "gpteval3d" or "t3bench".
        out: the folder of all runs.
        method: its name in the layout; "" for the objective of the run.
        views: number of views around the object; T3Bench has 810 of its own.
        size: edge of the images, pixels.

    Returns:
        A line on what was written.

    Raises:
        UserError: the run has no checkpoint, or the scene is empty.
    """
    try:
        state = restore_scene(run)
    except ValueError as error:
        raise UserError(f"{run.path} has no checkpoint to render: {error}") from None
    kind = scene_setup(run.config)
    theta, aux = (unstack_particles(state[name], kind.particles)[0] for name in ("theta", "aux"))
    look = partial(shared_renderer(run, size), theta, aux)
    name = method or re.sub(r"[^\w.-]+", "_", run.config.objective.name)
    if layout == "gpteval3d":
        folder = out / "methods" / name / str(prompt_number(out / "prompts.json", run.config.prompt)) / str(run.config.seed)
        n = write_gpteval3d(look, output_views(run.config, orbit_of(run.config.camera), views), folder)
    else:
        folder = out / name / run.config.prompt.replace(" ", "_").replace("/", "_")
        n = write_t3bench(look, sphere_cameras(*frame_of(*kind.mass(theta, aux))), folder)
    return f"{folder}: {n} images"


def in_pieces(look: Views, camera: Camera, write: Callable[[int, Render, Camera], None]) -> int:
    """Renders views a few at a time and writes each piece.

    Args:
        look: cameras -> renders on white.
        camera: n cameras.
        write: (number of the first, renders, cameras) -> None.

    Returns:
        n.
    """
    n = len(camera.view)
    for first in range(0, n, AT_ONCE):
        some = jax.tree.map(lambda x: x[first : first + AT_ONCE], camera)  # noqa: B023 (used at once)
        write(first, look(some), some)
    return n


# --- GPTEval3D ---------------------------------------------------------------------------------------------------------------
def prompt_number(file: Path, prompt: str) -> int:
    """The number of a prompt in GPTEval3D's prompts.json, at whose end a new one is added.

    Args:
        file: a JSON list of prompts; need not exist.
        prompt: of the run.

    Returns:
        Its index.

    Raises:
        UserError: the file is no list of texts.
    """
    try:
        prompts = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    except ValueError:
        prompts = None
    if not isinstance(prompts, list) or not all(isinstance(text, str) for text in prompts):
        raise UserError(f"{file} must be a JSON list of prompts, as GPTEval3D has it")
    if prompt not in prompts:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, prompts := [*prompts, prompt])
    return prompts.index(prompt)


def write_gpteval3d(look: Views, camera: Camera, folder: Path) -> int:
    """Writes rgb_0.png, normal_0.png and so on, one pair for each camera.

    Normals are those of the frame of the camera: x right is red, y up green, z towards the camera blue, white around the object.

    Args:
        look: cameras -> renders on white.
        camera: n cameras.
        folder: of one prompt and seed.

    Returns:
        Number of images.
    """

    def write(first, seen, some):
        normal = np.where(seen.opacity > SOLID, 0.5 + 0.5 * normals_of(seen, some), 1.0)
        for i, (rgb, shown) in enumerate(zip(to_uint8(seen.rgb), to_uint8(normal), strict=True), first):
            write_png(folder / f"rgb_{i}.png", rgb)
            write_png(folder / f"normal_{i}.png", shown)

    return 2 * in_pieces(look, camera, write)


# --- T3Bench -----------------------------------------------------------------------------------------------------------------
def frame_of(points: Float[np.ndarray, "n 3"], mass: Float[np.ndarray, "n"]) -> tuple[Float[np.ndarray, "3"], float]:
    """Middle and half-width of an object, by which T3Bench puts it into [-1, 1]^3.

    Args:
        points: where it has something [n 3].
        mass: how much [n].

    Returns:
        The mean of the mass [3], and the distance along an axis from it within which 99 % of the mass lies.

    Raises:
        UserError: there is nothing.
    """
    if not len(points) or not mass.sum() > 0:
        raise UserError("the scene is empty: there is nothing to render")
    middle = np.average(points, axis=0, weights=mass)
    reach = np.abs(points - middle).max(axis=1)
    order = np.argsort(reach)
    share = np.cumsum(mass[order]) / mass.sum()
    return middle, float(max(reach[order][np.searchsorted(share, 0.99).clip(max=len(share) - 1)], 1e-6))


def sphere_cameras(middle: Float[np.ndarray, "3"], half: float) -> Camera:
    """T3Bench's cameras: in every vertex of an icosphere five that look at its middle, with one field of view each.

    Args:
        middle: of the object [3].
        half: its half-width, world units.

    Returns:
        810 cameras, those of one vertex together.

    Raises:
        UserError: trimesh is not installed.
    """
    try:
        from trimesh.creation import icosphere
    except ImportError:
        raise UserError("the layout t3bench needs trimesh, whose sphere T3Bench scores on: pip install trimesh") from None
    vertices = np.repeat(np.asarray(icosphere(subdivisions=2, radius=RADIUS).vertices), len(FIELDS_OF_VIEW), axis=0)
    eyes = jnp.asarray(middle + half * vertices, jnp.float32)
    n = len(eyes)
    c2w = look_at(eyes, jnp.broadcast_to(jnp.asarray(middle, jnp.float32), eyes.shape))
    fov_y = jnp.tile(jnp.asarray(FIELDS_OF_VIEW, jnp.float32), n // len(FIELDS_OF_VIEW))
    azimuth, elevation = np.arctan2(vertices[:, 1], vertices[:, 0]), np.arcsin((vertices[:, 2] / RADIUS).clip(-1, 1))
    radius = jnp.full(n, half * RADIUS, jnp.float32)
    return Camera(c2w, fov_y, *(jnp.asarray(x, jnp.float32) for x in (azimuth, elevation)), radius, jnp.zeros(n, jnp.int32))


def write_t3bench(look: Views, camera: Camera, folder: Path) -> int:
    """Writes 000_0.png to 161_4.png on black, as T3Bench's renderer of meshes does.

    Args:
        look: cameras -> renders on white.
        camera: from `sphere_cameras`.
        folder: of one prompt.

    Returns:
        Number of images.
    """

    def write(first, seen, some):
        for i, rgb in enumerate(to_uint8(np.clip(seen.rgb - (1 - seen.opacity), 0, 1)), first):
            write_png(folder / f"{i // len(FIELDS_OF_VIEW):03d}_{i % len(FIELDS_OF_VIEW)}.png", rgb)

    return in_pieces(look, camera, write)
