"""Stable Diffusion folders, as diffusers and transformers lay them out on disk, to Flax parameter trees and back.

The only file that knows channel-first arrays and PyTorch's names. Values are NumPy, and files are safetensors: pickled
weights can run code. Both directions go through one naming function, `torch_name`, so they cannot disagree.
"""

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Shaped
from numpy.typing import DTypeLike
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

State = dict[str, Shaped[np.ndarray, "..."]]

# Name of a part in our trees -> its folder and the stem of its weight file.
PARTS = {
    "unet": ("unet", "diffusion_pytorch_model"),
    "vae": ("vae", "diffusion_pytorch_model"),
    "text": ("text_encoder", "model"),
}
# The same for a folder of the Zero-1-to-3 kind, which is conditioned on a picture and a pose.
POSED_PARTS = {
    "unet": PARTS["unet"],
    "vae": PARTS["vae"],
    "image": ("image_encoder", "model"),
    "camera": ("cc_projection", "diffusion_pytorch_model"),
}
PICKLES = {".bin", ".ckpt", ".pt", ".pth"}
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


def read_config(file: Path) -> dict[str, Any]:
    """The JSON object in `file`, which lies somewhere in a Stable Diffusion folder."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        expected = "unet, vae, text_encoder, tokenizer and scheduler, as diffusers saves them"
        raise FileNotFoundError(f"{file} is missing: expected a folder with {expected}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds no JSON object")
    return config


def read_state(folder: Path, part: str, variant: str | None = None) -> State:
    """All arrays of one part ("unet", "vae", "text", ...) by their names on disk, from one file or from shards."""
    state = {}
    for file in weight_files(folder, part, variant):
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: the index beside it names it")
        state |= read_arrays(file)
    return state


def read_arrays(file: Path) -> State:
    """The arrays of a safetensors file. Raises ValueError, in one line, for one that is damaged or cut."""
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is not a whole safetensors file: {' '.join(str(error).split())}") from None


def weight_files(folder: Path, part: str, variant: str | None = None) -> list[Path]:
    """The safetensors files of one part. A variant, such as "fp16", is another file beside the default one."""
    directory, stem = folder / (PARTS | POSED_PARTS)[part][0], (PARTS | POSED_PARTS)[part][1]
    suffix = f".{variant}" if variant else ""
    single, index = directory / f"{stem}{suffix}.safetensors", directory / f"{stem}.safetensors.index{suffix}.json"
    if single.is_file():
        return [single]
    if index.is_file():
        shards = read_config(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(x, str) and Path(x).name == x for x in shards.values()):
            raise ValueError(f"{index} must name files beside it under weight_map")
        return sorted({directory / shard for shard in shards.values()})
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is missing: expected {single.name} in it")
    if others := sorted(file.name for file in directory.glob("*.safetensors")):
        raise FileNotFoundError(f"{single} is missing; of other variants there is {', '.join(others)}")
    if pickles := sorted(file.name for file in directory.iterdir() if file.suffix in PICKLES):
        raise ValueError(f"{directory} has only pickled weights, {pickles[0]}: expected safetensors, as {single.name}")
    raise FileNotFoundError(f"{single} is missing")


def to_flax(state: Mapping[str, np.ndarray], shapes: Any) -> Any:
    """The tree `shapes` (of ShapeDtypeStructs) filled from `state`: each leaf once, and every array is used."""
    leaves = {torch_name(path): (path, leaf) for path, leaf in flatten_dict(shapes).items()}
    arrays = {}
    for name, array in state.items():
        if name.endswith(".position_ids"):  # 0, 1, 2, ...: a buffer that older files of CLIP carry
            continue
        if (today := modern_name(name)) not in leaves:
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


def modern_name(name: str) -> str:
    """Today's name of a parameter that older VAE files name otherwise."""
    return re.sub(r"\.(query|key|value|proj_attn)(?=\.(weight|bias)$)", lambda match: f".{ATTENTION[match[1]]}", name)


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
