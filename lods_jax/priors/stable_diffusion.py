"""Stable Diffusion 1.x and 2.x from a folder in diffusers layout, as a `Prior`.

weights = {"unet", "vae", "text"}; latents are scaled, so that they have about unit variance.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from lods_jax.core.noise_schedule import v_to_eps
from lods_jax.core.types import Cond, Prior, Query
from lods_jax.priors import flax_networks, lora, tokenizer, torch_weights


def stable_diffusion(
    folder: str | Path,
    dtype: DTypeLike = jnp.float32,
    image_size: int | None = None,
    variant: str | None = None,
    strict: bool = True,
    rank: int = lora.RANK,
    targets: Sequence[str] = lora.TARGETS,
    attention: str = "plain",
    remat: bool = False,
    untrained: bool = False,
) -> Prior:
    """The prior of a folder. Networks are built here; weights are read by `init`.

    Args:
      dtype: float32, bfloat16 or float16, of the U-Net and the VAE and of their weights; activations of the VAE leave the range
        of float16, so that with it the VAE stays in float32. Predictions and latents are float32.
      image_size: side of the square images that the VAE sees, in pixels; by default what the U-Net was trained for.
      variant: which weight files to read where a folder has several, such as "fp16".
      strict: refuse a text with words outside the folder's `vocabulary`; they have tokens, but untrained ones.
      rank, targets: of the adapter that a fitted query learns (`lora.init`).
      attention: "plain" as diffusers writes it, "fused" through `jax.nn.dot_product_attention`, which is one kernel on a GPU.
      remat: compute the transformer blocks again in the backward pass, which takes time and saves memory.
      untrained: random weights in place of those of the folder, which may then lack them: for sizes and costs.
    """
    text = flax_networks.text_encoder(torch_weights.read_config(Path(folder) / "text_encoder" / "config.json"))
    base = backbone(folder, {"text": text}, dtype, image_size, variant, attention, remat, untrained)
    words = vocabulary(folder) if strict else None
    encode_text = jax.jit(partial(flax_networks.encode_text, text))

    def embed(weights: dict, texts: Sequence[str]) -> Float[Array, "k n w"]:
        for line in texts if words is not None else ():
            if unknown := tokenizer.unknown_words(line, words):
                raise ValueError(f"unknown word {unknown[0]!r} in {line!r}; it may use: {', '.join(sorted(words))}")
        ids = tokenizer.tokenize(tokenizer.load_tokenizer(folder), texts, text.config.max_position_embeddings)
        return encode_text(weights["text"], jnp.asarray(ids))

    def init_psi(weights: dict, key: Key[Array, ""], tokens: Float[Array, "n w"], queries: Iterable[Query]) -> dict[str, Any]:
        """What the fitted `queries` can learn: "embedding" starts as `tokens`, "lora" and "pose" change nothing at the start."""
        queries, psi = list(queries), {}
        k_lora, k_pose = jax.random.split(key)
        if any(query.text == "learned" for query in queries):
            psi["embedding"] = tokens
        if any(query.lora for query in queries):
            psi["lora"] = lora.init(k_lora, weights["unet"], rank, targets)
        if any(query.pose for query in queries):
            psi["pose"] = lora.init_pose(k_pose, 4 * base.unet.block_out_channels[0])
        return psi

    return Prior(base.init, embed, init_psi, base.encode, base.decode, base.predict)


class Backbone(NamedTuple):
    """The U-Net and the autoencoder of a folder, with the functions of a `Prior` that do not depend on what it is asked with."""

    unet: nn.Module
    vae: nn.Module
    size: int  # side of the images that the autoencoder sees, pixels
    init: Callable
    encode: Callable
    decode: Callable
    predict: Callable


def backbone(
    folder: str | Path,
    encoders: Mapping[str, nn.Module],
    dtype: DTypeLike = jnp.float32,
    image_size: int | None = None,
    variant: str | None = None,
    attention: str = "plain",
    remat: bool = False,
    untrained: bool = False,
) -> Backbone:
    """What `stable_diffusion` and `zero123` share. `encoders` are the networks of the folder that make tokens, by part."""
    if jnp.dtype(dtype) not in (jnp.float32, jnp.bfloat16, jnp.float16):
        raise ValueError(f"dtype must be float32, bfloat16 or float16, got {jnp.dtype(dtype).name}")
    if attention not in ("plain", "fused"):
        raise ValueError(f"attention must be plain or fused, got {attention!r}")
    vae_dtype = jnp.float32 if jnp.dtype(dtype) == jnp.float16 else dtype
    folder = Path(folder)
    configs = {part: torch_weights.read_config(folder / part / "config.json") for part in ("unet", "vae")}
    prediction_type = read_schedule(folder)
    unet, vae = flax_networks.unet(configs["unet"], dtype), flax_networks.vae(configs["vae"], vae_dtype)
    pictured = unet.in_channels != vae.latent_channels
    factor = 2 ** (len(vae.block_out_channels) - 1)
    # The fused kernel of a GPU takes half precision alone.
    kernel = "cudnn" if jax.default_backend() == "gpu" and jnp.dtype(dtype) != jnp.float32 else "xla"
    size = unet.sample_size * factor if image_size is None else image_size
    if size < factor or size % factor:
        raise ValueError(f"image_size must be a multiple of {factor}, got {size}")

    def init(key: Key[Array, ""]) -> dict:
        """Reads the weights; nothing is random, and `key` is for `untrained` alone."""
        # What is asked once is asked in float32: it costs nothing there, and rounds nothing away.
        others = {part: (module, jnp.float32) for part, module in encoders.items()}
        networks = {"unet": (unet, dtype), "vae": (vae, vae_dtype), **others}
        if untrained:
            cast = lambda tree, to: jax.tree.map(lambda x: x.astype(to), tree)  # noqa: E731
            return {part: cast(flax_networks.init(module, key), to) for part, (module, to) in networks.items()}
        return {part: load(folder, part, module, to, variant) for part, (module, to) in networks.items()}

    def encode(weights: dict, rgb: Float[Array, "b h w 3"], key: Key[Array, ""]) -> Float[Array, "b m n c"]:
        image = 2 * resize(rgb, size) - 1
        moments = flax_networks.encode_moments(vae, weights["vae"], image.astype(vae_dtype))
        mean, logvar = (moment.astype(jnp.float32) for moment in moments)
        z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
        return vae.scaling_factor * z

    def decode(weights: dict, z: Float[Array, "b m n c"]) -> Float[Array, "b h w 3"]:
        image = flax_networks.decode_image(vae, weights["vae"], (z / vae.scaling_factor).astype(vae_dtype))
        return jnp.clip(image.astype(jnp.float32) / 2 + 0.5, 0.0, 1.0)

    def predict(
        weights: dict, psi: dict, z_t: Float[Array, "b h w c"], t: Int[Array, "b"], cond: Cond
    ) -> Float[Array, "b h w c"]:
        if (cond.image is not None) != pictured:
            what, do = ("an", "give") if pictured else ("no", "leave out")
            raise ValueError(f"this prior has {what} input for a picture: {do} Cond.image")
        for name in ("lora", "pose"):
            if getattr(cond, name) is not None and name not in psi:
                raise ValueError(f"Cond.{name} needs psi[{name!r}], which init_psi makes for a fitted query that uses it")
        hit: set[str] = set()
        paths = [flax_networks.remat()] if remat else []
        paths += [flax_networks.fused_attention(kernel)] if attention == "fused" else []
        paths += [lora.side_path(psi["lora"], cond.lora, hit)] if cond.lora is not None else []
        paths += [lora.pose_path(psi["pose"], cond.pose, cond.pose_on)] if cond.pose is not None else []
        seen = jnp.concatenate([z_t, cond.image], -1) if pictured else z_t
        out = flax_networks.predict_noise(unet, weights["unet"], seen.astype(dtype), t, cond.tokens.astype(dtype), paths)
        if cond.lora is not None and (missed := sorted(psi["lora"].keys() - hit)):
            raise ValueError(f"the adapter has a layer that this U-Net does not have: {missed[0]}")
        out = out.astype(jnp.float32)
        return out if prediction_type == "epsilon" else v_to_eps(out, z_t, t)

    return Backbone(unet, vae, size, init, encode, decode, predict)


def load(folder: Path, part: str, module: nn.Module, dtype: DTypeLike, variant: str | None = None) -> Any:
    """The parameters of one part of the folder, read from disk as `dtype`."""
    params = torch_weights.to_flax(torch_weights.read_state(folder, part, variant), flax_networks.shapes(module))
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), params)


def resize(rgb: Float[Array, "b h w 3"], size: int, antialias: bool = False) -> Float[Array, "b _ _ 3"]:
    """Square images by bilinear interpolation; as PyTorch does it by default, without antialiasing."""
    shape = (len(rgb), size, size, 3)
    return rgb if rgb.shape == shape else jax.image.resize(rgb, shape, "bilinear", antialias=antialias)


def vocabulary(folder: str | Path) -> frozenset[str] | None:
    """The words that the prior of a folder was trained on; None where no `vocabulary.json` limits them."""
    file = Path(folder) / "vocabulary.json"
    return frozenset(torch_weights.read_config(file)["words"]) if file.is_file() else None


def read_schedule(folder: Path) -> str:
    """The folder's prediction type; refuses any noise schedule but the one in `diffusion`."""
    file = folder / "scheduler" / "scheduler_config.json"
    config = torch_weights.read_config(file)
    for name in ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "trained_betas"):
        if config.get(name, torch_weights.SCHEDULER[name]) != torch_weights.SCHEDULER[name]:
            raise ValueError(f"{file}: {name} must be {torch_weights.SCHEDULER[name]}, got {config[name]}")
    prediction_type = config.get("prediction_type", "epsilon")
    if prediction_type not in torch_weights.PREDICTION_TYPES:
        allowed = " or ".join(torch_weights.PREDICTION_TYPES)
        raise ValueError(f"{file}: prediction_type must be {allowed}, got {prediction_type!r}")
    return prediction_type
