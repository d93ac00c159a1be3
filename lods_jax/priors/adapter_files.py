"""Adapters as files: LoRA of the U-Net and the text encoder as other programs name it, and the learned unconditional embedding.

Factors have PyTorch's layout here, W + scale up down: down [r in], or [r in h w] of a convolution, and up [out r].
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from safetensors import safe_open
from safetensors.numpy import save_file

from lods_jax.core.files import replacing
from lods_jax.priors.adapter_names import PREFIXES, check_kind, layer_finder, layers_of, site_and_part
from lods_jax.priors.diffusers_folder import is_number, read_config
from lods_jax.priors.lora import Lora
from lods_jax.priors.sdxl import pack, unpack
from lods_jax.priors.torch_weights import as_matrix, read_arrays

NAMES = ("negative_prompt_embeds", "negative_pooled_prompt_embeds")  # of the file of a learned unconditional embedding


class LowRank(NamedTuple):
    """What an adapter adds to the weight of one layer: scale up down.

    Attributes:
        down: [r in] or [r in h w].
        up: [out r].
        scale: alpha / r.
    """

    down: Float[np.ndarray, "r ..."]
    up: Float[np.ndarray, "out r"]
    scale: float


class LoraScales(NamedTuple):
    """The scale settings of an adapter, as peft writes them.

    Attributes:
        alpha: of all layers; None for the rank.
        pattern: {end of a layer's name, as a regular expression: its alpha}.
        rslora: whether the scale is alpha / sqrt(rank), rank-stabilised (Kalajdzievski 2023).
    """

    alpha: float | None = None
    pattern: Mapping[str, float] = {}
    rslora: bool = False


def save_lora(file: str | Path, lora: Lora, scale: float = 1.0) -> None:
    """Writes an adapter as diffusers' `load_lora_weights` reads it.

    The scale is multiplied into `up`, so that a program that reads no metadata sees the same adapter. The metadata says alpha =
    rank for every layer, a scale of 1.

    Args:
        file: safetensors file to write.
        lora: the adapter.
        scale: at which it was trained.
    """
    flat, ranks = {}, {}
    for name, factors in lora.items():
        flat[f"unet.{name}.lora.down.weight"] = np.ascontiguousarray(np.asarray(factors["down"]).T)
        flat[f"unet.{name}.lora.up.weight"] = np.ascontiguousarray(scale * np.asarray(factors["up"]).T)
        ranks[name] = factors["down"].shape[1]
    rank = max(ranks.values())
    pattern = {name: own for name, own in ranks.items() if own != rank}
    about = {"unet.r": rank, "unet.lora_alpha": rank, "unet.target_modules": sorted(lora)}
    about |= {"unet.rank_pattern": pattern, "unet.alpha_pattern": pattern}
    with replacing(file) as partial:
        save_file(flat, partial, {"format": "pt", "lora_adapter_metadata": json.dumps(about)})


def load_lora(file: str | Path, shapes: Any) -> tuple[Lora, float]:
    """Reads an adapter of a U-Net's linear layers, as a run learns one.

    Args:
        file: safetensors file, see `read_lora`.
        shapes: the U-Net's parameters, or their ShapeDtypeStructs.

    Returns:
        The adapter, and the scale to use it at. Where layers differ in scale, each has its own multiplied into `up`, and the
            number is 1.

    Raises:
        ValueError: a layer is not in the U-Net, factors do not fit it, or the file holds anything else.
    """
    found = read_lora(file, {"unet": shapes})["unet"]
    if wide := [name for name, factors in found.items() if factors.down.ndim != 2]:
        raise ValueError(f"{file}: the factors of {wide[0]} do not fit a side path: expected two matrices, of a linear layer")
    scales = {factors.scale for factors in found.values()}
    scale = scales.pop() if len(scales) == 1 else None
    rest = lambda factors: np.float32(factors.scale if scale is None else 1.0)  # noqa: E731
    lora = {name: {"down": jnp.asarray(x.down.T), "up": jnp.asarray(rest(x) * x.up.T)} for name, x in found.items()}
    return lora, 1.0 if scale is None else scale


def read_lora(file: str | Path, shapes: Mapping[str, Any]) -> dict[str, dict[str, LowRank]]:
    """Reads an adapter under the names of diffusers, peft or kohya's scripts.

    The scale of a layer is alpha / rank, or alpha / sqrt(rank) with use_rslora. Alpha is the layer's own `.alpha`, else
    lora_alpha or alpha_pattern of the metadata or of `adapter_config.json` beside the file, else the rank.

    Args:
        file: safetensors file.
        shapes: {part: parameters, or their ShapeDtypeStructs} of the parts that it may change, "unet", "text" and "text_2".

    Returns:
        {part: {PyTorch's name of a layer: its factors}}, sorted by name.

    Raises:
        ValueError: the file is damaged or for another base model, a layer is in none of the parts, factors do not fit it, or the
            file holds anything else.
    """
    file, known = Path(file), layers_of(shapes)
    found = collect_factors(file, known)
    about = {part: read_scales(file, PREFIXES[part]) for part in shapes}
    adapter: dict[str, dict[str, LowRank]] = {part: {} for part in shapes}
    for full, factors in sorted(found.items()):
        part = next(part for part in shapes if full.startswith(PREFIXES[part]))
        name = full.removeprefix(PREFIXES[part])
        down, up = check_factors(file, name, factors, known[full])
        alpha = factors.get("alpha")
        scale = scale_of(about[part], name, len(down)) if alpha is None else float(alpha.reshape(())) / len(down)
        adapter[part][name] = LowRank(down, up, scale)
    return adapter


def collect_factors(file: Path, known: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, np.ndarray]]:
    """Reads the factors of an adapter by layer.

    Args:
        file: safetensors file.
        known: from `layers_of`.

    Returns:
        {name with the part's prefix: {"down", "up", "alpha": array}}, with the entries that the file has.

    Raises:
        ValueError: an array is no part of an adapter, belongs to no known layer or comes twice, an alpha is no single number, the
            file is empty, or it is for another base model.
    """
    state = read_arrays(file)
    check_kind(file, state, known)
    find = layer_finder(known)
    found: dict[str, dict[str, np.ndarray]] = {}
    for key, value in state.items():
        site, part = site_and_part(file, key)
        if (name := find(site)) is None:
            raise ValueError(f"{file}: this prior has no layer {site}: it is an adapter of another network")
        if part in found.setdefault(name, {}):
            raise ValueError(f"{file}: {key} gives {part} of {name} a second time")
        if part == "alpha" and value.size != 1:
            raise ValueError(f"{file}: {key} must be one number, got an array of {value.shape}")
        found[name][part] = value.astype(np.float32)
    if not found:
        raise ValueError(f"{file} holds no adapter: it is empty")
    return found


def check_factors(
    file: Path, name: str, factors: Mapping[str, np.ndarray], shape: tuple[int, ...]
) -> tuple[Float[np.ndarray, "r ..."], Float[np.ndarray, "out r"]]:
    """Checks the two factors of a layer.

    Args:
        file: named in the error.
        name: of the layer.
        factors: {"down", "up": array}, perhaps incomplete.
        shape: of the layer's weight in PyTorch's layout.

    Returns:
        Down and up, with the window of a 1x1 convolution left out.

    Raises:
        ValueError: one is missing, or they do not fit the layer or each other.
    """
    if missing := [part for part in ("down", "up") if part not in factors]:
        raise ValueError(f"{file}: the factors of {name} do not fit a layer of {shape}: {missing[0]} is missing")
    down, up = (factors[part].reshape(as_matrix(factors[part].shape)) for part in ("down", "up"))
    fits = up.ndim == 2 and down.ndim >= 2 and up.shape[1] == len(down) >= 1
    if not fits or (len(up), *down.shape[1:]) != as_matrix(shape):
        raise ValueError(f"{file}: the factors of {name} do not fit a layer of {shape}, they are {down.shape} and {up.shape}")
    return down, up


def read_scales(file: Path, prefix: str) -> LoraScales:
    """Reads the scale settings of an adapter from its metadata, or else from adapter_config.json beside it.

    Args:
        file: safetensors file.
        prefix: of the keys of its part in the metadata.

    Returns:
        The settings; the defaults where there are none.

    Raises:
        ValueError: the metadata or the JSON file is malformed; one line.
    """
    with safe_open(file, framework="np") as opened:
        text = (opened.metadata() or {}).get("lora_adapter_metadata")
    beside = file.parent / "adapter_config.json"
    if text is not None:
        try:
            about = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}: its lora_adapter_metadata is not JSON: {error}") from None
        if not isinstance(about, dict):
            raise ValueError(f"{file}: its lora_adapter_metadata is no JSON object")
        about = {key.removeprefix(prefix): value for key, value in about.items()}
    else:
        file, about = (beside, read_config(beside)) if beside.is_file() else (file, {})
    alpha, pattern = about.get("lora_alpha"), about.get("alpha_pattern") or {}
    if not isinstance(pattern, dict) or not all(map(is_number, pattern.values())) or not (alpha is None or is_number(alpha)):
        raise ValueError(f"{file}: lora_alpha must be a number, and alpha_pattern numbers by the names of layers")
    if strange := [key for key in pattern if not is_simple_pattern(key)]:
        raise ValueError(f"{file}: alpha_pattern {strange[0]!r:.100} must be the end of a layer's name, or a simple pattern")
    return LoraScales(alpha, pattern, about.get("use_rslora") is True)


def scale_of(about: LoraScales, name: str, rank: int) -> float:
    """The scale of one layer. The first pattern that the layer's name ends in wins, as in peft.

    Args:
        about: the settings of the adapter.
        name: of the layer.
        rank: of its factors.

    Returns:
        alpha / rank, or alpha / sqrt(rank); 1 without an alpha.

    Examples:
        >>> scale_of(LoraScales(alpha=8.0), "attn1.to_q", 4)
        2.0
    """
    own = (alpha for key, alpha in about.pattern.items() if re.fullmatch(rf"(.*\.)?({key})", name))
    alpha = next(own, about.alpha)
    return 1.0 if alpha is None else alpha / (rank**0.5 if about.rslora else rank)


def is_simple_pattern(key: str) -> bool:
    """Whether a key is a regular expression that matches in short time: few repetitions, and none of a group.

    Examples:
        >>> is_simple_pattern("attn1.to_q"), is_simple_pattern("(a+)+")
        (True, False)
    """
    if len(key) > 300 or not re.fullmatch(r"[\w.|^$()\[\]\\*+?-]+", key):
        return False
    if len(re.findall(r"[*+?]", key)) > 3 or re.search(r"[)*+?][*+?]", key):
        return False
    try:
        re.compile(key)
    except re.error:
        return False
    return True


def save_embedding(file: str | Path, embedding: Float[Array, "n w"], pooled: int = 0) -> None:
    """Writes a learned unconditional embedding as `negative_prompt_embeds` [1 n w], as PyTorch pipelines call it.

    That of an SDXL has `negative_pooled_prompt_embeds` [1 p] beside it.

    Args:
        file: safetensors file to write.
        embedding: [n w].
        pooled: width of the pooled vector in it, `Prior.pooled`. An SDXL needs it: without it the rows of the pooled vector are
            written as tokens, which no pipeline takes.
    """
    with replacing(file) as partial:
        save_file(pipeline_arrays(np.asarray(embedding)[None], pooled, "negative_"), partial, {"format": "pt"})


def pipeline_arrays(tokens: Float[np.ndarray, "k n w"], pooled: int, prefix: str = "") -> dict[str, Float[np.ndarray, "k ..."]]:
    """Embedded texts under the names of PyTorch pipelines.

    Args:
        tokens: [k n w], as a prior's `embed` gives them.
        pooled: width of the pooled vector in each, `Prior.pooled`.
        prefix: of the names.

    Returns:
        prompt_embeds, and pooled_prompt_embeds where there is a pooled vector.
    """
    names = (f"{prefix}prompt_embeds", f"{prefix}pooled_prompt_embeds")
    arrays = unpack(jnp.asarray(tokens), pooled) if pooled else (tokens,)
    return {name: np.ascontiguousarray(array) for name, array in zip(names, arrays, strict=False)}


def load_embedding(file: str | Path) -> Float[Array, "n w"]:
    """Reads the file that `save_embedding` writes.

    Args:
        file: safetensors file.

    Returns:
        The embedding [n w], float32.

    Raises:
        ValueError: the file holds anything else.
    """
    flat = read_arrays(Path(file))
    ndims = [flat[name].ndim for name in NAMES if name in flat]
    if set(flat) - set(NAMES) or ndims not in ([3], [3, 2]) or any(len(array) < 1 for array in flat.values()):
        wanted = "negative_prompt_embeds [1 n w], perhaps with negative_pooled_prompt_embeds [1 p],"
        raise ValueError(f"{file} must hold {wanted} and nothing else, got {sorted(flat)}")
    tokens, *pooled = (jnp.asarray(flat[name][0], jnp.float32) for name in NAMES if name in flat)
    return pack(tokens, *pooled) if pooled else tokens
