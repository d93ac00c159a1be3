"""`lods export`: the scene of a run as a mesh, as splats, or as videos of its colour, depth and normals."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy import ndimage

from lods_jax.core import cameras
from lods_jax.core.cameras import Orbit
from lods_jax.core.errors import UserError
from lods_jax.core.types import Camera, Render, TrainState
from lods_jax.core.videos import write_video
from lods_jax.runs.artifacts import output_views, scene_renderer, turntable_cameras
from lods_jax.runs.restore import restore_scene
from lods_jax.runs.run_directory import Run
from lods_jax.scenes.density_field import Surface, grid, in_chunks
from lods_jax.scenes.mesh import (
    Mesh,
    bake,
    iou,
    marching_cubes,
    silhouette,
    simplify,
    without_crumbs,
    write_glb,
    write_mesh_ply,
    write_obj,
)
from lods_jax.training.build import Components, orbit_of, scene_setup
from lods_jax.training.compilation import Once
from lods_jax.training.scene_setups import unstack_particles

COARSE, FINE = 64, 128  # grid points an edge: to choose a level on, and of the mesh
SIZE = 96  # pixels of a silhouette
SEEN = 1e-3  # of the pixels at least are solid where there is a mesh to be made
AGREE = 0.25  # IoU of its silhouettes with them at least
LEVELS = np.geomspace(0.02, 0.6, 10)  # of the highest density, but for a thousandth of the space
RenderFn = Callable[[Camera], Render]  # n cameras -> renders on white, as NumPy arrays


def export(run: Run, to: str, out: Path | None, faces: int, texture: int, particle: int) -> str:
    """Writes the newest checkpoint of a run for other programs.

    Args:
        run: the run.
        to: "glb", "obj", "ply", "splat" or "mp4".
        out: a folder; None for that of the run.
        faces: largest number of faces of a mesh.
        texture: edge of the texture, pixels.
        particle: which of several.

    Returns:
        A line on what was written.

    Raises:
        UserError: a number is out of range, or the scene makes no mesh.
    """
    if not 0 <= particle < run.config.particles:
        raise UserError(f"--particle must be in 0..{run.config.particles - 1}, got {particle}")
    if faces < 4 or not 16 <= texture <= 8192:
        raise UserError(f"--faces must be at least 4 and --texture in 16..8192, got {faces} and {texture}")
    out, kind, orbit = out or run.path, scene_setup(run.config), orbit_of(run.config.camera)
    state = restore_scene(run)
    theta, aux = (unstack_particles(state[name], kind.particles)[particle] for name in ("theta", "aux"))
    out.mkdir(parents=True, exist_ok=True)
    if to == "splat":
        return kind.export(out, theta, aux)
    if to == "mp4":
        render_fn = partial(scene_renderer(kind, run.config.output.size), theta, aux)
        return write_videos(
            render_fn, output_views(run.config, orbit, run.config.output.frames), out, float(run.config.output.fps)
        )
    render_fn = partial(scene_renderer(kind, SIZE), theta, aux)
    return write_mesh(kind.surface(theta, aux), render_fn, orbit, out / f"mesh.{to}", faces, texture)


def mesh_of_run(components: Components, folder: Path, state: TrainState, once: Once) -> str:
    """Writes mesh.glb of the first particle, at the end of a run.

    Args:
        components: of the run.
        folder: of the run.
        state: its last state.
        once: holds what is compiled, see `compilation.memory`.

    Returns:
        A line on what was written, or on why there is no mesh.
    """
    setup = components.setup
    theta, aux = (unstack_particles(tree, setup.particles)[0] for tree in (state.theta, state.aux))
    render_fn = partial(scene_renderer(setup, SIZE, once), theta, aux)
    try:
        return write_mesh(setup.surface(theta, aux), render_fn, components.orbit, folder / "mesh.glb")
    except UserError as error:
        return f"no mesh: {error}"


# --- meshes -----------------------------------------------------------------------------------------------------------------
def write_mesh(
    surface: Surface,
    render_fn: RenderFn,
    orbit: Orbit,
    path: Path,
    faces: int = 10_000,
    texture: int = 512,
    obj_up: Literal["y", "z"] = "y",
) -> str:
    """Writes a mesh at the level of density whose silhouettes agree best with renders.

    GLB and OBJ have a baked texture, PLY has colours at the vertices.

    Args:
        surface: the density field.
        render_fn: cameras -> renders on white.
        orbit: the cameras of training.
        path: of the file; its suffix is the format.
        faces: largest number of faces.
        texture: edge of the texture, pixels.
        obj_up: the axis that points up in an OBJ file.

    Returns:
        A line on what was written and how well it agrees.

    Raises:
        UserError: the scene is almost empty, no mesh agrees with it, or the extra `mesh` is not installed.
    """
    camera = jax.tree.map(lambda *x: jnp.concatenate(x), *(turntable_cameras(orbit, 8, elevation) for elevation in (0.0, 40.0)))
    seen = render_fn(camera).opacity[..., 0] > 0.5
    if np.mean(seen) < SEEN:
        raise UserError("there is nothing solid in view to make a mesh of: the scene is almost empty, or lies elsewhere")
    level = best_level(surface, camera, seen)
    mesh = marching_cubes(grid(surface, FINE), surface.bound, level)
    mesh = simplify(without_crumbs(mesh), faces)
    agreement = iou(silhouettes(mesh, camera), seen)
    if agreement < AGREE:
        raise UserError(f"no mesh looks like this scene: silhouettes agree to an IoU of {agreement:.3f} at best")
    color = lambda x: surface.query_field(x)[:, 1:]  # noqa: E731
    if path.suffix == ".ply":
        write_mesh_ply(path, mesh._replace(colors=color(mesh.vertices)))
    else:
        {".glb": write_glb, ".obj": partial(write_obj, up=obj_up)}[path.suffix](path, bake(mesh, color, texture))
    return (
        f"{path}: {len(mesh.faces):,} faces at the density {level:.3g}, where silhouettes of mesh and renders agree best: "
        f"IoU {agreement:.3f}"
    )


def best_level(surface: Surface, camera: Camera, seen: Bool[np.ndarray, "n size size"]) -> float:
    """The level of density whose silhouettes have the largest IoU with renders, on a coarse grid.

    Args:
        surface: the density field.
        camera: n cameras.
        seen: where the renders are opaque [n size size].

    Returns:
        One of LEVELS times the highest density.

    Raises:
        UserError: the scene is empty.
    """
    values = grid(surface, COARSE)
    levels = LEVELS * np.quantile(values, 0.999)
    if not levels[-1] > 0:
        raise UserError("there is nothing in this scene to make a mesh of")
    return float(max(levels, key=lambda level: iou(silhouettes(marching_cubes(values, surface.bound, level), camera), seen)))


def silhouettes(mesh: Mesh, camera: Camera) -> Bool[np.ndarray, "n size size"]:
    """The pixels that a mesh covers in each view.

    Args:
        mesh: the triangles.
        camera: n cameras.

    Returns:
        Masks [n size size].
    """
    pixels = in_chunks(1 << 14, partial(pixel_rows, camera), mesh.vertices).reshape(len(mesh.vertices), -1, 2)
    return np.stack([silhouette(one, mesh.faces, SIZE) for one in np.moveaxis(pixels, 1, 0)])


@jax.jit
def pixel_rows(camera: Camera, points: Float[Array, "n 3"]) -> Float[Array, "n _"]:
    """Where points lie in the images of b cameras, which are SIZE pixels high and wide.

    Args:
        camera: b cameras.
        points: [n 3] world units.

    Returns:
        [n b*2]: for each point x and y in the first image, x and y in the second, and so on.
    """
    pixels, _ = cameras.project(camera, points, SIZE, SIZE)
    return jnp.moveaxis(pixels, 0, 1).reshape(len(points), -1)


# --- videos -----------------------------------------------------------------------------------------------------------------
def write_videos(render_fn: RenderFn, camera: Camera, folder: Path, fps: float) -> str:
    """Writes video.mp4, depth.mp4 (near is bright) and normal.mp4 (x right is red, y up green, z towards the camera blue).

    Args:
        render_fn: cameras -> renders on white.
        camera: one camera per frame.
        folder: to write to.
        fps: frames per second.

    Returns:
        A line on what was written.

    Raises:
        UserError: there is no ffmpeg that writes them.
    """
    render = render_fn(camera)
    solid = render.opacity > 0.5
    near, far = np.quantile(render.depth[solid], [0.005, 0.995]) if solid.any() else (0.0, 1.0)
    depth = np.where(solid, 1 - 0.8 * np.clip((render.depth - near) / max(far - near, 1e-6), 0, 1), 0.0)
    films = {
        "video": render.rgb,
        "depth": np.repeat(depth, 3, -1),
        "normal": np.where(solid, 0.5 + 0.5 * normals_of(render, camera), 1.0),
    }
    for name, film in films.items():
        try:
            write_video(folder / f"{name}.mp4", film, fps)
        except RuntimeError as error:
            raise UserError(str(error)) from error
    return f"{', '.join(str(folder / f'{name}.mp4') for name in films)}: {len(render.rgb)} frames"


def normals_of(render: Render, camera: Camera) -> Float[np.ndarray, "n h w 3"]:
    """Unit normals of depth maps, by central differences; at an edge of the object by those to the side of the object.

    Args:
        render: n views.
        camera: n cameras.

    Returns:
        [n h w 3] in the frame of the camera: x right, y up, z towards the camera. Zero where a pixel has no neighbour.
    """
    depth = render.depth[..., 0]
    seen = depth > 0
    inside = ndimage.minimum_filter(seen, size=(1, 3, 3))  # elsewhere the median would be of the background too
    z = np.where(inside, ndimage.median_filter(depth, size=(1, 3, 3)), depth)
    h, w = z.shape[1:]
    scale = (2 * np.tan(np.asarray(camera.fov_y) / 2) / h)[:, None, None]
    y, x = np.mgrid[:h, :w] + 0.5
    place = np.stack([(x - w / 2) * scale * z, (h / 2 - y) * scale * z, -z], -1)
    normal = np.cross(differences(place, seen, axis=2), -differences(place, seen, axis=1))
    return normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-12)


def differences(x: Float[np.ndarray, "n h w 3"], counts: Bool[np.ndarray, "n h w"], axis: int) -> Float[np.ndarray, "n h w 3"]:
    """Mean of the differences to the next and from the last pixel of an axis, of those between two pixels that count.

    Args:
        x: [n h w 3].
        counts: [n h w].
        axis: 1 or 2.

    Returns:
        [n h w 3]; zero where there is no such difference.
    """
    steps = np.diff(x, axis=axis)
    first, last = (np.take(counts, np.arange(steps.shape[axis]) + i, axis) for i in (0, 1))
    known = (first & last)[..., None]
    around = [[(0, 0)] * axis + [side] + [(0, 0)] * (3 - axis) for side in ((0, 1), (1, 0))]
    total, n = (sum(np.pad(part, pad) for pad in around) for part in (steps * known, known.astype(int)))
    return total / np.maximum(n, 1)
