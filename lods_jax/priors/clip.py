"""CLIP as a judge of any prompt: how near renders are to it, and whether they are nearer to it than to other prompts.

`judge` gives figures of finished renders, `likeness` what a train step asks while it runs.

A folder as transformers saves it: config.json, model.safetensors and the files of the tokenizer.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lods_jax.priors import flax_networks
from lods_jax.priors.diffusers_folder import read_config, refuse_pickles
from lods_jax.priors.network_configs import clip_settings
from lods_jax.priors.tokenizer import load_tokenizer, tokenize
from lods_jax.priors.torch_weights import State, read_arrays, to_flax

AT_ONCE = 8  # images in one call
FIGURES = {
    "clip_score": "a hundred times the mean cosine of views and prompt in CLIP",
    "clip_r_precision": "share of views that are nearer to their prompt in CLIP than to any other of the set",
}


class Clip(NamedTuple):
    """A CLIP, ready to be asked.

    Attributes:
        size: edge of the images that it takes, pixels.
        embed_texts: texts -> unit vectors [k p].
        embed_images: rgb [n size size 3] in [0, 1] -> unit vectors [n p].
        image_params: of the image encoder.
        encode: (`image_params`, rgb [b size size 3] in [0, 1]) -> vectors [b p] of any length, within a jitted function.
    """

    size: int
    embed_texts: Callable[[Sequence[str]], np.ndarray]
    embed_images: Callable[[np.ndarray], np.ndarray]
    image_params: Any = None
    encode: Callable[[Any, jax.Array], jax.Array] | None = None


def load_clip(folder: Path) -> Clip:
    """The CLIP of a folder.

    Args:
        folder: as transformers saves it.

    Returns:
        The CLIP.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the folder holds another network, or damaged weights; one line.
    """
    config = clip_config(folder)
    width = config.get("projection_dim", 512)  # of both towers; the value in a tower's own config is for the tower alone
    vision = flax_networks.image_encoder(clip_settings(config, "vision") | {"projection_dim": width})
    text = flax_networks.text_encoder(config)
    state: State = {}
    for file in weight_files(folder):
        state |= read_arrays(file)
    if "text_projection.weight" not in state:
        raise ValueError(f"{folder}: text_projection.weight is missing")
    of_image = to_flax(state, flax_networks.shapes(vision))
    of_text = to_flax(state, flax_networks.shapes(text))
    encode = partial(flax_networks.encode_image, vision)
    see = jax.jit(encode)
    read = jax.jit(partial(flax_networks.encode_text, text))
    project, tokenizer = state["text_projection.weight"].astype(np.float32).T, load_tokenizer(folder, "")

    def embed_texts(texts):
        ids = tokenize(tokenizer, texts, text.config.max_position_embeddings, text.config.vocab_size)
        ends = np.argmax(ids == tokenizer.eos_token_id, axis=1)  # what follows the first end is padding
        return unit(np.asarray(read(of_text, ids))[np.arange(len(ids)), ends] @ project)

    def embed_images(rgb):
        chunks = []
        for first in range(0, len(rgb), AT_ONCE):
            rows = np.minimum(first + np.arange(AT_ONCE), len(rgb) - 1)  # the last one is repeated: one shape compiles once
            chunks.append(np.asarray(see(of_image, jnp.asarray(rgb[rows]))))
        return unit(np.concatenate(chunks)[: len(rgb)])

    return Clip(vision.config.image_size, embed_texts, embed_images, of_image, encode)


def clip_config(folder: Path) -> dict[str, Any]:
    """The config of the CLIP of a folder.

    Args:
        folder: as transformers saves it.

    Returns:
        What its config.json holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the folder holds another network; one line.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder / 'config.json'} is missing: expected a CLIP as transformers saves it")
    config = read_config(folder / "config.json")
    if config.get("model_type") != "clip":
        raise ValueError(f"{folder} must hold a CLIP, with the model_type clip, got {config.get('model_type')!r}")
    return config


def weight_files(folder: Path) -> list[Path]:
    """The weights in a folder: model.safetensors, or its shards.

    Args:
        folder: as transformers saves it.

    Returns:
        Paths.

    Raises:
        FileNotFoundError: there are none.
        ValueError: they are pickled.
    """
    whole = folder / "model.safetensors"
    files = [whole] if whole.is_file() else sorted(folder.glob("model-*-of-*.safetensors"))
    if not files:
        refuse_pickles(folder, "pytorch_model")
        raise FileNotFoundError(f"{whole} is missing")
    return files


def unit(x: Float[np.ndarray, "n p"]) -> Float[np.ndarray, "n p"]:
    """The rows of x at length 1."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def likeness(clip: Clip, image_params: Any, rgb: Float[Array, "b h w 3"], texts: Float[Array, "b p"]) -> Float[Array, "b"]:
    """A hundred times the cosine of each picture and its text in CLIP: the mean over views is their CLIP score.

    Args:
        clip: from `load_clip`.
        image_params: those of `clip`, as an argument of the function that is jitted.
        rgb: pictures of any size in [0, 1]; what is beyond is cut.
        texts: unit vectors, from `clip.embed_texts`.

    Returns:
        At most 100.
    """
    rgb = jax.image.resize(jnp.clip(rgb, 0, 1), (len(rgb), clip.size, clip.size, 3), "bicubic")
    seen = clip.encode(image_params, rgb)
    return 100 * jnp.sum(seen * texts, -1) / jnp.maximum(jnp.linalg.norm(seen, axis=-1), 1e-12)


def judge(clip: Clip, rgb: Float[np.ndarray, "n h w 3"], prompt: str, others: Sequence[str] = ()) -> dict[str, float]:
    """The FIGURES of some views of an object.

    CLIP score is a hundred times the cosine, as in torchmetrics; Hessel et al. (2021) multiply by 2.5 and cut at 0. CLIP
    R-precision is the accuracy with which a view finds its prompt in the set (Park et al. 2021; of 3D objects Jain et al. 2022).
    Both are means over the views.

    Args:
        clip: from `load_clip`.
        rgb: renders [n size size 3] in [0, 1].
        prompt: what they are to show.
        others: prompts of the set, which may hold it.

    Returns:
        {figure: value}; R-precision only where the set has another prompt.
    """
    names = list(dict.fromkeys([prompt, *others]))
    cosine = clip.embed_images(rgb) @ clip.embed_texts(names).T  # [n k]
    figures = {"clip_score": float(100 * cosine[:, 0].mean())}
    return figures | ({"clip_r_precision": float(np.mean(cosine.argmax(1) == 0))} if len(names) > 1 else {})
