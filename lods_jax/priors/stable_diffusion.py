"""Stable Diffusion 1.x and 2.x, SDXL and MVDream, from a folder in diffusers layout, as a `Prior`.

weights = {"unet", "vae", "text"}, and "text_2" of SDXL; latents are scaled, so that they have about unit variance.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from lods_jax.core.math import clip_to_unit
from lods_jax.core.noise_schedule import NoiseSchedule, network_time, v_to_eps, v_to_x0
from lods_jax.core.types import Cond, Prior, Query
from lods_jax.priors import flax_networks, lora, multi_view, sdxl, torch_weights
from lods_jax.priors.adapter_files import LowRank, read_lora
from lods_jax.priors.attention import attention_by, fused, plain
from lods_jax.priors.diffusers_folder import ALL_PARTS, MVDREAM, TEXT_PARTS, check_variant, read_config, views_of_folder
from lods_jax.priors.prompt_encoder import prompt_encoder
from lods_jax.priors.scheduler_config import check_scores, read_scheduler
from lods_jax.priors.user_adapters import ScaledFile, check_adapter_file, merge


def stable_diffusion(
    folder: str | Path,
    dtype: DTypeLike = jnp.float32,
    image_size: int | None = None,
    variant: str | None = None,
    strict: bool = True,
    rank: int = lora.RANK,
    targets: Sequence[str] = lora.TARGETS,
    attention: str = "plain",
    remat: bool | Collection[str] = False,
    untrained: bool = False,
    views: int | None = None,
    loras: Sequence[ScaledFile] = (),
    embeddings: Sequence[str | Path] = (),
) -> Prior:
    """The prior of a Stable Diffusion folder. Networks are built here; weights are read by `init`.

    Args:
        folder: in diffusers layout.
        dtype: float32, bfloat16 or float16, of U-Net and VAE and of their weights. With float16 the VAE stays in float32, since
            its activations leave the range of float16. Predictions and latents are float32.
        image_size: edge of the square images that the VAE sees, pixels; None for the size that the U-Net was trained for.
        variant: of the weight files, such as "fp16"; see `diffusers_folder.weight_files`.
        strict: whether texts with words outside the folder's `vocabulary.json` are refused. Such words have tokens, but untrained
            ones.
        rank: of the adapter that a trained query learns.
        targets: ends of the names of the layers that the adapter changes.
        attention: "plain" as in diffusers, or "fused" by the kernel that the device has for each layer (`attention.fused`).
        remat: whether the transformer blocks are computed again in the backward pass, which takes time and saves memory; or the
            kinds of blocks that are, of `flax_networks.BLOCKS`.
        untrained: whether weights are random instead of read, for sizes and costs; the folder may then lack them.
        views: number of views that are denoised together; None for as many as the U-Net was trained on, 4 for MVDream's.
        loras: (file, scale) of adapters that are merged into U-Net and text encoder, see `adapter_files.read_lora`.
        embeddings: files of textual inversions; their tokens are words of texts, see `user_adapters.read_token_embedding`.

    Returns:
        The prior. Its weights are {"unet", "vae", "text"}, and "text_2" of SDXL.

    Raises:
        FileNotFoundError: a file of the folder is missing.
        ValueError: a config is malformed or not supported, the parts do not fit each other, or an argument is out of range.

    Examples:
        >>> from lods_jax.core.paths import TABLETOP
        >>> prior = stable_diffusion(TABLETOP)
    """
    folder = Path(folder)
    make = lambda part: network(folder, part, flax_networks.text_encoder, jnp.float32, part == "text_2")  # noqa: E731
    texts = {part: make(part) for part in sdxl.text_parts(folder)}
    check_scores(folder)
    base = backbone(folder, texts, dtype, image_size, variant, attention, remat, untrained, views, loras)
    if base.unet.in_channels != base.vae.latent_channels:
        raise ValueError(f"{folder}: {describe_input(base.unet.in_channels, base.vae.latent_channels)}")
    sdxl.check_texts(folder, base.unet, [one.config for one in texts.values()])
    prompts, pooled = prompt_encoder(folder, texts, strict, embeddings), sdxl.pooled_width(base.unet)

    def init(key: Key[Array, ""]) -> dict:
        weights = base.init(key)
        return weights if untrained else prompts.extend(weights)

    def init_psi(weights: dict, key: Key[Array, ""], tokens: Float[Array, "n w"], queries: Iterable[Query]) -> dict[str, Any]:
        """What the fitted `queries` can learn: "embedding" starts as `tokens`, "lora" and "pose" change nothing at the start."""
        queries, psi = list(queries), {}
        k_lora, k_pose = jax.random.split(key)
        if any(query.text == "learned" for query in queries):
            # Rows of zeros, as SDXL's empty text has, would get equal gradients and stay one token for ever.
            apart = 0.01 * jax.random.normal(jax.random.fold_in(key, 1), tokens.shape)
            psi["embedding"] = jnp.where(jnp.any(tokens), tokens, apart) if pooled else tokens
        if any(query.lora for query in queries):
            psi["lora"] = lora.init(k_lora, weights["unet"], rank, targets)
        if any(query.pose for query in queries):
            psi["pose"] = lora.init_pose(k_pose, 4 * base.unet.block_out_channels[0])
        return psi

    own = {name: getattr(base, name) for name in ("noise_schedule", "predict_x0", "views")}
    own |= {"truncate": prompts.truncate, "pooled": pooled}
    return Prior(init, prompts.embed, init_psi, base.encode, base.decode, base.predict, **own)


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
    if jnp.dtype(dtype) not in (jnp.float32, jnp.bfloat16, jnp.float16):
        raise ValueError(f"dtype must be float32, bfloat16 or float16, got {jnp.dtype(dtype).name}")
    if attention not in ("plain", "fused"):
        raise ValueError(f"attention must be plain or fused, got {attention!r}")
    views_trained = views_of_folder(folder := Path(folder))
    views = views_trained if views is None else views
    if views < 1 or (views > 1 and views_trained == 1):
        raise ValueError(f"views must be {'at least 1' if views < 1 else '1 for a prior of single images'}, got {views}")
    vae_dtype = jnp.float32 if jnp.dtype(dtype) == jnp.float16 else dtype
    for file, _ in loras:
        check_adapter_file(file)
    if not untrained:
        check_variant(folder, ["unet", "vae", *encoders], variant)
    noise_schedule, prediction_type = read_scheduler(folder)
    unet, vae = network(folder, "unet", flax_networks.unet, dtype), network(folder, "vae", flax_networks.vae, vae_dtype)
    if unet.out_channels != vae.latent_channels:
        channels = f"{unet.out_channels} and {vae.latent_channels}"
        raise ValueError(f"{folder}: the U-Net's out_channels and the autoencoder's latent_channels differ: {channels}")
    pictured, pooled = unet.in_channels != vae.latent_channels, sdxl.pooled_width(unet)
    factor = 2 ** (len(vae.block_out_channels) - 1)
    half = jnp.dtype(dtype) != jnp.float32
    upcast = bool(read_config(folder / "unet" / "config.json").get("upcast_attention"))
    by_kernel = fused(upcast) if attention == "fused" else None
    size = unet.sample_size * factor if image_size is None else image_size
    # The U-Net halves the latents at each level but the last, and joins them with their doubled halves.
    multiple = factor * 2 ** (len(unet.block_out_channels) - 1)
    if size < multiple or size % multiple:
        raise ValueError(f"image_size must be a multiple of {multiple} for this U-Net, got {size}: pass --prior.image-size")

    def init(key: Key[Array, ""]) -> dict:
        """Reads the weights; nothing is random, and `key` is for `untrained` alone."""
        # What is asked once is asked in float32: it costs nothing there, and rounds nothing away.
        others = {part: (module, jnp.float32) for part, module in encoders.items()}
        networks = {"unet": (unet, dtype), "vae": (vae, vae_dtype), **others}
        if untrained:
            cast = lambda tree, to: jax.tree.map(lambda x: x.astype(to), tree)  # noqa: E731
            return {part: cast(flax_networks.init(module, key), to) for part, (module, to) in networks.items()}
        # Every network is built before any file is read, which takes longer.
        shapes = {part: shapes_of(folder, part, module) for part, (module, _) in networks.items()}
        adapted = {part: own for part, own in shapes.items() if part in ("unet", *TEXT_PARTS)}
        found = [(read_lora(file, adapted), scale) for file, scale in loras]
        merged = lambda part: [(adapter.get(part, {}), scale) for adapter, scale in found]  # noqa: E731
        return {part: load(folder, part, shapes[part], to, variant, merged(part)) for part, (_, to) in networks.items()}

    def encode(weights: dict, rgb: Float[Array, "b h w 3"], key: Key[Array, ""]) -> Float[Array, "b m n c"]:
        image = 2 * resize(rgb, size) - 1
        moments = flax_networks.encode_moments(vae, weights["vae"], image.astype(vae_dtype), by_kernel)
        mean, logvar = (moment.astype(jnp.float32) for moment in moments)
        z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
        return vae.scaling_factor * z

    def decode(weights: dict, z: Float[Array, "b m n c"]) -> Float[Array, "b h w 3"]:
        image = flax_networks.decode_image(vae, weights["vae"], (z / vae.scaling_factor).astype(vae_dtype), by_kernel)
        return clip_to_unit(image.astype(jnp.float32) / 2 + 0.5)

    def predict_raw(
        weights: dict, psi: dict, z_t: Float[Array, "b h w c"], t: Int[Array, "b"], cond: Cond
    ) -> Float[Array, "b h w c"]:
        """What the network was trained to say: eps or v."""
        if (cond.image is not None) != pictured:
            what, do = ("an", "give") if pictured else ("no", "leave out")
            raise ValueError(f"this prior has {what} input for an image: {do} Cond.image")
        for name in ("lora", "pose"):
            if getattr(cond, name) is not None and name not in psi:
                raise ValueError(f"Cond.{name} needs psi[{name!r}], which init_psi makes for a fitted query that uses it")
        hit: set[str] = set()
        paths = [flax_networks.remat(remat)] if remat else []
        paths += [attention_by(by_kernel)] if by_kernel else []
        # In float32 the formula of Flax is the same, and old runs go on bit for bit with it.
        paths += [attention_by(partial(plain, upcast=upcast))] if attention == "plain" and half else []
        paths += [lora.side_path(psi["lora"], cond.lora, hit)] if cond.lora is not None else []
        paths += [lora.pose_path(psi["pose"], cond.pose, cond.pose_on)] if cond.pose is not None else []
        seen = jnp.concatenate([z_t, cond.image], -1) if pictured else z_t
        told = network_time(noise_schedule, t)
        tokens, added = cond.tokens.astype(dtype), None
        if cond.camera is not None and views_trained > 1:
            added = multi_view.camera_vectors(cond.camera).astype(dtype)
        if pooled:
            tokens, vectors = sdxl.unpack(tokens, pooled)
            added = sdxl.added_conditions(vectors, factor * z_t.shape[1], factor * z_t.shape[2])
        out = flax_networks.predict_noise(unet, weights["unet"], seen.astype(dtype), told, tokens, paths, views, added)
        if cond.lora is not None and (missed := sorted(psi["lora"].keys() - hit)):
            raise ValueError(f"the adapter has a layer that this U-Net does not have: {missed[0]}")
        return out.astype(jnp.float32)

    def predict(
        weights: dict, psi: dict, z_t: Float[Array, "b h w c"], t: Int[Array, "b"], cond: Cond
    ) -> Float[Array, "b h w c"]:
        out = predict_raw(weights, psi, z_t, t, cond)
        return out if prediction_type == "epsilon" else v_to_eps(noise_schedule, out, z_t, t)

    def predict_x0(
        weights: dict, psi: dict, z_t: Float[Array, "b h w c"], t: Int[Array, "b"], cond: Cond
    ) -> Float[Array, "b h w c"]:
        return v_to_x0(noise_schedule, predict_raw(weights, psi, z_t, t, cond), z_t, t)

    # Of v-predictions alone: `read_scheduler` refuses others.
    own_x0 = predict_x0 if noise_schedule.ends_in_noise else None
    return Backbone(unet, vae, size, init, encode, decode, predict, noise_schedule, own_x0, views)


def network(folder: Path, part: str, make: Callable[..., nn.Module], *args) -> nn.Module:
    """Builds the network of one part by its config.

    Args:
        folder: in diffusers layout.
        part: a key of `ALL_PARTS`.
        make: (config, *args) -> network.
        *args: passed on.

    Returns:
        The network.

    Raises:
        FileNotFoundError: the config is missing.
        ValueError: a setting is malformed; the message names the file.
    """
    file = folder / ALL_PARTS[part][0] / "config.json"
    config = read_config(file)
    try:
        return make(config, *args)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def shapes_of(folder: Path, part: str, module: nn.Module) -> Any:
    """The shapes of the parameters of one part.

    Args:
        folder: in diffusers layout.
        part: named in the error.
        module: its network.

    Returns:
        A tree of ShapeDtypeStructs.

    Raises:
        ValueError: settings contradict each other; the message names the file.
    """
    try:
        return flax_networks.shapes(module)
    except Exception as error:  # Flax has no check of its own: IndexError, ZeroDivisionError, ScopeParamShapeError, ...
        file = folder / ALL_PARTS[part][0] / "config.json"
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ValueError(f"{file} describes no network that can be built: {reason}") from error


def load(
    folder: Path,
    part: str,
    shapes: Any,
    dtype: DTypeLike,
    variant: str | None = None,
    adapters: Sequence[tuple[Mapping[str, LowRank], float]] = (),
) -> Any:
    """Reads the parameters of one part.

    Args:
        folder: in diffusers layout.
        part: a key of `ALL_PARTS`.
        shapes: from `shapes_of`.
        dtype: of the parameters.
        variant: of the weight files.
        adapters: ({layer: its factors}, scale) pairs that are added to the weights, before these are rounded to dtype.

    Returns:
        A tree of arrays.

    Raises:
        ValueError: an array is missing, left over, of another shape, or too large for dtype.
    """
    state, where = torch_weights.read_state(folder, part, variant), folder / ALL_PARTS[part][0]
    if part == "unet" and (config := read_config(where / "config.json")).get("_class_name") == MVDREAM:
        state = multi_view.diffusers_state(state, config["num_res_blocks"])
    try:
        params = torch_weights.to_flax(state, shapes)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    for adapter, scale in adapters:
        params = merge(params, adapter, scale)
    most = float(jnp.finfo(dtype).max)
    for path, array in flatten_dict(params).items():
        if (found := float(np.abs(array).max(initial=0))) > most:
            name, to = torch_weights.torch_name(path), jnp.dtype(dtype).name
            raise ValueError(f"{where}: {name} has values up to {found:.3g}, too large for {to}")
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), params)


def describe_input(channels: int, latents: int) -> str:
    """An error message: why a U-Net is no text-to-image prior, judged by its input channels.

    Args:
        channels: of its input.
        latents: number of latent channels.

    Returns:
        The text.
    """
    kinds = {2 * latents + 1: "inpainting", 2 * latents: "edits by instruction or views of a picture", latents + 1: "depth maps"}
    made_for = f", as one for {kinds[channels]} has," if channels in kinds else ""
    return f"the U-Net has {channels} input channels{made_for} and latents have {latents}: expected one that takes a text alone"


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
