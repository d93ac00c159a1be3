"""Stable Diffusion folders, as diffusers and transformers lay them out on disk, to Flax parameter trees and back.

The only file that knows channel-first arrays and PyTorch's names. Values are NumPy, and files are safetensors: pickled
weights can run code. Both directions go through one naming function, `torch_name`, so they cannot disagree.
"""

import json
import os
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Shaped
from numpy.typing import DTypeLike
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lods_jax.priors.diffusers_folder import MULTI_VIEW, PARTS, POSED_PARTS, weight_files
from lods_jax.priors.scheduler_config import PREDICTION_TYPES, config_of

State = dict[str, Shaped[np.ndarray, "..."]]

# What a file of CLIP may hold beside the tower that is asked for: the other tower, projections, the temperature of CLIP's loss.
CLIP_EXTRAS = r"(text_model|vision_model)\..+|(text|visual)_projection\.weight|logit_scale"
TOWERS = ("text_model", "vision_model")
FLOATS = {"F64", "F32", "F16", "BF16"}
# Metadata of a file that holds a difference: the path of the other file, from the folder of this one (`save_difference`).
DIFFERENCE_TO, SCALE = "difference_to", ".scale"
# The Flax VAE, and VAE files until 2023, have the left names; today's files have the right ones.
ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.39.0",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
POSED_INDEX = {
    "_class_name": "Zero1to3StableDiffusionPipeline",
    "_diffusers_version": "0.39.0",
    "cc_projection": ["pipeline_zero1to3", "CCProjection"],
    "feature_extractor": [None, None],
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def read_state(folder: Path, part: str, variant: str | None = None) -> State:
    """All arrays of one part, from one file or from shards.

    Args:
        folder: in diffusers layout.
        part: a key of `ALL_PARTS`.
        variant: of the weight files.

    Returns:
        {name on disk: array}.
    """
    state = {}
    for file in weight_files(folder, part, variant):
        state |= read_weights(file)
    return state


def read_weights(file: Path) -> State:
    """The arrays of a weight file, which may be stored as a difference to another (`save_difference`).

    Args:
        file: its path.

    Returns:
        {name: array}, all finite floats.

    Raises:
        ValueError: as `read_arrays`; or a difference does not fit the other file.
    """
    try:
        with safe_open(file, framework="np") as opened:
            other = (opened.metadata() or {}).get(DIFFERENCE_TO)
    except (SafetensorError, OSError):
        other = None  # `read_arrays` says what is wrong
    if other is None:
        return read_arrays(file)
    arrays, base = read_arrays(file, FLOATS | {"I8"}), read_arrays(file.parent / other)
    scales = {name.removesuffix(SCALE): arrays.pop(name) for name in list(arrays) if name.endswith(SCALE)}
    for name, scale in scales.items():
        steps, weight = arrays.get(name), base.get(name)
        if steps is None or weight is None or steps.shape != weight.shape or scale.shape != weight.shape[:1]:
            raise ValueError(f"{file}: {name} does not fit that of {other}, to which it is a difference")
        arrays[name] = weight.astype(np.float32) + steps * scale.reshape(-1, *[1] * (weight.ndim - 1))
    return base | arrays


def save_difference(file: Path, state: State, other: Path) -> None:
    """Writes weights as their difference to those of another file, which stays beside it: a fine-tuned network at half its size.

    Matrices are whole numbers of eight bits, with a scale for each row, so that a value errs by at most 1/254 of the largest
    difference in its row. Vectors, and arrays that the other file lacks, are written as they are; equal ones not at all.

    Args:
        file: to write.
        state: {name: array}, with all names of the other file.
        other: safetensors file.
    """
    base, arrays = read_arrays(other), {}
    for name, array in state.items():
        if name in base and np.array_equal(array, base[name]):
            continue
        if name not in base or array.ndim < 2:
            arrays[name] = array
            continue
        difference = array.astype(np.float32) - base[name].astype(np.float32)
        most = np.abs(difference).reshape(len(array), -1).max(1)
        arrays[name + SCALE] = scale = np.where(most > 0, most / 127, 1).astype(np.float32)
        arrays[name] = np.rint(difference / scale.reshape(-1, *[1] * (array.ndim - 1))).astype(np.int8)
    save_file(arrays, place(file), {"format": "pt", DIFFERENCE_TO: Path(os.path.relpath(other, file.parent)).as_posix()})


def read_arrays(file: Path, types: Collection[str] = FLOATS) -> State:
    """The arrays of a safetensors file. The buffer `position_ids` of older CLIP files is left out.

    Args:
        file: its path.
        types: that an array may have.

    Returns:
        {name: array}, all finite floats.

    Raises:
        ValueError: the file is damaged or cut short, or an array is no weight or not finite; one line.
    """
    arrays = {}
    try:
        with safe_open(file, framework="np") as opened:
            for name in opened.keys():  # noqa: SIM118 (not a dict)
                if name.rpartition(".")[2] == "position_ids":  # 0, 1, 2, ...
                    continue
                if (dtype := opened.get_slice(name).get_dtype()) not in types:
                    raise ValueError(f"{file}: {name} is of type {dtype}; weights must be float32, float16, bfloat16 or float64")
                arrays[name] = opened.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is not a whole safetensors file: {' '.join(str(error).split())}") from None
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{file}: {name} has values that are NaN or infinite: the file is damaged, or training diverged")
    return arrays


def to_flax(state: Mapping[str, np.ndarray], shapes: Any) -> Any:
    """Flax parameters from PyTorch's arrays. Each leaf gets one array, and every array is used.

    Args:
        state: {PyTorch's name: array}.
        shapes: tree of ShapeDtypeStructs.

    Returns:
        A tree of NumPy arrays with these shapes and dtypes.

    Raises:
        ValueError: an array is missing, comes twice, has no place, or has another shape.
    """
    leaves = {torch_name(path): (path, leaf) for path, leaf in flatten_dict(shapes).items()}
    arrays = {}
    for name, array in state.items():
        today = next((own for own in names_today(name) if own in leaves), None)
        if today is None and is_beside(name, leaves):
            continue
        if today is None:
            raise ValueError(f"{name} of shape {array.shape} has no place in this network")
        if today in arrays:
            raise ValueError(f"{name} is given twice, under its old and its new name")
        arrays[today] = array
    flat = {}
    for name, (path, leaf) in leaves.items():
        expected = torch_shape(path, leaf.shape)
        if name not in arrays:
            raise ValueError(f"{name} is missing: expected shape {expected}, found nothing")
        if as_matrix(arrays[name].shape) != as_matrix(expected):
            raise ValueError(f"{name}: expected shape {expected}, found {arrays[name].shape}")
        flat[path] = np.ascontiguousarray(channels_last(path, arrays[name].reshape(expected)), leaf.dtype)
    return unflatten_dict(flat)


def from_flax(params: Any, dtype: DTypeLike = np.float32) -> State:
    """The arrays of a parameter tree under PyTorch's names and in its layout: the inverse of `to_flax`.

    Args:
        params: tree of parameters.
        dtype: of the result.

    Returns:
        {PyTorch's name: array}.

    Raises:
        FloatingPointError: a value overflows in dtype.
    """
    # A weight beyond 65504 must not become an infinity in float16.
    with np.errstate(over="raise"):
        return {
            torch_name(path): np.ascontiguousarray(channels_first(path, np.asarray(leaf)), dtype)
            for path, leaf in flatten_dict(params).items()
        }


def torch_name(path: tuple[str, ...]) -> str:
    """PyTorch's name of a parameter, from its Flax path.

    Examples:
        >>> torch_name(("down_blocks_0", "resnets_1", "conv1", "kernel"))
        'down_blocks.0.resnets.1.conv1.weight'
    """
    *modules, leaf = path
    # A list's index is written name_0 by Flax; linear_1 and linear_2 are names.
    names = [re.sub(r"^(?!linear_)(.+)_(\d+)$", r"\1.\2", ATTENTION.get(module, module)) for module in modules]
    return ".".join([*names, {"kernel": "weight", "scale": "weight", "embedding": "weight"}.get(leaf, leaf)])


def names_today(name: str) -> Iterator[str]:
    """Yields the names that a parameter may have here.

    Older VAE files name attention otherwise, and transformers 5 leaves out the tower.

    Args:
        name: on disk.

    Yields:
        Names as in today's files.
    """
    yield re.sub(r"\.(query|key|value|proj_attn)(?=\.(weight|bias)$)", lambda match: f".{ATTENTION[match[1]]}", name)
    yield from (f"{tower}.{name}" for tower in TOWERS)


def is_beside(name: str, leaves: Collection[str]) -> bool:
    """Whether a parameter belongs to CLIP, but to another part than the tower whose parameters are `leaves`.

    Args:
        name: on disk.
        leaves: names of the tower's parameters.

    Returns:
        True if it may be ignored.
    """
    own = {leaf.partition(".")[0] for leaf in leaves}
    return not own.isdisjoint(TOWERS) and name.partition(".")[0] not in own and re.fullmatch(CLIP_EXTRAS, name) is not None


def channels_first(path: tuple[str, ...], array: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """A kernel HWIO as OIHW, or (in, out) as (out, in); other leaves as they are.

    Args:
        path: of the leaf.
        array: in Flax's layout.

    Returns:
        The array in PyTorch's layout.
    """
    return np.moveaxis(array, (-1, -2), (0, 1)) if path[-1] == "kernel" else array


def channels_last(path: tuple[str, ...], array: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """The inverse of `channels_first`.

    Args:
        path: of the leaf.
        array: in PyTorch's layout.

    Returns:
        The array in Flax's layout.
    """
    return np.moveaxis(array, (0, 1), (-1, -2)) if path[-1] == "kernel" else array


def torch_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in PyTorch's layout.

    Args:
        path: of the leaf.
        shape: in Flax's layout.

    Returns:
        A tuple.
    """
    return (shape[-1], shape[-2], *shape[:-2]) if path[-1] == "kernel" else tuple(shape)


def as_matrix(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without the window of a 1x1 convolution, which is a linear layer.

    Examples:
        >>> as_matrix((320, 4, 1, 1))
        (320, 4)
    """
    return shape[:2] if shape[2:] == (1, 1) else shape


def save_folder(
    folder: Path,
    configs: Mapping[str, Mapping[str, Any]],
    weights: Mapping[str, Any],
    files: Mapping[str, str],
    prediction_type: str = "epsilon",
    dtype: DTypeLike = np.float16,
) -> None:
    """Writes a folder that `stable_diffusion` or `zero123` reads, and that PyTorch's pipelines of the same kind load.

    Those of diffusers refuse a U-Net of several views, since they have no such class.

    Each file is replaced as a whole, so that a kill leaves no half file. Files of other names stay.

    Args:
        folder: to write to.
        configs: {part: config}, of `PARTS` or of `POSED_PARTS`.
        weights: {part: parameter tree}.
        files: {path in the folder: content} of further text files, such as `tokenizer.files` gives.
        prediction_type: one of `PREDICTION_TYPES`, what the U-Net was trained to predict.
        dtype: precision on disk.

    Raises:
        ValueError: the prediction type is unknown.
    """
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"prediction_type must be {' or '.join(PREDICTION_TYPES)}, got {prediction_type!r}")
    scheduler = config_of(prediction_type)
    parts, index = (POSED_PARTS, POSED_INDEX) if "camera" in configs else (PARTS, MODEL_INDEX)
    index = index | {"scheduler": ["diffusers", scheduler["_class_name"]]}
    if configs["unet"].get("_class_name") == MULTI_VIEW:  # diffusers has no such class, and must not drop its layers unasked
        index = index | {"unet": ["lods_jax", MULTI_VIEW]}
    texts = {
        "model_index.json": as_json(index),
        "scheduler/scheduler_config.json": as_json(scheduler),
        **{f"{directory}/config.json": as_json(configs[part]) for part, (directory, _) in parts.items()},
        **files,
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        for name, text in texts.items():
            place(Path(temporary) / name).write_text(text, encoding="utf-8")
        for part, (directory, stem) in parts.items():
            # transformers refuses a file that does not say that its arrays are PyTorch's.
            file = place(Path(temporary) / directory / f"{stem}.safetensors")
            save_file(from_flax(weights[part], dtype), file, {"format": "pt"})
        for file in sorted(Path(temporary).rglob("*")):
            if file.is_file():
                file.replace(place(folder / file.relative_to(temporary)))


def as_json(value: Mapping[str, Any]) -> str:
    """A value as diffusers writes a config: keys sorted, indented by two."""
    return json.dumps(dict(value), indent=2, sort_keys=True) + "\n"


def place(file: Path) -> Path:
    """The file's path, after its folder has been made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    return file
