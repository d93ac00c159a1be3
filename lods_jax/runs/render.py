"""`lods render`: runs in the layouts that the scorers of GPTEval3D and T3Bench open.

What they open is what their sources say: 3DTopia/GPTEval3D at 2382bdd (README.md, utils/t23d_tournament.py) and
THU-LYJ-Lab/T3Bench at 6367462 (run_eval_quality.py, run_caption.py, render/). GPTEval3D asks for the views of threestudio, with
which T3Bench makes its meshes; threestudio-project/threestudio was read at 28d9d80. Its world is ours: z up, the front at +x.
"""

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lods_jax.config import Config
from lods_jax.core.errors import UserError
from lods_jax.core.images import to_uint8, write_png
from lods_jax.core.types import Camera, Render
from lods_jax.runs.artifacts import turntable_cameras
from lods_jax.runs.evaluate import shared_renderer
from lods_jax.runs.export import SIZE, normals_of, write_mesh
from lods_jax.runs.restore import restore_scene
from lods_jax.runs.run_directory import Run, write_json
from lods_jax.training.build import orbit_of, scene_setup
from lods_jax.training.scene_setups import SceneSetup, unstack_particles

AT_ONCE = 24  # views in memory: T3Bench has 810 of them
Views = Callable[[Camera], Render]  # cameras -> renders on white


def method_name(run: Run, method: str) -> str:
    """The name of a run's method in a layout: the one that is asked for, or that of its objective."""
    return method or re.sub(r"[^\w.-]+", "_", run.config.objective.name)


def check_distinct(runs: Sequence[Run], method: str) -> None:
    """Checks that no two runs are the same object of a layout: the scorers look at one for each method and prompt.

    Args:
        runs: that are to be written.
        method: name of their method; "" for the objective of each.

    Raises:
        UserError: two runs have one method and one prompt.
    """
    taken: dict[tuple[str, str], Path] = {}
    for run in runs:
        name = method_name(run, method)
        other = taken.setdefault((name, t3bench_name(run.config.prompt).casefold()), run.path)
        if other != run.path:
            raise UserError(
                f"{other} and {run.path} are both the object of {name} for {run.config.prompt!r:.200}, and the scorers look at "
                "one: leave one out, or render it with another --method"
            )


def restored(run: Run) -> tuple[SceneSetup, Any, Any]:
    """The scene of a run's newest checkpoint.

    Args:
        run: the run.

    Returns:
        What makes and renders such scenes, and theta and aux of the first particle.

    Raises:
        UserError: the run has no checkpoint.
    """
    try:
        state = restore_scene(run)
    except ValueError as error:
        raise UserError(f"there is no checkpoint to render: {error}") from None
    kind = scene_setup(run.config)
    return kind, *(unstack_particles(state[name], kind.particles)[0] for name in ("theta", "aux"))


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
ELEVATION = 15.0  # of threestudio's views for evaluation, degrees
SCORED_SEED = "0"  # the one folder of a prompt that the scorer opens


def render_gpteval3d(run: Run, out: Path, method: str, views: int, size: int) -> str:
    """Writes views and normals of a run as methods/METHOD/NUMBER OF THE PROMPT/0.

    Args:
        run: the run; its first particle.
        out: the folder of all runs, with prompts.json.
        method: its name in the layout; "" for the objective of the run.
        views: number of views around the object, at least 2.
        size: edge of the images, pixels.

    Returns:
        A line on what was written.

    Raises:
        UserError: the run has no checkpoint, or prompts.json is no list of texts.
    """
    _, theta, aux = restored(run)
    number = prompt_number(out / "prompts.json", run.config.prompt)
    folder = out / "methods" / method_name(run, method) / str(number) / SCORED_SEED
    n = write_gpteval3d(partial(shared_renderer(run, size), theta, aux), threestudio_views(run.config, views), folder)
    return f"{folder}: {n} images of prompt {number} of {out / 'prompts.json'}"


def threestudio_views(config: Config, n: int) -> Camera:
    """The views of threestudio's test split: n azimuths from 0 to 360 degrees, both included, at one elevation.

    Distance and field of view are those of the run's videos: threestudio has others in each configuration too.

    Args:
        config: of the run.
        n: number of views, at least 2.

    Returns:
        n cameras, of which the last repeats the first.
    """
    output = config.output
    around = turntable_cameras(orbit_of(config.camera), n - 1, ELEVATION, output.radius, output.fov_y)
    return jax.tree.map(lambda x: x[np.arange(n) % (n - 1)], around)


def prompt_number(file: Path, prompt: str) -> int:
    """The number of a prompt in GPTEval3D's prompts.json, at whose end a new one is added.

    Args:
        file: a JSON list of prompts; need not exist.
        prompt: of the run; upper and lower case are the same.

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
    known = [text.strip().casefold() for text in prompts]
    if (wanted := prompt.strip().casefold()) in known:
        return known.index(wanted)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, [*prompts, prompt])
    return len(prompts)


def write_gpteval3d(look: Views, camera: Camera, folder: Path) -> int:
    """Writes rgb_0.png, normal_0.png and so on, one pair for each camera, in the place of those that are there.

    Args:
        look: cameras -> renders on white.
        camera: n cameras.
        folder: of one prompt and seed.

    Returns:
        Number of images.
    """
    for old in (*folder.glob("rgb_*.png"), *folder.glob("normal_*.png")):  # the scorer spreads its choice over all that it finds
        old.unlink()

    def write(first, seen, some):
        for i, (rgb, normal) in enumerate(zip(to_uint8(seen.rgb), to_uint8(normal_colors(seen, some)), strict=True), first):
            write_png(folder / f"rgb_{i}.png", rgb)
            write_png(folder / f"normal_{i}.png", normal)

    return 2 * in_pieces(look, camera, write)


def normal_colors(render: Render, camera: Camera) -> Float[np.ndarray, "n h w 3"]:
    """Normals as threestudio shows them: outward, in the frame of the world, (normal + 1) / 2 times the opacity.

    So a surface that faces the front (+x) is (1, 0.5, 0.5) in every view, one that faces up (+z) is (0.5, 0.5, 1), and what is
    beside the object is black.

    Args:
        render: n views.
        camera: n cameras.

    Returns:
        RGB [n h w 3] in [0, 1].
    """
    of_camera = normals_of(render, camera) * [1, -1, -1]  # y down and z forward, as c2w has it
    normals = np.einsum("nij,nhwj->nhwi", np.asarray(camera.c2w)[:, :3, :3], of_camera)
    return 0.5 * (normals + 1) * render.opacity


# --- T3Bench -----------------------------------------------------------------------------------------------------------------
class Sphere(NamedTuple):
    """The cameras of one of T3Bench's renderers: in each vertex of an icosphere one of each field of view.

    Attributes:
        subdivisions: of the icosahedron.
        distance: to the middle of an object that fills [-1, 1]^3.
        fov_y: vertical fields of view, radians.
        name: of a picture: (number of the vertex, number of the field of view) -> name.
    """

    subdivisions: int
    distance: float
    fov_y: tuple[float, ...]
    name: Callable[[int, int], str]


SPHERES = {  # by the folder of their pictures
    "quality": Sphere(2, 2.2, tuple(np.pi / k for k in (3, 4, 5, 6, 7.5)), lambda place, i: f"{place:03d}_{i}.png"),
    # meshrender_cap.py multiplies the vertices of a sphere of radius 2.2 by 2.2 once more.
    "caption": Sphere(0, 2.2**2, (np.pi / 3,), lambda place, i: f"{place:03d}.png"),
}


def t3bench_folder(run: Run, out: Path, method: str, group: str) -> Path:
    """The folder of a run's object below T3Bench's outputs_mesh_t3.

    The scorers look for METHOD_GROUP/PROMPT*/save/it*-export/model.obj. Of several matches they take any, so that the number of
    the step, which stands behind `it` in threestudio, is 0 here: a later checkpoint of a run replaces what is there.

    Args:
        run: the run.
        out: outputs_mesh_t3, or a folder that is to become it.
        method: its name in the layout; "" for the objective of the run.
        group: T3Bench's name of its set of prompts: "single", "surr" or "multi".

    Returns:
        The folder.
    """
    return out / f"{method_name(run, method)}_{group}" / t3bench_name(run.config.prompt) / "save" / "it0-export"


def t3bench_name(prompt: str) -> str:
    """The name of the folder of a prompt, as T3Bench makes it.

    Examples:
        >>> t3bench_name("a red/blue mug")
        'a_red_blue_mug'
    """
    return prompt.strip().replace(" ", "_").replace("/", "_")


def render_t3bench(run: Run, out: Path, method: str, group: str, faces: int, texture: int) -> str:
    """Writes a run as the mesh with a texture that T3Bench's scorers render: model.obj, z up as the meshes of threestudio.

    Args:
        run: the run; its first particle.
        out: outputs_mesh_t3, or a folder that is to become it.
        method: its name in the layout; "" for the objective of the run.
        group: T3Bench's name of its set of prompts.
        faces: largest number of faces.
        texture: edge of the texture, pixels.

    Returns:
        A line on what was written.

    Raises:
        UserError: the run has no checkpoint, or the scene makes no mesh.
    """
    kind, theta, aux = restored(run)
    path = t3bench_folder(run, out, method, group) / "model.obj"
    look = partial(shared_renderer(run, SIZE), theta, aux)
    return write_mesh(kind.surface(theta, aux), look, orbit_of(run.config.camera), path, faces, texture, obj_up="z")


def render_t3bench_views(run: Run, out: Path, method: str, group: str, size: int) -> str:
    """Writes the pictures that T3Bench's renderers would take of a run, without a mesh between, beside where its mesh is.

    Args:
        run: the run; its first particle.
        out: outputs_mesh_t3, or a folder that is to become it.
        method: its name in the layout; "" for the objective of the run.
        group: T3Bench's name of its set of prompts.
        size: edge of the images, pixels.

    Returns:
        A line on what was written.

    Raises:
        UserError: the run has no checkpoint, the scene is empty, or trimesh is not installed.
    """
    kind, theta, aux = restored(run)
    folder, frame = t3bench_folder(run, out, method, group), frame_of(*kind.mass(theta, aux))
    look = partial(shared_renderer(run, size), theta, aux)
    n = sum(write_sphere(look, sphere, *frame, folder / name) for name, sphere in SPHERES.items())
    return f"{folder}: {n} images"


def frame_of(points: Float[np.ndarray, "n 3"], mass: Float[np.ndarray, "n"]) -> tuple[Float[np.ndarray, "3"], float]:
    """Middle and half-width of an object, by which T3Bench puts it into [-1, 1]^3.

    T3Bench takes mean and largest distance of the vertices of a mesh.

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


def sphere_cameras(sphere: Sphere, middle: Float[np.ndarray, "3"], half: float) -> Camera:
    """T3Bench's cameras around an object. They look at its middle, with z up; right above and below it, with y up.

    Args:
        sphere: where they are.
        middle: of the object [3].
        half: its half-width, world units.

    Returns:
        The cameras, those of one vertex together.

    Raises:
        UserError: trimesh is not installed.
    """
    try:
        from trimesh.creation import icosphere
    except ImportError:
        raise UserError("the layout t3bench-views needs trimesh, whose sphere T3Bench scores on: pip install trimesh") from None
    vertices = np.asarray(icosphere(subdivisions=sphere.subdivisions).vertices)
    n, fields = len(vertices), len(sphere.fov_y)
    outwards = np.repeat(vertices / np.linalg.norm(vertices, axis=1, keepdims=True), fields, axis=0)
    up = np.where(np.abs(outwards[:, 2:]) < 0.99, [0.0, 0.0, 1.0], [0.0, 1.0, 0.0])
    right = np.cross(up, outwards)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    c2w = np.tile(np.eye(4), (n * fields, 1, 1))
    c2w[:, :3] = np.stack([right, np.cross(right, outwards), -outwards, middle + half * sphere.distance * outwards], -1)
    azimuth, elevation = np.arctan2(outwards[:, 1], outwards[:, 0]), np.arcsin(outwards[:, 2].clip(-1, 1))
    numbers = c2w, np.tile(sphere.fov_y, n), azimuth, elevation, np.full(n * fields, half * sphere.distance)
    return Camera(*(jnp.asarray(x, jnp.float32) for x in numbers), jnp.zeros(n * fields, jnp.int32))


def write_sphere(look: Views, sphere: Sphere, middle: Float[np.ndarray, "3"], half: float, folder: Path) -> int:
    """Writes the pictures of one of T3Bench's renderers, on black as there.

    Args:
        look: cameras -> renders on white.
        sphere: its cameras.
        middle: of the object [3].
        half: its half-width, world units.
        folder: of the pictures.

    Returns:
        Number of images.
    """

    def write(first, seen, some):
        for i, rgb in enumerate(to_uint8(np.clip(seen.rgb - (1 - seen.opacity), 0, 1)), first):
            write_png(folder / sphere.name(*divmod(i, len(sphere.fov_y))), rgb)

    return in_pieces(look, sphere_cameras(sphere, middle, half), write)
