"""What a prior has learned, as files that other programs read: LoRA adapters and the unconditional embedding, in safetensors."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float
from safetensors import safe_open
from safetensors.numpy import save_file

from lods_jax.core.files import replacing
from lods_jax.priors.lora import Lora, site_name
from lods_jax.priors.torch_weights import read_arrays

# How files name the two factors: diffusers, peft, and diffusers in the days of the official release.
KEYS = (
    r"(?:unet\.)?(?P<site>.+)\.lora\.(?P<part>down|up)\.weight",
    r"(?:unet\.|base_model\.model\.)?(?P<site>.+)\.lora_(?P<part>A|B)(?:\.default)?\.weight",
    r"(?:unet\.)?(?P<site>.+)\.processor\.(?P<layer>to_\w+)_lora\.(?P<part>down|up)\.weight",
)


def save_lora(file: str | Path, lora: Lora, scale: float = 1.0) -> None:
    """Writes the adapter as diffusers' `load_lora_weights` reads it; `scale` becomes lora_alpha = scale rank in the metadata."""
    flat = {}
    for name, factors in lora.items():
        flat[f"unet.{name}.lora.down.weight"] = np.ascontiguousarray(np.asarray(factors["down"]).T)
        flat[f"unet.{name}.lora.up.weight"] = np.ascontiguousarray(np.asarray(factors["up"]).T)
    rank = next(iter(lora.values()))["down"].shape[1]
    about = {"unet.r": rank, "unet.lora_alpha": scale * rank, "unet.target_modules": sorted(lora)}
    about |= {"unet.rank_pattern": {}, "unet.alpha_pattern": {}}
    with replacing(file) as partial:
        save_file(flat, partial, {"format": "pt", "lora_adapter_metadata": json.dumps(about)})


def load_lora(file: str | Path, shapes: Any) -> tuple[Lora, float]:
    """An adapter of any of the three naming schemes, and its scale: lora_alpha / rank where the file says so, else 1.

    Args:
      shapes: of the U-Net's parameters. Raises ValueError for a layer that it does not have, and for whatever else is left over.
    """
    arrays = read_arrays(Path(file))
    with safe_open(file, framework="np") as opened:
        about = json.loads((opened.metadata() or {}).get("lora_adapter_metadata", "{}"))
    found: dict[str, dict[str, np.ndarray]] = {}
    alphas: set[float] = set()
    for key, value in arrays.items():
        match = next((m for pattern in KEYS if (m := re.fullmatch(pattern, key))), None)
        if match is None and key.endswith(".alpha"):
            alphas.add(float(value))
        elif match is None:
            raise ValueError(f"{file}: {key} is no part of a U-Net's adapter")
        else:
            name = match["site"] + (f".{match['layer']}" if "layer" in match.groupdict() else "")
            name = re.sub(r"to_out$", "to_out.0", name)
            found.setdefault(name, {})["down" if match["part"] in ("down", "A") else "up"] = value.T.astype(np.float32)
    known = {site_name(path): leaf.shape for path, leaf in flatten_dict(shapes).items() if path[-1] == "kernel"}
    for name, factors in found.items():
        if name not in known:
            raise ValueError(f"{file}: this U-Net has no layer {name}")
        if set(factors) != {"down", "up"} or (len(factors["down"]), factors["up"].shape[1]) != known[name]:
            raise ValueError(f"{file}: the factors of {name} do not fit a layer of {known[name]}")
    ranks = {factors["down"].shape[1] for factors in found.values()}
    alphas |= {float(about["unet.lora_alpha"])} if "unet.lora_alpha" in about else set()
    if len(ranks) != 1 or len(alphas) > 1:
        raise ValueError(f"{file}: one rank and one alpha are expected, got {sorted(ranks)} and {sorted(alphas)}")
    scale = alphas.pop() / next(iter(ranks)) if alphas else 1.0
    return jax.tree.map(jnp.asarray, dict(sorted(found.items()))), scale


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
