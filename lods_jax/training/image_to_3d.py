"""Image-to-3D: the image of a run, its cut-out and camera, and the Zero-1-to-3 prior that it conditions.

The image enters a run in three ways: as a reference view (`regularizers.image_errors`), as the condition of a Zero-1-to-3 prior,
and through the prompt, whose embedding can be fitted to it before the run (`textual_inversion`).
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import ndimage

from lods_jax.config import Config, ImageConfig, PriorConfig, Zero123Config
from lods_jax.core.cameras import Orbit, orbit_camera, relative_pose
from lods_jax.core.cutouts import centre, cut_out, framed, is_seen, over
from lods_jax.core.errors import UserError
from lods_jax.core.images import read_depth, read_rgba, to_uint8, white_of_file, write_png, write_tiff
from lods_jax.core.math import normalize
from lods_jax.core.paths import TABLETOP_POSE
from lods_jax.core.types import Camera, Objective, Prior, Reference, ReferenceImage
from lods_jax.distillation.auxiliary_priors import AuxiliaryPrior
from lods_jax.distillation.objectives import sds
from lods_jax.distillation.scores import PredictNoise, predict_noise
from lods_jax.priors.hub import local, unet_hash
from lods_jax.priors.registry import views_of, world_of
from lods_jax.priors.zero123 import token, zero123
from lods_jax.training.schedules import Timeline, phase, window

SHARE = 0.7  # of the image's edge that the object fills where it is framed anew
EDGES = (64, 512)  # least and most of an image that a run keeps, pixels
GENERIC = "an object"  # the prompt of an image that nobody reads
AZIMUTHS, ELEVATIONS = {"side": 90.0, "back": 180.0}, {"overhead": 75.0}  # of a camera whose view the classifier reads, degrees
ELEVATION = 15.0
INVERT = 200  # steps that fit the embedding of a prompt that was not given
COPY, DEPTH, NORMAL = "picture.png", "picture-depth.tif", "picture-normal.png"  # in the folder of a run


class ImageInputs(NamedTuple):
    """The parts of a run that come from its image.

    Attributes:
        rgba: the image as the run keeps it [n n 4].
        reference: input of the train step.
        auxiliary_priors: the Zero-1-to-3 prior, if there is one.
        zero123_sha256: of its U-Net's weights.
    """

    rgba: Float[np.ndarray, "n n 4"]
    reference: Reference
    auxiliary_priors: tuple[AuxiliaryPrior, ...]
    zero123_sha256: str | None


def image_inputs(
    config: Config, orbit: Orbit, timeline: Timeline, folder: Path | None, prior: Prior, weights: Any
) -> ImageInputs:
    """The image of a configuration as inputs of the train step.

    Args:
        config: of the run.
        orbit: the cameras of training.
        timeline: of the run.
        folder: of a run that goes on, with copies of its image; None for a new one.
        prior: of the run.
        weights: its frozen parameters.

    Returns:
        Reference and auxiliary priors.
    """
    rgba = object_image(config.image, folder)
    depth, normal = depth_of(config.image, folder, len(rgba)), normal_of(config.image, folder, len(rgba))
    image = ReferenceImage(
        over(rgba, 1.0),
        rgba[..., 3:],
        camera_of(config.image, orbit),
        depth=None if depth is None else in_unit_range(depth, rgba)[..., None],
        normal=None if normal is None else np.asarray(normalize(jnp.asarray(2 * normal - 1))),
    )
    reference = Reference(image=jax.tree.map(jnp.asarray, image))
    if config.zero123.name == "none":
        return ImageInputs(rgba, reference, (), None)
    auxiliary_prior, inputs = zero123_auxiliary(config.zero123, config.prior, timeline, prior, weights, reference.image)
    return ImageInputs(
        rgba, reference.replace(auxiliary=(inputs,)), (auxiliary_prior,), unet_hash(zero123_folder(config.zero123.name))
    )


def keep(folder: Path, p: ImageConfig, found: ImageInputs) -> None:
    """Writes copies of the image and what lies beside it into the folder of a run, to resume from.

    Args:
        folder: of the run.
        p: settings of the image.
        found: from `image_inputs`.
    """
    write_png(folder / COPY, found.rgba)
    if (depth := depth_of(p, folder, len(found.rgba))) is not None:
        write_tiff(folder / DEPTH, depth)
    if (normal := normal_of(p, folder, len(found.rgba))) is not None:
        write_png(folder / NORMAL, normal)


# --- the image and its camera -----------------------------------------------------------------------------------------------
def object_image(p: ImageConfig, folder: Path | None = None) -> Float[np.ndarray, "n n 4"]:
    """The cut-out that a run works with, square: the copy in its folder, or made from the file.

    Args:
        p: settings of the image.
        folder: of the run, if there is one.

    Returns:
        [n n 4] in [0, 1], colours not multiplied by alpha.

    Raises:
        UserError: the image shows no object.
    """
    if folder and (folder / COPY).is_file():
        return read_rgba(folder / COPY)
    rgba = read_rgba(p.file)
    try:
        rgba = cut_out(rgba)
    except ValueError as error:
        raise UserError(f"{p.file}: {error}") from None
    edge = int(np.clip(min(rgba.shape[:2]), *EDGES))
    # Eight bits, as the copy has them.
    framed_rgba = to_uint8(framed(rgba, edge, SHARE if p.frame == "fit" else None)).astype(np.float32) / 255
    if np.mean(is_seen(framed_rgba[..., 3])) < 1e-3:
        raise UserError(f"{p.file} shows nothing in its centre square: pass --image.frame fit to crop to the object")
    return framed_rgba


def depth_of(p: ImageConfig, folder: Path | None, edge: int) -> Float[np.ndarray, "n n"] | None:
    """The depths beside the image.

    Args:
        p: settings of the image.
        folder: of the run, if there is one.
        edge: of the image, pixels.

    Returns:
        [n n] in the units of their file; None without.
    """
    file = beside(p, folder, "depth", DEPTH, "picture-depth.png")  # runs of old have a PNG
    return None if file is None else centre(read_depth(file), edge)


def normal_of(p: ImageConfig, folder: Path | None, edge: int) -> Float[np.ndarray, "n n 3"] | None:
    """The normals beside the image, as colours.

    Args:
        p: settings of the image.
        folder: of the run, if there is one.
        edge: of the image, pixels.

    Returns:
        [n n 3] in [0, 1]; None without.
    """
    file = beside(p, folder, "normal", NORMAL)
    return None if file is None else to_uint8(framed(read_rgba(file), edge)[..., :3]).astype(np.float32) / 255


def beside(p: ImageConfig, folder: Path | None, name: str, *copies: str) -> Path | None:
    """A file beside the image: a copy in the folder of a run, or the file of the configuration.

    Args:
        p: settings of the image.
        folder: of the run, if there is one.
        name: "depth" or "normal".
        *copies: names in the folder.

    Returns:
        Its path; None without.

    Raises:
        UserError: the image is cropped to the object, so that the file would not fit it.
    """
    file = getattr(p, f"{name}_file")
    if not file:
        return None
    if p.frame != "as-is":
        raise UserError(f"image.{name}_file goes with the image as it is: pass --image.frame as-is")
    return next((folder / copy for copy in copies if folder and (folder / copy).is_file()), Path(file))


def in_unit_range(depth: Float[np.ndarray, "n n"], rgba: Float[np.ndarray, "n n 4"]) -> Float[np.ndarray, "n n"]:
    """Depths from 0 at the nearest to 1 at the farthest point of the object, whatever the background's.

    Args:
        depth: [n n].
        rgba: the image [n n 4].

    Returns:
        [n n].
    """
    near, far = depth_range(depth, rgba)
    return np.clip((depth.astype(np.float64) - near) / (far - near if far > near else 1.0), 0, 1).astype(np.float32)


def depth_range(depth: Float[np.ndarray, "n n"], rgba: Float[np.ndarray, "n n 4"]) -> tuple[float, float]:
    """Smallest and largest depth of the object, without its outline, where the background may show.

    Args:
        depth: [n n].
        rgba: the image [n n 4].

    Returns:
        Two numbers.
    """
    own = rgba[..., 3] > 0.5
    inner = ndimage.binary_erosion(own)
    values = depth[inner if inner.any() else own] if own.any() else depth
    return float(values.min()), float(values.max())


def notes_on_image(config: Config) -> list[str]:
    """Notes for the user on how the image and its depths were read.

    Args:
        config: of the run.

    Returns:
        A line each.

    Raises:
        UserError: the depths are the same all over the object.
    """
    rgba, notes = object_image(config.image), []
    if (white := white_of_file(config.image.file) or 1) != 1:
        notes.append(f"{white:,} is taken for white, as its greys are no bytes")
    if (depth := depth_of(config.image, None, len(rgba))) is not None:
        near, far = depth_range(depth, rgba)
        notes.append(f"depths of the object are {near:.6g} to {far:.6g} in {config.image.depth_file}: 0 and 1 to this run")
        if near == far:
            raise UserError(f"{config.image.depth_file} has one depth for the whole object, {near:.6g}: that tells nothing")
    p, orbit = config.image, Orbit(**vars(config.camera))
    seen = p.radius and p.radius * np.tan(np.deg2rad(p.fov_y) / 2)
    trained = np.mean(orbit.radius) * np.tan(np.deg2rad(np.mean(orbit.fov_y)) / 2) if orbit.radius else np.mean(orbit.extent)
    if seen and not 0.5 < seen / trained < 2:
        notes.append(
            f"its camera sees {seen:.3g} to each side of the origin, the cameras of training {trained:.3g}: "
            "the object will be far larger or smaller than they see; leave out --radius, or change --fov"
        )
    return notes


def camera_of(p: ImageConfig, orbit: Orbit) -> Camera:
    """The camera of the image.

    Args:
        p: settings of the image.
        orbit: the cameras of training, for what is not given.

    Returns:
        One camera.
    """
    middle = lambda limits: sum(limits) / 2  # noqa: E731
    fov_y = np.deg2rad(p.fov_y)
    radius = p.radius or (middle(orbit.radius) if orbit.radius else middle(orbit.extent) / np.tan(fov_y / 2))
    angles = np.deg2rad([p.azimuth or 0.0, ELEVATION if p.elevation is None else p.elevation])
    return orbit_camera(*(jnp.full(1, x, jnp.float32) for x in (*angles, radius, fov_y)), orbit)


def resolve_image_config(config: Config) -> tuple[Config, str]:
    """The configuration with prompt and camera, read from the image where they are not given.

    A prompt that is not given is also fitted to the image, for a prior of single images.

    Args:
        config: of the run.

    Returns:
        The configuration, and a line on what was read; "" for nothing.

    Raises:
        UserError: the image shows no object that the prior's world knows, and there is no prompt.
    """
    p, said, world = config.image, "", world_of(config.prior.name)
    caption, view = world.read_image(object_image(config.image)) if world else (None, None)
    if caption:
        said = f"reads as {caption!r}" + (f", {view} view" if view else "")
    azimuth = p.azimuth if p.azimuth is not None else AZIMUTHS.get(view, 0.0)
    elevation = p.elevation if p.elevation is not None else ELEVATIONS.get(view, ELEVATION)
    p = replace(p, azimuth=azimuth, elevation=elevation)
    if config.prompt:
        return replace(config, image=replace(p, invert=p.invert or 0)), said
    if caption is None and world:
        raise UserError(f"{p.file} shows no object that this prior knows: pass --prompt, or a prior of the whole world")
    # An embedding is fitted to single images; a prior of several views sees the image beside the renders.
    invert = INVERT if views_of(config.prior.name) == 1 else 0
    p = replace(p, invert=invert if p.invert is None else p.invert)
    return replace(config, prompt=caption or GENERIC, image=p), said


# --- the Zero-1-to-3 prior ----------------------------------------------------------------------------------------------------
def zero123_auxiliary(
    settings: Zero123Config, beside: PriorConfig, timeline: Timeline, prior: Prior, weights: Any, image: ReferenceImage
) -> tuple[AuxiliaryPrior, tuple[dict[str, Any], dict[str, Any]]]:
    """The Zero-1-to-3 prior as an auxiliary prior.

    Args:
        settings: of this prior.
        beside: settings of the prior of the run, whose arithmetic it shares.
        timeline: of the run.
        prior: of the run; latents are shared if both encode the image alike.
        weights: its frozen parameters.
        image: of the run.

    Returns:
        The auxiliary prior, and its input: (weights, tables).

    Raises:
        UserError: there is no such prior.
    """
    folder, key = zero123_folder(settings.name), jax.random.key(0)
    if not (folder / "image_encoder").is_dir():
        raise UserError(f"no Zero-1-to-3 prior at {folder}: --pose-prior takes tabletop, none, or a folder in diffusers layout")
    posed = zero123(folder, jnp.dtype(beside.dtype), attention=beside.attention, remat=beside.remat)
    own = posed.prior.init(key)
    z, z_own = (jax.jit(p.encode)(w, image.rgb[None], key) for p, w in ((prior, weights), (posed.prior, own)))
    shares = z.shape == z_own.shape and bool(jnp.allclose(z, z_own, atol=1e-4))
    auxiliary_prior = AuxiliaryPrior(
        "zero123",
        posed.prior,
        condition_on_image(sds(settings.guidance_scale)),
        select_zero123_prompts,
        window=window(timeline, settings.min, settings.max),
        weight=partial(phase, timeline, settings.weight),
        shares_latents=shares,
    )
    tables = jax.jit(posed.encode_image)(own, image.rgb, image.camera)
    # Its encoders have done their work.
    return auxiliary_prior, ({part: own[part] for part in (("unet",) if shares else ("unet", "vae"))}, tables)


def zero123_folder(name: str) -> Path:
    """The folder of the Zero-1-to-3 prior of a name; "tabletop" is the shipped one."""
    return TABLETOP_POSE if name == "tabletop" else local(name)


def select_zero123_prompts(tables: dict[str, Any], camera: Camera) -> tuple[dict[str, Array], PredictNoise]:
    """A `select_prompts` of `make_train_step`: the token of each view, from its pose relative to that of the image.

    Args:
        tables: from `Zero123Prior.encode_image`.
        camera: b cameras.

    Returns:
        {name: tokens [b 1 d]}, and the function that predicts with them.
    """
    many = lambda x: jnp.broadcast_to(x, (len(camera.azimuth), *x.shape))  # noqa: E731
    context = token(tables["join"], many(tables["embedding"]), relative_pose(tables["camera"], camera))
    return {"prompt": context, "null": jnp.zeros_like(context)}, partial(predict_noise, image=many(tables["image"]))


def condition_on_image(objective: Objective) -> Objective:
    """The objective whose prompt query also sees the image; the others see zeros.

    Args:
        objective: any.

    Returns:
        A new objective.
    """
    queries = {name: query._replace(image=query.text == "prompt") for name, query in objective.queries.items()}
    return objective._replace(queries=queries)
