"""Stable Diffusion folders, as diffusers and transformers lay them out on disk, to Flax parameter trees and back.

The only file that knows channel-first arrays and PyTorch's names. Values are NumPy, and files are safetensors: pickled
weights can run code. Both directions go through one naming function, `torch_name`, so they cannot disagree.
"""

import json
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

from lods_jax.priors.diffusers_folder import PARTS, POSED_PARTS, weight_files

State = dict[str, Shaped[np.ndarray, "..."]]

# What a file of CLIP may hold beside the tower that is asked for: the other tower, projections, the temperature of CLIP's loss.
CLIP_EXTRAS = r"(text_model|vision_model)\..+|(text|visual)_projection\.weight|logit_scale"
TOWERS = ("text_model", "vision_model")
FLOATS = {"F64", "F32", "F16", "BF16"}
# The Flax VAE, and VAE files until 2023, have the left names; today's files have the right ones.
ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
PREDICTION_TYPES = ("epsilon", "v_prediction")
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
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "_diffusers_version": "0.39.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
}


def read_state(folder: Path, part: str, variant: str | None = None) -> State:
    """All arrays of one part ("unet", "vae", "text", ...) by their names on disk, from one file or from shards."""
    state = {}
    for file in weight_files(folder, part, variant):
        state |= read_arrays(file)
    return state


def read_arrays(file: Path) -> State:
    """The arrays of a safetensors file, all of them of finite floats; the buffer `position_ids` of older CLIP files is left out.

    Raises:
      ValueError: in one line, for a file that is damaged or cut, and for an array that is no weight, by its name.
    """
    arrays = {}
    try:
        with safe_open(file, framework="np") as opened:
            for name in opened.keys():  # noqa: SIM118 (not a dict)
                if name.rpartition(".")[2] == "position_ids":  # 0, 1, 2, ...
                    continue
                if (dtype := opened.get_slice(name).get_dtype()) not in FLOATS:
                    raise ValueError(f"{file}: {name} is of type {dtype}; weights must be float32, float16, bfloat16 or float64")
                arrays[name] = opened.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is not a whole safetensors file: {' '.join(str(error).split())}") from None
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{file}: {name} has values that are NaN or infinite: the file is damaged, or training diverged")
    return arrays


def to_flax(state: Mapping[str, np.ndarray], shapes: Any) -> Any:
    """The tree `shapes` (of ShapeDtypeStructs) filled from `state`: each leaf once, and every array is used."""
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
    """The arrays of a parameter tree under PyTorch's names and in its layout: the inverse of `to_flax`."""
    # A weight beyond 65504 must not become an infinity in float16.
    with np.errstate(over="raise"):
        return {
            torch_name(path): np.ascontiguousarray(channels_first(path, np.asarray(leaf)), dtype)
            for path, leaf in flatten_dict(params).items()
        }


def torch_name(path: tuple[str, ...]) -> str:
    """PyTorch's name of a leaf: down_blocks_0/resnets_1/conv1/kernel -> down_blocks.0.resnets.1.conv1.weight."""
    *modules, leaf = path
    # A list's index is written name_0 by Flax; linear_1 and linear_2 are names.
    names = [re.sub(r"^(?!linear_)(.+)_(\d+)$", r"\1.\2", ATTENTION.get(module, module)) for module in modules]
    return ".".join([*names, {"kernel": "weight", "scale": "weight", "embedding": "weight"}.get(leaf, leaf)])


def names_today(name: str) -> Iterator[str]:
    """What a parameter may be called here: older VAE files name attention otherwise, and transformers 5 leaves out the tower."""
    yield re.sub(r"\.(query|key|value|proj_attn)(?=\.(weight|bias)$)", lambda match: f".{ATTENTION[match[1]]}", name)
    yield from (f"{tower}.{name}" for tower in TOWERS)


def is_beside(name: str, leaves: Collection[str]) -> bool:
    """Whether a parameter belongs to CLIP, but not to the tower that `leaves` are the parameters of."""
    own = {leaf.partition(".")[0] for leaf in leaves}
    return not own.isdisjoint(TOWERS) and name.partition(".")[0] not in own and re.fullmatch(CLIP_EXTRAS, name) is not None


def channels_first(path: tuple[str, ...], array: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """A kernel HWIO as OIHW, or (in, out) as (out, in); other leaves as they are."""
    return np.moveaxis(array, (-1, -2), (0, 1)) if path[-1] == "kernel" else array


def channels_last(path: tuple[str, ...], array: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """The inverse of `channels_first`."""
    return np.moveaxis(array, (0, 1), (-1, -2)) if path[-1] == "kernel" else array


def torch_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of `channels_first`."""
    return (shape[-1], shape[-2], *shape[:-2]) if path[-1] == "kernel" else tuple(shape)


def as_matrix(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without the window of a 1x1 convolution, which is a linear layer by another name."""
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

    Each file is replaced whole, so that a kill leaves no half file; files of other names in `folder` stay.

    Args:
      configs, weights: config and parameter tree of each part, of PARTS or of POSED_PARTS.
      files: further text files by their path in the folder, such as `tokenizer.files` returns.
      prediction_type: what the U-Net was trained to predict, "epsilon" or "v_prediction".
      dtype: precision on disk.
    """
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"prediction_type must be {' or '.join(PREDICTION_TYPES)}, got {prediction_type!r}")
    parts, index = (POSED_PARTS, POSED_INDEX) if "camera" in configs else (PARTS, MODEL_INDEX)
    texts = {
        "model_index.json": as_json(index),
        "scheduler/scheduler_config.json": as_json(SCHEDULER | {"prediction_type": prediction_type}),
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
    """The way diffusers writes a config: sorted, and indented by two."""
    return json.dumps(dict(value), indent=2, sort_keys=True) + "\n"


def place(file: Path) -> Path:
    """`file`, now with a folder to be in."""
    file.parent.mkdir(parents=True, exist_ok=True)
    return file
