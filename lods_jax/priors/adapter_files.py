"""What a prior has learned, as files that other programs read: LoRA adapters and the unconditional embedding, in safetensors."""

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
    """What peft writes about the scales of an adapter."""

    alpha: float | None = None  # None: as large as the rank
    pattern: Mapping[str, float] = {}  # alpha of the layers whose names end so, as regular expressions
    rslora: bool = False  # rank-stabilised (Kalajdzievski 2023): alpha / sqrt(rank)


def save_lora(file: str | Path, lora: Lora, scale: float = 1.0) -> None:
    """Writes the adapter as diffusers' `load_lora_weights` reads it.

    The scale is multiplied into `up`, so that a program that reads no metadata sees the same adapter; the metadata says alpha =
    rank for every layer, which is a scale of 1.

    Args:
      scale: what the adapter was asked with.
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
    """An adapter of any of the four naming schemes, and its scale.

    The scale of a layer is alpha / rank, or alpha / sqrt(rank) where the file says use_rslora. Alpha is the layer's own `.alpha`,
    else what the metadata or `adapter_config.json` beside the file says (lora_alpha, alpha_pattern), else the rank.

    Args:
      shapes: of the U-Net's parameters.

    Returns:
      The adapter, and the scale to ask it with. Where layers differ in it, each has its own multiplied into `up`, and it is 1.

    Raises:
      ValueError: for a layer that the U-Net does not have, for factors that do not fit it, and for whatever is left over.
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
    """{site: {"down" [in r], "up" [r out], "alpha"}} of a file. Refuses any other array, and sites that are not `known`."""
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
    """The factors of a layer [in out], if they are the two of one rank."""
    down, up = factors.get("down"), factors.get("up")
    if down is None or up is None or len(shape) != 2 or down.ndim != 2 or up.ndim != 2:
        raise ValueError(f"{file}: the factors of {name} do not fit a layer of {shape}: expected two matrices, of a linear layer")
    if (len(down), up.shape[1]) != shape or down.shape[1] != len(up) or len(up) < 1:
        raise ValueError(f"{file}: the factors of {name} do not fit a layer of {shape}, they are {down.shape} and {up.shape}")
    return {"down": down, "up": up}


def read_scales(file: Path) -> LoraScales:
    """What the metadata of an adapter says of its scales, or else adapter_config.json beside it.

    Raises:
      ValueError: in one line, for what is malformed.
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
    """The scale of a layer. Of a pattern the first key counts that the layer's name ends in, as in peft."""
    own = (alpha for key, alpha in about.pattern.items() if re.fullmatch(rf"(.*\.)?({key})", name))
    alpha = next(own, about.alpha)
    return 1.0 if alpha is None else alpha / (rank**0.5 if about.rslora else rank)


def is_simple_pattern(key: str) -> bool:
    """Whether this is a regular expression that cannot take for ever to match: it repeats little, and no group."""
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
    """A learned unconditional text as `negative_prompt_embeds` [1 n w]: what a PyTorch pipeline takes under that name."""
    with replacing(file) as partial:
        save_file({"negative_prompt_embeds": np.asarray(embedding)[None]}, partial, {"format": "pt"})


def load_embedding(file: str | Path) -> Float[Array, "n w"]:
    """What `save_embedding` wrote."""
    flat = read_arrays(Path(file))
    if set(flat) != {"negative_prompt_embeds"} or flat["negative_prompt_embeds"].ndim != 3:
        raise ValueError(f"{file} must hold negative_prompt_embeds [1 n w] and nothing else, got {sorted(flat)}")
    return jnp.asarray(flat["negative_prompt_embeds"][0], jnp.float32)
