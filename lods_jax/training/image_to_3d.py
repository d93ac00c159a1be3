"""Image-to-3D: what a run needs of an image: a cut-out, what it shows, its camera, an embedding fitted to it, Zero-1-to-3.

The image enters a run in three ways: as a known view (`regularizers.image_errors`), as what a Zero-1-to-3 prior sees, and through
the prompt, whose embedding can be fitted to it before the run.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from scipy import ndimage

from lods_jax.config import Config, ImageConfig, PriorConfig, Zero123Config
from lods_jax.core.cameras import Orbit, orbit_camera, relative_pose
from lods_jax.core.cutouts import centre, cut_out, framed, is_seen, over
from lods_jax.core.errors import UserError
from lods_jax.core.files import replacing
from lods_jax.core.images import read_depth, read_rgba, to_uint8, white_of_file, write_png, write_tiff
from lods_jax.core.math import normalize
from lods_jax.core.paths import TABLETOP_POSE
from lods_jax.core.random import run_key
from lods_jax.core.types import Camera, Objective, Prior, Reference, ReferenceImage
from lods_jax.distillation.objectives import lods_embedding, sds
from lods_jax.distillation.scores import PredictNoise, predict_noise
from lods_jax.distillation.train_step import AuxiliaryPrior
from lods_jax.priors.hub import local, unet_hash
from lods_jax.priors.registry import world_of
from lods_jax.priors.zero123 import token, zero123
from lods_jax.scenes.gaussians import white_or_grey
from lods_jax.training.checkpoint import digest
from lods_jax.training.distill_2d import fit_on
from lods_jax.training.schedules import Timeline, phase, window

SHARE = 0.7  # of the image's edge that the object fills where it is framed anew
EDGES = (64, 512)  # least and most of an image that a run keeps, pixels
GENERIC = "an object"  # the prompt of an image that nobody reads
AZIMUTHS, ELEVATIONS = {"side": 90.0, "back": 180.0}, {"overhead": 75.0}  # of a camera whose view the classifier reads, degrees
ELEVATION = 15.0
INVERT = 200  # steps that fit the embedding of a prompt that was not given
# In the folder of a run: the image, what may lie beside it, the fitted embedding.
COPY, DEPTH, NORMAL, EMBEDDING = "picture.png", "picture-depth.tif", "picture-normal.png", "prompt_embeds.safetensors"


class ImageInputs(NamedTuple):
    """What comes of the image of a run."""

    rgba: Float[np.ndarray, "n n 4"]  # as the run keeps it
    reference: Reference
    auxiliary_priors: tuple[AuxiliaryPrior, ...]
    zero123_sha256: str | None  # of the U-Net of the Zero-1-to-3 prior


def image_inputs(
    config: Config, orbit: Orbit, timeline: Timeline, folder: Path | None, prior: Prior, weights: Any
) -> ImageInputs:
    """The image of a configuration and who looks at it. `folder` is that of a run, which may hold copies to go on with."""
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
    """Leaves copies in the folder of a run, from which it goes on, and which people look at."""
    write_png(folder / COPY, found.rgba)
    if (depth := depth_of(p, folder, len(found.rgba))) is not None:
        write_tiff(folder / DEPTH, depth)
    if (normal := normal_of(p, folder, len(found.rgba))) is not None:
        write_png(folder / NORMAL, normal)


# --- the image and its camera -----------------------------------------------------------------------------------------------
def object_image(p: ImageConfig, folder: Path | None = None) -> Float[np.ndarray, "n n 4"]:
    """The cut-out that a run works with, square, alpha not multiplied in: the copy of its folder, or made from the file."""
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
    """The depths beside the image, at its size, in the units of their file; None where there are none."""
    file = beside(p, folder, "depth", DEPTH, "picture-depth.png")  # runs of old have a PNG
    return None if file is None else centre(read_depth(file), edge)


def normal_of(p: ImageConfig, folder: Path | None, edge: int) -> Float[np.ndarray, "n n 3"] | None:
    """The normals beside the image as colours, at its size, in eight bits; None where there are none."""
    file = beside(p, folder, "normal", NORMAL)
    return None if file is None else to_uint8(framed(read_rgba(file), edge)[..., :3]).astype(np.float32) / 255


def beside(p: ImageConfig, folder: Path | None, name: str, *copies: str) -> Path | None:
    """What lies beside the image: a copy in the folder of a run, else the file of the configuration, if there is one."""
    file = getattr(p, f"{name}_file")
    if not file:
        return None
    if p.frame != "as-is":
        raise UserError(f"image.{name}_file goes with the image as it is: pass --image.frame as-is")
    return next((folder / copy for copy in copies if folder and (folder / copy).is_file()), Path(file))


def in_unit_range(depth: Float[np.ndarray, "n n"], rgba: Float[np.ndarray, "n n 4"]) -> Float[np.ndarray, "n n"]:
    """Depths from 0 at the nearest to 1 at the farthest point of the object; the background takes none of their precision."""
    near, far = depth_range(depth, rgba)
    return np.clip((depth.astype(np.float64) - near) / (far - near if far > near else 1.0), 0, 1).astype(np.float32)


def depth_range(depth: Float[np.ndarray, "n n"], rgba: Float[np.ndarray, "n n 4"]) -> tuple[float, float]:
    """The least and the largest depth of the object, but for its outline, where the background may show."""
    own = rgba[..., 3] > 0.5
    inner = ndimage.binary_erosion(own)
    values = depth[inner if inner.any() else own] if own.any() else depth
    return float(values.min()), float(values.max())


def notes_on_image(config: Config) -> list[str]:
    """What a person should know of how the image and what lies beside it were read."""
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
    """The camera of the image."""
    middle = lambda limits: sum(limits) / 2  # noqa: E731
    fov_y = np.deg2rad(p.fov_y)
    radius = p.radius or (middle(orbit.radius) if orbit.radius else middle(orbit.extent) / np.tan(fov_y / 2))
    angles = np.deg2rad([p.azimuth or 0.0, ELEVATION if p.elevation is None else p.elevation])
    return orbit_camera(*(jnp.full(1, x, jnp.float32) for x in (*angles, radius, fov_y)), orbit)


def resolve_image_config(config: Config) -> tuple[Config, str]:
    """The configuration with prompt and camera, which the prior's world reads where they are not given; and what it read.

    A prompt that is not given is also fitted to the image.
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
    p = replace(p, invert=INVERT if p.invert is None else p.invert)
    return replace(config, prompt=caption or GENERIC, image=p), said


# --- the prompt, fitted to the image ----------------------------------------------------------------------------------------
def textual_inversion(
    config: Config, prior: Prior, weights: Any, prompt: Float[Array, "views k d"], image: ReferenceImage
) -> Float[Array, "k d"]:
    """What brings the prompt's row of the image's view to denoise the image.

    Textual inversion (Gal et al. 2023) in the output space of the text encoder, by the fit of LODS's learned branch.
    """
    k_behind, k_fit = jax.random.split(run_key(config.seed, "inversion"))
    behind = jax.vmap(white_or_grey)(jax.random.split(k_behind, config.image.invert_batch))[:, None, None]
    rgb, mask = image.rgb, image.mask
    if len(rgb) > config.resolution:  # as large as the renders will be
        size = (config.resolution, config.resolution)
        rgb, mask = (jax.image.resize(x, (*size, x.shape[2]), "linear") for x in (rgb, mask))
    # rgb is on white: what is to be seen through shows the other background.
    images = jnp.clip(rgb[None] - (1 - mask[None]) * (1 - behind), 0, 1)
    start = prompt[image.camera.view[0]]
    psi, tx = {"embedding": start}, optax.adam(config.image.invert_lr)
    psi = fit_on(prior, weights, lods_embedding(), {}, images, psi, tx, k_fit, config.image.invert)
    if not jnp.all(jnp.isfinite(psi["embedding"])):
        raise UserError("the embedding that was fitted to the image is not finite: try a smaller --image.invert-lr")
    return psi["embedding"] - start


def shift_embeddings(texts: Mapping[str, Array], by: Float[Array, "k d"]) -> dict[str, Array]:
    """The tables with that of the prompt moved as one, with and without the view."""
    return dict(texts) | {name: texts[name] + by[None] for name in ("prompt", "plain")}


def save_textual_inversion(folder: Path, config: Config, by: Float[Array, "k d"], texts: Mapping[str, Array]) -> None:
    """Writes the prompt's table as `prompt_embeds` [views k d], by how much it was moved, and what that hangs on."""
    arrays = {"shift": np.asarray(by), "prompt_embeds": np.asarray(shift_embeddings(texts, by)["prompt"])}
    about = {"format": "pt", "made_with": made_with(folder, config), "sha256": digest(arrays["shift"])}
    with replacing(folder / EMBEDDING) as partial_file:
        save_file(arrays, partial_file, about)


def load_textual_inversion(folder: Path, config: Config) -> Float[np.ndarray, "k d"] | None:
    """What `save_textual_inversion` wrote; None if it is not there, is damaged, or was made with other settings."""
    file = folder / EMBEDDING
    try:
        with safe_open(file, framework="np") as opened:
            about, by = opened.metadata() or {}, opened.get_tensor("shift")
    except (SafetensorError, OSError):
        return None
    whole = about.get("sha256") == digest(by) and about.get("made_with") == made_with(folder, config)
    return by if whole else None


def made_with(folder: Path, config: Config) -> str:
    """A hash of all that a shift hangs on beside the prior."""
    p = config.image
    settings = (config.prompt, config.view_words, config.seed, config.resolution, config.debias)
    settings += (p.azimuth, p.elevation, p.invert, p.invert_lr, p.invert_batch)
    return digest(json.dumps(settings) + digest(read_rgba(folder / COPY)))


# --- the Zero-1-to-3 prior ----------------------------------------------------------------------------------------------------
def zero123_auxiliary(
    settings: Zero123Config, beside: PriorConfig, timeline: Timeline, prior: Prior, weights: Any, image: ReferenceImage
) -> tuple[AuxiliaryPrior, tuple[dict[str, Any], dict[str, Any]]]:
    """The Zero-1-to-3 prior of a configuration, with its weights and what it is asked with.

    Args:
      settings: its guidance, weight and timesteps.
      beside: settings of the prior beside it, whose arithmetic it shares.
      timeline: of the run.
      prior: the prior beside it, with which it shares latents if both encode the image alike.
      weights: of that prior.
      image: what it is conditioned on.
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
    """Where the Zero-1-to-3 prior lies, "tabletop" being the shipped one."""
    return TABLETOP_POSE if name == "tabletop" else local(name)


def select_zero123_prompts(tables: dict[str, Any], camera: Camera) -> tuple[dict[str, Array], PredictNoise]:
    """A `select_prompts` for `make_train_step`: the token of each view, from its pose relative to that of the image."""
    many = lambda x: jnp.broadcast_to(x, (len(camera.azimuth), *x.shape))  # noqa: E731
    context = token(tables["join"], many(tables["embedding"]), relative_pose(tables["camera"], camera))
    return {"prompt": context, "null": jnp.zeros_like(context)}, partial(predict_noise, image=many(tables["image"]))


def condition_on_image(objective: Objective) -> Objective:
    """The objective whose prompt query also sees the image; the null query sees none."""
    queries = {name: query._replace(image=query.text == "prompt") for name, query in objective.queries.items()}
    return objective._replace(queries=queries)
