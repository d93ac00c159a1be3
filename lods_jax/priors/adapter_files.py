"""The learned part of a prior as files for other programs: LoRA adapters and the unconditional embedding, in safetensors."""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float
from safetensors import safe_open
from safetensors.numpy import save_file

from lods_jax.core.files import replacing
from lods_jax.priors.diffusers_folder import is_number, read_config
from lods_jax.priors.lora import Lora, site_name
from lods_jax.priors.torch_weights import read_arrays

# How files name the two factors and alpha: diffusers, peft and kohya's scripts, diffusers in the days of the official release.
KEYS = (
    r"(?P<site>.+)\.lora\.(?P<part>down|up)\.weight",
    r"(?P<site>.+)\.lora_(?P<part>A|B|down|up)(?:\.\w+)?\.weight",
    r"(?P<site>.+)\.processor\.(?P<layer>to_\w+)_lora\.(?P<part>down|up)\.weight",
    r"(?P<site>.+?)(?:\.lora)?\.(?P<part>alpha)",
)
PREFIXES = r"^(unet\.|base_model\.model\.)?"
FACTORS = {"A": "down", "B": "up"}  # of peft


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
    """Reads an adapter of any of the four naming schemes, and its scale.

    The scale of a layer is alpha / rank, or alpha / sqrt(rank) with use_rslora. Alpha is the layer's own `.alpha`, else
    lora_alpha or alpha_pattern of the metadata or of `adapter_config.json` beside the file, else the rank.

    Args:
        file: safetensors file.
        shapes: the U-Net's parameters, or their ShapeDtypeStructs.

    Returns:
        The adapter, and the scale to use it at. Where layers differ in scale, each has its own multiplied into `up`, and the
            number is 1.

    Raises:
        ValueError: a layer is not in the U-Net, factors do not fit it, or the file holds anything else.
    """
    file = Path(file)
    known = {site_name(path): leaf.shape for path, leaf in flatten_dict(shapes).items() if path[-1] == "kernel"}
    found = collect_factors(file, known)
    about = read_scales(file)
    lora, scales = {}, {}
    for name, factors in sorted(found.items()):
        lora[name], alpha = check_factors(file, name, factors, known[name]), factors.get("alpha")
        rank = lora[name]["down"].shape[1]
        scales[name] = scale_of(about, name, rank) if alpha is None else alpha / rank
    if len(set(scales.values())) == 1:
        return jax.tree.map(jnp.asarray, lora), next(iter(scales.values()))
    for name, factors in lora.items():
        factors["up"] = np.float32(scales[name]) * factors["up"]
    return jax.tree.map(jnp.asarray, lora), 1.0


def collect_factors(file: Path, known: Collection[str]) -> dict[str, dict[str, Any]]:
    """Reads the factors of an adapter by layer.

    Args:
        file: safetensors file.
        known: PyTorch's names of the layers that may have an adapter.

    Returns:
        {layer: {"down": [in r], "up": [r out], "alpha": number}}, with the entries that the file has.

    Raises:
        ValueError: an array is no part of an adapter, belongs to no known layer or comes twice, an alpha is no single number, or
            the file is empty.
    """
    from_flat = {f"lora_unet_{name.replace('.', '_')}": name for name in known}  # kohya's names have no dots
    found: dict[str, dict[str, Any]] = {}
    for key, value in read_arrays(file).items():
        first, _, rest = key.partition(".")
        full = f"{from_flat[first]}.{rest}" if first in from_flat else re.sub(PREFIXES, "", key)
        match = next((m for pattern in KEYS if (m := re.fullmatch(pattern, full))), None)
        if match is None:
            raise ValueError(f"{file}: {key} is no part of a U-Net's adapter")
        name = match["site"] + (f".{match['layer']}" if "layer" in match.groupdict() else "")
        name = re.sub(r"to_out$", "to_out.0", name)
        if name not in known:
            raise ValueError(f"{file}: this U-Net has no layer {name}")
        part = FACTORS.get(match["part"], match["part"])
        if part in found.setdefault(name, {}):
            raise ValueError(f"{file}: {key} gives {part} of {name} a second time")
        if part == "alpha" and value.size != 1:
            raise ValueError(f"{file}: {key} must be one number, got an array of {value.shape}")
        found[name][part] = float(value.reshape(())) if part == "alpha" else value.T.astype(np.float32)
    if not found:
        raise ValueError(f"{file} holds no adapter: it is empty")
    return found


def check_factors(file: Path, name: str, factors: Mapping[str, Any], shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Checks the two factors of a layer.

    Args:
        file: named in the error.
        name: of the layer.
        factors: {"down": [in r], "up": [r out]}, perhaps incomplete.
        shape: (in, out) of the layer.

    Returns:
        Both factors.

    Raises:
        ValueError: one is missing, or they do not fit the layer or each other.
    """
    down, up = factors.get("down"), factors.get("up")
    if down is None or up is None or len(shape) != 2 or down.ndim != 2 or up.ndim != 2:
        raise ValueError(f"{file}: the factors of {name} do not fit a layer of {shape}: expected two matrices, of a linear layer")
    if (len(down), up.shape[1]) != shape or down.shape[1] != len(up) or len(up) < 1:
        raise ValueError(f"{file}: the factors of {name} do not fit a layer of {shape}, they are {down.shape} and {up.shape}")
    return {"down": down, "up": up}


def read_scales(file: Path) -> LoraScales:
    """Reads the scale settings of an adapter from its metadata, or else from adapter_config.json beside it.

    Args:
        file: safetensors file.

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
        about = {key.removeprefix("unet."): value for key, value in about.items()}
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


def save_embedding(file: str | Path, embedding: Float[Array, "n w"]) -> None:
    """Writes a learned unconditional embedding as `negative_prompt_embeds` [1 n w], as PyTorch pipelines call it.

    Args:
        file: safetensors file to write.
        embedding: [n w].
    """
    with replacing(file) as partial:
        save_file({"negative_prompt_embeds": np.asarray(embedding)[None]}, partial, {"format": "pt"})


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
    if set(flat) != {"negative_prompt_embeds"} or flat["negative_prompt_embeds"].ndim != 3:
        raise ValueError(f"{file} must hold negative_prompt_embeds [1 n w] and nothing else, got {sorted(flat)}")
    return jnp.asarray(flat["negative_prompt_embeds"][0], jnp.float32)
