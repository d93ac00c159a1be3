"""SDXL (Podell et al. 2023): what sets its folders, its texts and its U-Net apart from those of Stable Diffusion 1 and 2.

Two text encoders read a text. The states before their last layers, side by side, are the tokens; the second gives a pooled vector
too. The U-Net adds an embedding of that vector, and of the sizes of the picture, to that of the timestep.

The pooled vector lies behind the tokens, in rows of their width that are filled up with zeros. So a text is one array here as in
every prior, and whatever mixes, learns, shifts or saves texts carries the pooled vector along.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from lods_jax.priors.diffusers_folder import TEXT_PARTS, TEXT_TIME, read_config

TIME_IDS = 6  # height and width of the original picture, top and left of the crop, height and width of what is asked for


def text_parts(folder: Path) -> tuple[str, ...]:
    """The text encoders of a Stable Diffusion folder.

    Args:
        folder: in diffusers layout.

    Returns:
        "text", and "text_2" of an SDXL.

    Raises:
        FileNotFoundError: a config is missing.
        ValueError: it is the refiner of SDXL.
    """
    if read_config(folder / "unet" / "config.json").get("addition_embed_type") != TEXT_TIME:
        return TEXT_PARTS[:1]
    index = read_index(folder)
    if index.get("requires_aesthetics_score") or not (folder / "text_encoder" / "config.json").is_file():
        raise ValueError(
            f"{folder} is the refiner of SDXL, with one text encoder and an aesthetics score, which reworks the pictures of a "
            "base model: pass the folder of the base model"
        )
    return TEXT_PARTS


def read_index(folder: Path) -> dict[str, Any]:
    """The model_index.json of a folder; empty where there is none, since the parts say what they are."""
    file = folder / "model_index.json"
    return read_config(file) if file.is_file() else {}


def zeros_for_nothing(folder: Path) -> bool:
    """Whether the empty text is zeros instead of what the text encoders say of it. True where an SDXL folder does not say."""
    return bool(read_index(folder).get("force_zeros_for_empty_prompt", True))


def pooled_width(unet: Any) -> int:
    """The width of the pooled vector that a U-Net takes.

    Args:
        unet: the network.

    Returns:
        A number; 0 for a U-Net that takes none.
    """
    if unet.addition_embed_type != TEXT_TIME:
        return 0
    return unet.projection_class_embeddings_input_dim - TIME_IDS * unet.addition_time_embed_dim


def check_texts(folder: Path, unet: Any, texts: Sequence[Any]) -> None:
    """Checks that the text encoders of a folder say what its U-Net was trained to read.

    Args:
        folder: named in the error.
        unet: of the folder.
        texts: configs of its text encoders.

    Raises:
        ValueError: widths or lengths differ.
    """
    if unet.cross_attention_dim != (width := sum(text.hidden_size for text in texts)):
        sizes = f"{unet.cross_attention_dim} and {width}"
        raise ValueError(f"{folder}: the U-Net's cross_attention_dim and the text encoder's hidden_size differ: {sizes}")
    if not (pooled := pooled_width(unet)):
        return
    if len(texts) < 2 or pooled != texts[-1].projection_dim:
        sizes = f"{pooled} and {texts[-1].projection_dim}"
        raise ValueError(f"{folder}: the U-Net's pooled text and the projection_dim of the second text encoder differ: {sizes}")
    if len({text.max_position_embeddings for text in texts}) > 1 or min(text.num_hidden_layers for text in texts) < 1:
        raise ValueError(f"{folder}: its text encoders must have layers, and the same max_position_embeddings")


def pack(tokens: Float[Array, "*k n w"], pooled: Float[Array, "*k p"]) -> Float[Array, "*k m w"]:
    """A text as one array: the tokens, and behind them the pooled vector.

    Args:
        tokens: [n w] of each text.
        pooled: [p] of each text.

    Returns:
        [m w] of each text, m - n rows of which hold the pooled vector and zeros.

    Examples:
        >>> pack(jnp.ones((2, 3)), 2 * jnp.ones(4)).tolist()
        [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [2.0, 2.0, 2.0], [2.0, 0.0, 0.0]]
    """
    *k, _, w = tokens.shape
    rows = pooled_rows(pooled.shape[-1], w)
    filled = jnp.concatenate([pooled, jnp.zeros((*k, rows * w - pooled.shape[-1]), pooled.dtype)], -1)
    return jnp.concatenate([tokens, filled.reshape(*k, rows, w)], -2)


def unpack(text: Float[Array, "*k m w"], width: int) -> tuple[Float[Array, "*k n w"], Float[Array, "*k p"]]:
    """The inverse of `pack`.

    Args:
        text: [m w] of each text.
        width: of the pooled vector.

    Returns:
        Tokens and pooled vectors.

    Examples:
        >>> [x.shape for x in unpack(jnp.ones((5, 4, 3)), 4)]
        [(5, 2, 3), (5, 4)]
    """
    rows = pooled_rows(width, text.shape[-1])
    return text[..., :-rows, :], text[..., -rows:, :].reshape(*text.shape[:-2], -1)[..., :width]


def pooled_rows(pooled: int, width: int) -> int:
    """How many rows of a width hold a pooled vector."""
    return -(-pooled // width)


def added_conditions(pooled: Float[Array, "b p"], height: int, width: int) -> dict[str, Float[Array, "b _"]]:
    """What the U-Net sees beside the tokens, for a picture of this size that was never resized or cropped.

    Args:
        pooled: of the texts.
        height: of the picture, pixels.
        width: of the picture, pixels.

    Returns:
        By the names of diffusers.
    """
    sizes = jnp.array([height, width, 0, 0, height, width], jnp.float32)
    return {"text_embeds": pooled, "time_ids": jnp.broadcast_to(sizes, (len(pooled), TIME_IDS))}
