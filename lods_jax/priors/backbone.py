"""U-Net and autoencoder of a folder in diffusers layout, as the functions of a `Prior`."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from lods_jax.core.math import clip_to_unit
from lods_jax.core.noise_schedule import NoiseSchedule, network_time, v_to_eps, v_to_x0
from lods_jax.core.types import Cond
from lods_jax.priors import flax_networks, lora, multi_view, sdxl
from lods_jax.priors.attention import attention_by, fused, plain
from lods_jax.priors.diffusers_folder import check_variant, read_config, views_of_folder
from lods_jax.priors.networks import init_all, load_all, network
from lods_jax.priors.scheduler_config import read_scheduler
from lods_jax.priors.user_adapters import ScaledFile, check_adapter_file


class Backbone(NamedTuple):
    """U-Net and autoencoder of a folder, with the functions of a `Prior` that do not depend on the kind of condition.

    Attributes:
        unet: the noise predictor.
        vae: the autoencoder.
        size: edge of the images that the autoencoder sees, pixels.
        init: key -> weights.
        encode: (weights, rgb [b h w 3] in [0, 1], key) -> latents.
        decode: (weights, latents) -> rgb.
        predict: (weights, psi, z_t, t, `Cond`) -> eps.
        noise_schedule: that the U-Net was trained on.
        predict_x0: (weights, psi, z_t, t, `Cond`) -> clean latents; None unless the schedule ends without signal.
        views: number of views that are denoised together.
    """

    unet: nn.Module
    vae: nn.Module
    size: int
    init: Callable
    encode: Callable
    decode: Callable
    predict: Callable
    noise_schedule: NoiseSchedule
    predict_x0: Callable | None
    views: int = 1


def backbone(
    folder: str | Path,
    encoders: Mapping[str, nn.Module],
    dtype: DTypeLike = jnp.float32,
    image_size: int | None = None,
    variant: str | None = None,
    attention: str = "plain",
    remat: bool | Collection[str] = False,
    untrained: bool = False,
    views: int | None = None,
    loras: Sequence[ScaledFile] = (),
) -> Backbone:
    """The parts that `stable_diffusion` and `zero123` share.

    Args:
        folder: in diffusers layout.
        encoders: {part: network} of the networks that make the context.
        dtype: as in `stable_diffusion`.
        image_size: as in `stable_diffusion`.
        variant: as in `stable_diffusion`.
        attention: as in `stable_diffusion`.
        remat: as in `stable_diffusion`.
        untrained: as in `stable_diffusion`.
        views: as in `stable_diffusion`.
        loras: as in `stable_diffusion`.

    Returns:
        Networks and functions.

    Raises:
        FileNotFoundError: a file of the folder is missing.
        ValueError: a config is malformed or not supported, the parts do not fit each other, or an argument is out of range.
    """
    check_dtype_and_attention(dtype, attention)
    folder = Path(folder)
    trained_views = views_of_folder(folder)
    views = views_of_network(trained_views, views)
    for file, _ in loras:
        check_adapter_file(file)
    if not untrained:
        check_variant(folder, ["unet", "vae", *encoders], variant)
    noise_schedule, prediction_type = read_scheduler(folder)
    vae_dtype = jnp.float32 if jnp.dtype(dtype) == jnp.float16 else dtype
    unet, vae = network(folder, "unet", flax_networks.unet, dtype), network(folder, "vae", flax_networks.vae, vae_dtype)
    size = image_edge(folder, unet, vae, image_size)
    # What is asked once is asked in float32: it costs nothing there, and rounds nothing away.
    others = {part: (module, jnp.float32) for part, module in encoders.items()}
    networks = {"unet": (unet, dtype), "vae": (vae, vae_dtype), **others}

    def init(key: Key[Array, ""]) -> dict:
        """Reads the weights; nothing is random, and `key` is for `untrained` alone."""
        return init_all(networks, key) if untrained else load_all(folder, networks, variant, loras)

    upcast = bool(read_config(folder / "unet" / "config.json").get("upcast_attention"))
    kernels = fused(upcast) if attention == "fused" else None
    encode, decode = autoencoder(vae, size, kernels)
    interceptors = [flax_networks.remat(remat)] if remat else []
    if kernels:
        interceptors.append(attention_by(kernels))
    elif jnp.dtype(dtype) != jnp.float32:  # in float32 the formula of Flax is the same, and old runs go on bit for bit with it
        interceptors.append(attention_by(partial(plain, upcast=upcast)))
    predict_noise = noise_predictor(unet, vae, noise_schedule, interceptors, views, cameras=trained_views > 1)

    def predict(
        weights: dict, psi: dict, z_t: Float[Array, "b h w c"], t: Int[Array, "b"], cond: Cond
    ) -> Float[Array, "b h w c"]:
        out = predict_noise(weights, psi, z_t, t, cond)
        return out if prediction_type == "epsilon" else v_to_eps(noise_schedule, out, z_t, t)

    def predict_x0(
        weights: dict, psi: dict, z_t: Float[Array, "b h w c"], t: Int[Array, "b"], cond: Cond
    ) -> Float[Array, "b h w c"]:
        return v_to_x0(noise_schedule, predict_noise(weights, psi, z_t, t, cond), z_t, t)

    # Of v-predictions alone: `read_scheduler` refuses others.
    own_x0 = predict_x0 if noise_schedule.ends_in_noise else None
    return Backbone(unet, vae, size, init, encode, decode, predict, noise_schedule, own_x0, views)


def check_dtype_and_attention(dtype: DTypeLike, attention: str) -> None:
    """Checks two arguments of `backbone`.

    Args:
        dtype: of U-Net and autoencoder.
        attention: "plain" or "fused".

    Raises:
        ValueError: one of them is something else.
    """
    if jnp.dtype(dtype) not in (jnp.float32, jnp.bfloat16, jnp.float16):
        raise ValueError(f"dtype must be float32, bfloat16 or float16, got {jnp.dtype(dtype).name}")
    if attention not in ("plain", "fused"):
        raise ValueError(f"attention must be plain or fused, got {attention!r}")


def views_of_network(trained: int, asked: int | None) -> int:
    """The number of views that are denoised together.

    Args:
        trained: that the U-Net was trained on.
        asked: that the user wants; None for as many.

    Returns:
        The number.

    Raises:
        ValueError: a U-Net of single images is asked for several, or the number is not positive.

    Examples:
        >>> views_of_network(4, None), views_of_network(4, 1)
        (4, 1)
    """
    views = trained if asked is None else asked
    if views < 1 or (views > 1 and trained == 1):
        raise ValueError(f"views must be {'at least 1' if views < 1 else '1 for a prior of single images'}, got {views}")
    return views


def image_edge(folder: Path, unet: nn.Module, vae: nn.Module, asked: int | None) -> int:
    """The edge of the images that the autoencoder sees, pixels.

    Args:
        folder: named in the error.
        unet: the noise predictor.
        vae: the autoencoder.
        asked: by the user; None for what the U-Net was trained for.

    Returns:
        Pixels.

    Raises:
        ValueError: the two networks differ in their latents, or the U-Net cannot halve these often enough.
    """
    if unet.out_channels != vae.latent_channels:
        channels = f"{unet.out_channels} and {vae.latent_channels}"
        raise ValueError(f"{folder}: the U-Net's out_channels and the autoencoder's latent_channels differ: {channels}")
    size = unet.sample_size * shrinking(vae) if asked is None else asked
    # The U-Net halves the latents at each level but the last, and joins them with their doubled halves.
    multiple = shrinking(vae) * 2 ** (len(unet.block_out_channels) - 1)
    if size < multiple or size % multiple:
        raise ValueError(f"image_size must be a multiple of {multiple} for this U-Net, got {size}: pass --prior.image-size")
    return size


def shrinking(vae: nn.Module) -> int:
    """Pixels of an image along the edge of one pixel of the latents that `vae` makes: 8 of Stable Diffusion."""
    return 2 ** (len(vae.block_out_channels) - 1)


def autoencoder(vae: nn.Module, size: int, kernels: Callable | None = None) -> tuple[Callable, Callable]:
    """Encoder and decoder of a `Prior`.

    Args:
        vae: the network.
        size: edge of the images that it sees, pixels.
        kernels: attention, from `attention.fused`; None for that of Flax.

    Returns:
        encode: (weights, rgb, key) -> latents; and decode: (weights, latents) -> rgb.
    """

    def encode(weights: dict, rgb: Float[Array, "b h w 3"], key: Key[Array, ""]) -> Float[Array, "b m n c"]:
        image = 2 * resize(rgb, size) - 1
        moments = flax_networks.encode_moments(vae, weights["vae"], image.astype(vae.dtype), kernels)
        mean, logvar = (moment.astype(jnp.float32) for moment in moments)
        z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
        return vae.scaling_factor * z

    def decode(weights: dict, z: Float[Array, "b m n c"]) -> Float[Array, "b h w 3"]:
        image = flax_networks.decode_image(vae, weights["vae"], (z / vae.scaling_factor).astype(vae.dtype), kernels)
        return clip_to_unit(image.astype(jnp.float32) / 2 + 0.5)

    return encode, decode


def noise_predictor(
    unet: nn.Module,
    vae: nn.Module,
    noise_schedule: NoiseSchedule,
    interceptors: Sequence[Callable],
    views: int,
    cameras: bool,
) -> Callable[..., Float[Array, "b h w c"]]:
    """What the U-Net says itself, noise or velocity, of latents under a condition.

    Args:
        unet: the network.
        vae: whose latents it sees.
        noise_schedule: that it was trained on.
        interceptors: changes of its layers that every call has, of `nn.intercept_methods`.
        views: number of views that are denoised together.
        cameras: whether it sees the camera of each view.

    Returns:
        (weights, psi, z_t, t, `Cond`) -> prediction like z_t, float32.
    """
    pictured, pooled = unet.in_channels != vae.latent_channels, sdxl.pooled_width(unet)

    def predict_noise(
        weights: dict, psi: dict, z_t: Float[Array, "b h w c"], t: Int[Array, "b"], cond: Cond
    ) -> Float[Array, "b h w c"]:
        check_condition(cond, psi, pictured)
        hit: set[str] = set()
        own = [lora.side_path(psi["lora"], cond.lora, hit)] if cond.lora is not None else []
        own += [lora.pose_path(psi["pose"], cond.pose, cond.pose_on)] if cond.pose is not None else []
        seen = jnp.concatenate([z_t, cond.image], -1) if pictured else z_t
        tokens, added = cond.tokens.astype(unet.dtype), None
        if cond.camera is not None and cameras:
            added = multi_view.camera_vectors(cond.camera).astype(unet.dtype)
        if pooled:
            tokens, vectors = sdxl.unpack(tokens, pooled)
            added = sdxl.added_conditions(vectors, *(shrinking(vae) * edge for edge in z_t.shape[1:3]))
        told, seen = network_time(noise_schedule, t), seen.astype(unet.dtype)
        out = flax_networks.predict_noise(unet, weights["unet"], seen, told, tokens, [*interceptors, *own], views, added)
        if cond.lora is not None and (missed := sorted(psi["lora"].keys() - hit)):
            raise ValueError(f"the adapter has a layer that this U-Net does not have: {missed[0]}")
        return out.astype(jnp.float32)

    return predict_noise


def check_condition(cond: Cond, psi: Mapping[str, Any], pictured: bool) -> None:
    """Checks that a U-Net can be asked under a condition.

    Args:
        cond: the condition.
        psi: the learnable part of the prior.
        pictured: whether the U-Net takes an image.

    Raises:
        ValueError: an image is missing or too much, or psi lacks what the condition names.
    """
    if (cond.image is not None) != pictured:
        what, do = ("an", "give") if pictured else ("no", "leave out")
        raise ValueError(f"this prior has {what} input for an image: {do} Cond.image")
    for name in ("lora", "pose"):
        if getattr(cond, name) is not None and name not in psi:
            raise ValueError(f"Cond.{name} needs psi[{name!r}], which init_psi makes for a fitted query that uses it")


def resize(rgb: Float[Array, "b h w 3"], size: int, antialias: bool = False) -> Float[Array, "b _ _ 3"]:
    """Square images by bilinear interpolation.

    Args:
        rgb: [b h w 3].
        size: edge of the result, pixels.
        antialias: False as PyTorch does it by default.

    Returns:
        [b size size 3].
    """
    shape = (len(rgb), size, size, 3)
    return rgb if rgb.shape == shape else jax.image.resize(rgb, shape, "bilinear", antialias=antialias)
