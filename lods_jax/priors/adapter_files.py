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
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float
from safetensors import safe_open
from safetensors.numpy import save_file

from lods_jax.core.files import replacing
from lods_jax.priors.diffusers_folder import is_number, read_config
from lods_jax.priors.hub import family_of
from lods_jax.priors.lora import Lora, site_name
from lods_jax.priors.torch_weights import as_matrix, read_arrays, torch_shape

# How files name the two factors and alpha: diffusers, peft and kohya's scripts, diffusers in the days of the official release.
KEYS = (
    r"(?P<site>.+)\.lora(?:_linear_layer)?\.(?P<part>down|up)\.weight",
    r"(?P<site>.+)\.lora_(?P<part>A|B|down|up)(?:\.\w+)?\.weight",
    r"(?P<site>.+?)(?:\.processor)?\.(?P<layer>to_\w+)_lora\.(?P<part>down|up)\.weight",
    r"(?P<site>.+?)(?:\.lora)?\.(?P<part>alpha)",
)
PREFIXES = {"unet": "unet.", "text": "text_encoder."}  # of diffusers, by the part of a prior
KOHYA = {"unet": "lora_unet_", "text": "lora_te_"}  # of kohya's scripts, whose names have no dots
FACTORS = {"A": "down", "B": "up"}  # of peft
OTHER_KINDS = {  # adapters that are no products of two factors, by a part of their keys
    r"\.hada_w": "a LoHa",
    r"\.lokr_w": "a LoKr",
    r"\.(dora_scale|lora_magnitude_vector)": "a DoRA",
    r"\.lora_mid\.": "a LoRA with a Tucker core",
    r"\.diff(_b)?$": "a difference of whole weights",
}
OTHER_BASES = {  # by a part of the keys
    r"^(lora_te2_|text_encoder_2\.)|(input|output)_blocks_|[._]transformer_blocks[._][1-9]": "SDXL",
    r"(double|single)_blocks|single_transformer_blocks|joint_blocks|^transformer\.": "a transformer, such as SD 3 or Flux",
}


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
        shapes: {part: parameters, or their ShapeDtypeStructs} of the parts that it may change, "unet" and "text".

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


def layers_of(shapes: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The layers that an adapter can change.

    Args:
        shapes: {part: parameters, or their ShapeDtypeStructs}.

    Returns:
        {name with the part's prefix: shape of the weight in PyTorch's layout}.
    """
    return {
        PREFIXES[part] + site_name(path): torch_shape(path, leaf.shape)
        for part, tree in shapes.items()
        for path, leaf in flatten_dict(tree).items()
        if path[-1] == "kernel"
    }


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
    flat = {name.replace(PREFIXES[part], KOHYA[part], 1).replace(".", "_"): name for part in PREFIXES for name in known}
    found: dict[str, dict[str, np.ndarray]] = {}
    for key, value in state.items():
        site, part = site_and_part(file, key)
        names = (flat.get(site), site, *(prefix + site for prefix in PREFIXES.values()))
        if (name := next((name for name in names if name in known), None)) is None:
            raise ValueError(f"{file}: this prior has no layer {site}: it is an adapter of another network")
        if part in found.setdefault(name, {}):
            raise ValueError(f"{file}: {key} gives {part} of {name} a second time")
        if part == "alpha" and value.size != 1:
            raise ValueError(f"{file}: {key} must be one number, got an array of {value.shape}")
        found[name][part] = value.astype(np.float32)
    if not found:
        raise ValueError(f"{file} holds no adapter: it is empty")
    return found


def site_and_part(file: Path, key: str) -> tuple[str, str]:
    """The layer and the part of its adapter that a key of a file names.

    Args:
        file: named in the error.
        key: of an array.

    Returns:
        The layer's name, perhaps with a prefix, and "down", "up" or "alpha".

    Raises:
        ValueError: the key is of no adapter.

    Examples:
        >>> site_and_part(Path("a"), "unet.mid_block.attn1.processor.to_out_lora.up.weight")
        ('unet.mid_block.attn1.to_out.0', 'up')
    """
    match = next((m for pattern in KEYS if (m := re.fullmatch(pattern, key.removeprefix("base_model.model.")))), None)
    if match is None:
        raise ValueError(f"{file}: {key} is no part of an adapter")
    site = match["site"] + (f".{match['layer']}" if "layer" in match.groupdict() else "")
    site = re.sub(r"self_attn\.to_(q|k|v|out)$", r"self_attn.\1_proj", site)
    return re.sub(r"to_out$", "to_out.0", site), FACTORS.get(match["part"], match["part"])


def check_kind(file: Path, state: Mapping[str, np.ndarray], known: Mapping[str, tuple[int, ...]]) -> None:
    """Checks that a file is a LoRA for the base model at hand.

    Args:
        file: named in the error.
        state: its arrays.
        known: from `layers_of`.

    Raises:
        ValueError: it is an adapter of another kind, or of another base model.
    """
    find = lambda kinds: next((kind for pattern, kind in kinds.items() if any(re.search(pattern, key) for key in state)), None)  # noqa: E731
    if kind := find(OTHER_KINDS):
        raise ValueError(f"{file} is {kind}: expected a LoRA, whose layers have two factors each")
    widths = {shape[1] for name, shape in known.items() if name.endswith("attn2.to_k")}
    of_file = {x.shape[1] for key, x in state.items() if re.search(r"attn2[._](to_k\.|processor\.to_k).*(down|_A)\b", key)}
    base = find(OTHER_BASES) or next((family_of(width) for width in of_file - widths if widths), None)
    if base is not None:
        own = family_of(min(widths)) if widths else "another network"
        raise ValueError(f"{file} was trained on {base}, and this prior is {own}: use an adapter of the same base model")


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
