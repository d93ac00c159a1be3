"""Checks of a network's `config.json`: types and bounds of its settings, and settings that the Flax classes would ignore."""

import types
import typing
from collections.abc import Mapping
from typing import Any

from lods_jax.priors import multi_view
from lods_jax.priors.diffusers_folder import MULTI_VIEW, MVDREAM, TEXT_TIME, is_number
from lods_jax.priors.sdxl import TIME_IDS

# What the Flax classes compute whatever the config says: another value would be ignored in silence.
UNET_FIXED = {
    "act_fn": "silu",
    "attention_type": "default",
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1.0,
    "resnet_time_scale_shift": "default",
    "time_embedding_type": "positional",
}
VAE_FIXED = {
    "act_fn": "silu",
    "in_channels": 3,
    "mid_block_add_attention": True,
    "out_channels": 3,
    "use_post_quant_conv": True,
    "use_quant_conv": True,
}
# Said by the config, and without effect on these networks: details of an addition_embed_type of another kind, and the upcast of a
# float16 VAE.
IDLE = {"addition_embed_type_num_heads", "force_upcast"}
BLOCKS = {
    "down_block_types": {"CrossAttnDownBlock2D", "DownBlock2D", "DownEncoderBlock2D"},
    "up_block_types": {"CrossAttnUpBlock2D", "UpBlock2D", "UpDecoderBlock2D"},
}
TEXT = {
    "vocab_size": int, "hidden_size": int, "intermediate_size": int, "num_hidden_layers": int, "num_attention_heads": int,
    "max_position_embeddings": int, "hidden_act": str, "layer_norm_eps": float, "projection_dim": int,
}  # fmt: skip
VISION = {
    "image_size": int, "patch_size": int, "num_channels": int, "hidden_size": int, "intermediate_size": int,
    "num_hidden_layers": int, "num_attention_heads": int, "hidden_act": str, "layer_norm_eps": float, "projection_dim": int,
}  # fmt: skip
JOIN = {"in_channel": int, "out_channel": int}
# No published network comes near these; beyond them a damaged file costs minutes or all memory.
MOST = 2**24
MOST_VIEWS = 64
MOST_OF = {
    "sample_size": 2048,
    "image_size": 2048,
    "layers_per_block": 32,
    "transformer_layers_per_block": 32,
    "num_hidden_layers": 128,
}
WORDS = {int: "whole number", float: "number", bool: "true or false", str: "text", types.NoneType: "null"}


def unet_settings(config: Mapping[str, Any], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a diffusers `unet/config.json` that the Flax class takes.

    Args:
        config: the JSON object; that of MVDream's U-Net says the same in other words.
        kinds: {field of the Flax class: its type}.

    Returns:
        Settings by name.

    Raises:
        ValueError: a setting has the wrong type, is out of bounds, or would be ignored.
    """
    if config.get("_class_name") == MVDREAM:
        own = settings(config, multi_view.KINDS, multi_view.FIXED, multi_view.IDLE)
        config = multi_view.diffusers_config({key: list(x) if isinstance(x, tuple) else x for key, x in own.items()})
    if config.get("_class_name") == MULTI_VIEW:
        if not fits(views := config.get("views"), int, MOST_VIEWS) or views < 1:
            raise ValueError(f"views must be a whole number from 1 to {MOST_VIEWS}, got {views!r:.100}")
        config = {key: value for key, value in config.items() if key != "views"}
    size = config.get("sample_size")
    if isinstance(size, list) and len(set(map(repr, size))) == 1:  # [64, 64] is 64
        config = {**config, "sample_size": size[0]}
    if not isinstance(config.get("upcast_attention"), bool | None):
        raise ValueError(f"upcast_attention must be true or false, got {config['upcast_attention']!r:.100}")
    if config.get("addition_embed_type") is not None:
        check_text_time(config)
    return settings(config, kinds, UNET_FIXED, IDLE | {"upcast_attention"})


def check_text_time(config: Mapping[str, Any]) -> None:
    """Checks what a U-Net sees beside its tokens: SDXL's pooled text and sizes of the picture.

    Args:
        config: of the U-Net.

    Raises:
        ValueError: it sees something else, or the widths do not add up.
    """
    kind, name = config["addition_embed_type"], config.get("_class_name")
    if kind != TEXT_TIME or name in (MVDREAM, MULTI_VIEW):
        raise ValueError(f"addition_embed_type must be null, or {TEXT_TIME!r} as in SDXL, got {kind!r:.100} of a {name!r:.100}")
    each, joined = (config.get(key) for key in ("addition_time_embed_dim", "projection_class_embeddings_input_dim"))
    if not fits(each, int, MOST) or each < 2 or each % 2:
        raise ValueError(f"addition_time_embed_dim must be an even whole number from 2 on, got {each!r:.100}")
    if not fits(joined, int, MOST) or joined <= TIME_IDS * each:
        more = f"more than the {TIME_IDS} x {each} of the picture's sizes"
        raise ValueError(f"projection_class_embeddings_input_dim must be {more}, got {joined!r:.100}")


def vae_settings(config: Mapping[str, Any], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a diffusers `vae/config.json` that the Flax class takes, without sample_size, which nothing uses.

    Args:
        config: the JSON object.
        kinds: {field of the Flax class: its type}.

    Returns:
        Settings by name.

    Raises:
        ValueError: as `unet_settings` does.
    """
    return settings({k: x for k, x in config.items() if k != "sample_size"}, kinds, VAE_FIXED, IDLE)


def clip_settings(config: Mapping[str, Any], tower: str) -> dict[str, Any]:
    """The settings of one tower of CLIP, from its own config or from that of the whole CLIP.

    Args:
        config: the JSON object.
        tower: "text" or "vision".

    Returns:
        Settings by name.

    Raises:
        ValueError: the config is of another kind of network, or a setting has the wrong type or is out of bounds.
    """
    model = config.get("model_type", f"clip_{tower}_model")
    if model == "clip":
        config = config.get(f"{tower}_config")
        if not isinstance(config, dict):
            raise ValueError(f"{tower}_config is missing: a config of a whole CLIP has it")
    elif model != f"clip_{tower}_model":
        raise ValueError(f"the {tower} encoder must be CLIP, with the model_type clip_{tower}_model, got {model!r}")
    kinds = {"text": TEXT, "vision": VISION}[tower]
    return checked({key: value for key, value in config.items() if key in kinds}, kinds)


def join_settings(config: Mapping[str, Any]) -> dict[str, int]:
    """The settings of the layer that joins image and pose in a Zero-1-to-3 folder.

    Args:
        config: the JSON object.

    Returns:
        in_channel and out_channel.

    Raises:
        ValueError: one is missing, has the wrong type or is out of bounds.
    """
    if missing := [key for key in JOIN if key not in config]:
        raise ValueError(f"{missing[0]} is missing")
    return checked({key: config[key] for key in JOIN}, JOIN)


def settings(config: Mapping[str, Any], kinds: Mapping[str, Any], fixed: Mapping[str, Any], idle: set[str]) -> dict[str, Any]:
    """The entries of a config that the network takes. Settings that it would ignore are refused, unless they are off.

    Args:
        config: the JSON object.
        kinds: {setting that the network takes: its type}.
        fixed: {setting: the one value that the network computes with}.
        idle: settings without effect.

    Returns:
        Settings by name.

    Raises:
        ValueError: a setting has another than its fixed value, is not supported, has the wrong type, or is out of bounds.
    """
    for key, value in config.items():
        if key in fixed and value != fixed[key]:
            raise ValueError(f"{key} must be {fixed[key]!r}, got {value!r}")
        known = key in kinds or key in fixed or key in idle or key.startswith("_")
        if not known and value not in (None, False):
            raise ValueError(f"{key} is not supported, got {value!r}")
    found = checked({key: value for key, value in config.items() if key in kinds}, kinds)
    for key in BLOCKS.keys() & found.keys():
        if not set(found[key]) <= BLOCKS[key]:
            raise ValueError(f"{key} must be of {sorted(BLOCKS[key])}, got {list(found[key])}")
    return found


def checked(config: Mapping[str, Any], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, once each is of its type and within bounds; lists as tuples.

    Args:
        config: settings by name.
        kinds: their types.

    Returns:
        Settings by name.

    Raises:
        ValueError: one is not.
    """
    for key, value in config.items():
        if not fits(value, kinds[key], MOST_OF.get(key, MOST)):
            what = f"{wanted(kinds[key])}" + (f" up to {MOST_OF[key]}" if key in MOST_OF else "")
            raise ValueError(f"{key} must be {what}, got {value!r:.100}")
    # Tuples, because fields of a Flax module are hashed.
    return {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}


def fits(value: Any, kind: Any, most: int) -> bool:
    """Whether a value of JSON has a type.

    Args:
        value: of JSON.
        kind: int, float, bool, str, None, a tuple of one of them, or a union of these.
        most: upper bound of an int.

    Returns:
        True if it has.

    Examples:
        >>> fits([64, 64], tuple[int, ...], 2048), fits(-1, int, 2048)
        (True, False)
    """
    if isinstance(kind, types.UnionType):
        return any(fits(value, one, most) for one in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return isinstance(value, list) and 0 < len(value) <= 16 and all(fits(x, typing.get_args(kind)[0], most) for x in value)
    if kind is int:
        return type(value) is int and 0 <= value <= most
    if kind is float:
        return is_number(value)
    return isinstance(value, kind)


def wanted(kind: Any) -> str:
    """A kind (a type of a setting) in words.

    Examples:
        >>> wanted(tuple[int, ...])
        'a list of whole numbers'
    """
    if isinstance(kind, types.UnionType):
        return " or ".join(wanted(one) for one in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return f"a list of {WORDS[typing.get_args(kind)[0]]}s"
    return WORDS[kind] if kind in (bool, types.NoneType) else f"a {WORDS[kind]}"
