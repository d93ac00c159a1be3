"""How files of adapters name their arrays, and what the names tell of the base model."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from lods_jax.priors.hub import family_of
from lods_jax.priors.lora import site_name
from lods_jax.priors.multi_view import diffusers_name
from lods_jax.priors.torch_weights import torch_shape

# How files name the two factors and alpha: diffusers, peft and kohya's scripts, diffusers in the days of the official release.
KEYS = (
    r"(?P<site>.+)\.lora(?:_linear_layer)?\.(?P<part>down|up)\.weight",
    r"(?P<site>.+)\.lora_(?P<part>A|B|down|up)(?:\.\w+)?\.weight",
    r"(?P<site>.+?)(?:\.processor)?\.(?P<layer>to_\w+)_lora\.(?P<part>down|up)\.weight",
    r"(?P<site>.+?)(?:\.lora)?\.(?P<part>alpha)",
)
PREFIXES = {"unet": "unet.", "text": "text_encoder.", "text_2": "text_encoder_2."}  # of diffusers, by the part of a prior
# Of kohya's scripts, whose names have no dots.
KOHYA = {"lora_unet_": "unet", "lora_te_": "text", "lora_te1_": "text", "lora_te2_": "text_2"}
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


def layer_finder(known: Iterable[str]) -> Callable[[str], str | None]:
    """Builds a function that finds a layer by the name that a file has for it.

    Args:
        known: names with the part's prefix.

    Returns:
        A name of diffusers, peft or kohya's scripts -> that of the layer; None for no such layer.
    """
    known = set(known)
    flat = {
        (kohya + name.removeprefix(PREFIXES[part])).replace(".", "_"): name
        for kohya, part in KOHYA.items()
        for name in known
        if name.startswith(PREFIXES[part])
    }
    # Of the first level, as of all others.
    layers = {match[1] for name in known if (match := re.match(r"unet\.down_blocks\.0\.resnets\.(\d+)\.", name))}

    def find(site: str) -> str | None:
        whole = (name for name in (site, *(prefix + site for prefix in PREFIXES.values())) if name in known)
        return flat.get(site) or flat.get(name_today(site, len(layers))) or next(whole, None)

    return find


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


def name_today(site: str, layers_per_block: int) -> str:
    """The name that kohya's scripts give a layer of SDXL's U-Net by its name in the original code, as it would be by diffusers'.

    Args:
        site: without dots.
        layers_per_block: of the U-Net.

    Returns:
        The name, without dots; other names as they are.

    Examples:
        >>> name_today("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", 2)
        'lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q'
    """
    if not site.startswith("lora_unet_"):
        return site
    dotted = re.sub(r"_(\d+)(?=_|$)", r".\1", site.removeprefix("lora_unet_"))
    dotted = re.sub(r"(\.\d+)_", r"\1.", dotted) + "."
    return "lora_unet_" + diffusers_name(dotted, layers_per_block)[:-1].replace(".", "_")


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
    others = {pattern: base for pattern, base in OTHER_BASES.items() if base != "SDXL" or not is_sdxl(known)}
    base = find(others) or next((family_of(width) for width in of_file - widths if widths), None)
    if base is not None:
        own = family_of(min(widths)) if widths else "another network"
        raise ValueError(f"{file} was trained on {base}, and this prior is {own}: use an adapter of the same base model")


def is_sdxl(known: Iterable[str]) -> bool:
    """Whether the names `known` of layers are those of an SDXL, whose U-Net embeds more than the timestep."""
    return any(name.startswith("unet.add_embedding.") for name in known)
