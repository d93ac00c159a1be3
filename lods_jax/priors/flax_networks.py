"""The Flax networks of Stable Diffusion: wraps the modules of diffusers and transformers, with two numerical patches.

diffusers 0.39 and transformers 4.57 are the last to carry them. The parameter names are theirs, so that another network
can take their place without a change elsewhere. Importing them takes seconds, so it happens inside the functions.

Arrays are channels last here, whatever the network expects.
Two patches bring the U-Net to PyTorch's values (they act during tracing, inside `predict_noise`, and change no class):
  GEGLU gates with the exact GELU, not with the tanh approximation     eps error 2e-4 to 4e-4 -> 1e-5
  the transformer's GroupNorm has epsilon 1e-6, not 1e-5               1e-5 -> 4e-6, the noise of float32

Notation: h, w are the height and width of the latents; n tokens of width d.
"""

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from lods_jax.priors.attention import Attention, attention_by, plain
from lods_jax.priors.diffusers_folder import MULTI_VIEW, MVDREAM
from lods_jax.priors.multi_view import CAMERA, joined_views, unet_class
from lods_jax.priors.network_configs import clip_settings, join_settings, unet_settings, vae_settings
from lods_jax.priors.sdxl import TIME_IDS, pooled_width

BLOCKS = {"transformer": "FlaxBasicTransformerBlock", "resnet": "FlaxResnetBlock2D"}  # of a U-Net, by their classes
DEPRECATION = "Flax classes are deprecated and will be removed in Diffusers v0.40.0."


def unet(config: Mapping[str, Any], dtype: DTypeLike = jnp.float32) -> nn.Module:
    """The noise predictor of a diffusers `unet/config.json`, of MVDream's, or of one in diffusers' names that has its layers.

    Args:
        config: the JSON object.
        dtype: of the computation.

    Returns:
        The network, without parameters. Where the config says upcast_attention and dtype is not float32, `predict_noise` needs
            `attention_by`, with scores in float32.

    Raises:
        ValueError: a setting is malformed or not supported.
    """
    _hush_diffusers()
    from diffusers.models.unets.unet_2d_condition_flax import FlaxUNet2DConditionModel

    cls = unet_class() if config.get("_class_name") in (MVDREAM, MULTI_VIEW) else FlaxUNet2DConditionModel
    return cls(**unet_settings(config, _kinds(FlaxUNet2DConditionModel)), dtype=jnp.dtype(dtype))


def vae(config: Mapping[str, Any], dtype: DTypeLike = jnp.float32) -> nn.Module:
    """The autoencoder of a diffusers `vae/config.json`, without parameters.

    Args:
        config: the JSON object.
        dtype: of the computation.

    Returns:
        The network.
    """
    _hush_diffusers()
    from diffusers.models.vae_flax import FlaxAutoencoderKL

    return FlaxAutoencoderKL(**vae_settings(config, _kinds(FlaxAutoencoderKL)), dtype=dtype)


def text_encoder(config: Mapping[str, Any], dtype: DTypeLike = jnp.float32, projection: bool = False) -> nn.Module:
    """The CLIP text encoder of a transformers `text_encoder/config.json`, without parameters.

    Args:
        config: the JSON object.
        dtype: of the computation.
        projection: whether the layer that projects the state of the end token is part of it, as in SDXL's second one.

    Returns:
        The network.
    """
    from transformers.models.clip import modeling_flax_clip as clip
    from transformers.models.clip.configuration_clip import CLIPTextConfig

    # The bare module: FlaxCLIPTextModel would draw random weights, and holds them as state.
    module = clip.FlaxCLIPTextModelWithProjectionModule if projection else clip.FlaxCLIPTextModule
    return module(CLIPTextConfig(**clip_settings(config, "text")), dtype=dtype)


def image_encoder(config: Mapping[str, Any], dtype: DTypeLike = jnp.float32) -> nn.Module:
    """The CLIP image encoder of a transformers `image_encoder/config.json`, with its projection and without parameters.

    Args:
        config: the JSON object.
        dtype: of the computation.

    Returns:
        The network.
    """
    from transformers.models.clip.configuration_clip import CLIPVisionConfig
    from transformers.models.clip.modeling_flax_clip import FlaxCLIPVisionTransformer

    class ImageEncoder(nn.Module):
        config: CLIPVisionConfig

        def setup(self):
            self.vision_model = FlaxCLIPVisionTransformer(self.config, dtype=dtype)
            self.visual_projection = nn.Dense(self.config.projection_dim, use_bias=False, dtype=dtype)

        def __call__(self, pixels):
            return self.visual_projection(self.vision_model(pixels).pooler_output)

    return ImageEncoder(CLIPVisionConfig(**clip_settings(config, "vision")))


def linear(config: Mapping[str, Any]) -> nn.Module:
    """The linear layer that joins image and pose in a Zero-1-to-3 folder.

    Args:
        config: {"in_channel": n, "out_channel": m}.

    Returns:
        The network, without parameters.
    """

    class Linear(nn.Module):
        in_channels: int
        out_channels: int

        def setup(self):
            self.projection = nn.Dense(self.out_channels)

        def __call__(self, x):
            return self.projection(x)

    return Linear(*join_settings(config).values())


def init(module: nn.Module, key: Key[Array, ""]) -> Any:
    """Random float32 parameters: Flax's default distributions, and a deviation of 0.02 for embeddings.

    One draw serves all leaves: compiling the initialisers of each shape takes half a minute for the smallest U-Net.

    Args:
        module: a network that a function of this file made.
        key: consumed.

    Returns:
        A tree of dicts.
    """
    leaves, tree = jax.tree.flatten_with_path(shapes(module))
    ends = np.cumsum([leaf.size for _, leaf in leaves])
    fill = {
        # LeCun et al. (1998): variance 1 / fan_in; 0.8796 is the deviation that the cut at 2 leaves of a unit normal.
        "kernel": lambda draw, shape: draw.reshape(shape) / (0.87962566 * math.prod(shape[:-1]) ** 0.5),
        "embedding": lambda draw, shape: draw.reshape(shape) * (0.02 / 0.87962566),
        "class_embedding": lambda draw, shape: draw.reshape(shape) * (0.02 / 0.87962566),
        "scale": lambda _, shape: jnp.ones(shape),
        "bias": lambda _, shape: jnp.zeros(shape),
    }

    @jax.jit
    def draw_all(key):
        draws = jnp.split(jax.random.truncated_normal(key, -2.0, 2.0, (ends[-1],)), ends[:-1])
        return [fill[path[-1].key](draw, leaf.shape) for draw, (path, leaf) in zip(draws, leaves, strict=True)]

    return jax.tree.unflatten(tree, draw_all(key))


def shapes(module: nn.Module) -> Any:
    """The shapes of a network's parameters; computes nothing.

    Args:
        module: a network that a function of this file made.

    Returns:
        The tree of `init`, with ShapeDtypeStructs as leaves.
    """
    return jax.eval_shape(lambda key: module.init(key, *_example(module))["params"], jax.random.key(0))


def predict_noise(
    module: nn.Module,
    params: Any,
    z_t: Float[Array, "b h w c"],
    t: Int[Array, "b"] | Float[Array, "b"],
    tokens: Float[Array, "b n d"],
    interceptors: Sequence[Callable] = (),
    views: int = 1,
    added: Any = None,
) -> Float[Array, "b h w _"]:
    """The output of the U-Net at z_t and t: eps or v, whichever it was trained for.

    Args:
        module: the U-Net.
        params: its parameters.
        z_t: [b h w c] with all channels of its input.
        t: timesteps [b], of any kind of number.
        tokens: context [b n d].
        interceptors: of `nn.intercept_methods`, such as `lora.side_path`; they act beside the two patches.
        views: number of views that attend to each other; each so many examples in a row are one group.
        added: what else it sees: a U-Net of several views cameras [b 16], from `multi_view.camera_vectors`, or None for nothing;
            SDXL's the entries of `sdxl.added_conditions`.

    Returns:
        [b h w channels].

    Raises:
        ValueError: the examples are no whole groups.
    """
    if len(z_t) % views:
        raise ValueError(f"this prior takes groups of {views} views, got {len(z_t)} examples")
    given = () if added is None else (added,)
    with ExitStack() as stack:
        for interceptor in (_patch, joined_views(views), *interceptors):
            stack.enter_context(nn.intercept_methods(interceptor))
        out = module.apply({"params": params}, jnp.moveaxis(z_t, -1, 1), t, tokens, *given).sample
    return jnp.moveaxis(out, 1, -1)


def encode_moments(
    module: nn.Module, params: Any, rgb: Float[Array, "b H W 3"], attend: Attention | None = None
) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
    """Mean and log variance of the unscaled latents of images.

    Args:
        module: the autoencoder.
        params: its parameters.
        rgb: [b H W 3] in [-1, 1].
        attend: computes its attention; None for the formula, with the softmax in float32.

    Returns:
        Two arrays [b h w c]; the log variance is clipped to [-30, 20].
    """
    moments = _apply_vae(module, params, rgb, lambda m, x: m.quant_conv(m.encoder(x)), attend)
    mean, logvar = jnp.split(moments, 2, axis=-1)
    return mean, jnp.clip(logvar, -30.0, 20.0)


def decode_image(
    module: nn.Module, params: Any, z: Float[Array, "b h w c"], attend: Attention | None = None
) -> Float[Array, "b H W 3"]:
    """The images of unscaled latents.

    Args:
        module: the autoencoder.
        params: its parameters.
        z: latents [b h w c].
        attend: as in `encode_moments`.

    Returns:
        [b H W 3] in about [-1, 1], not clipped.
    """
    # FlaxAutoencoderKL.decode guesses the layout and takes every 4-wide NCHW latent for NHWC; its parts do not guess.
    return _apply_vae(module, params, z, lambda m, x: m.decoder(m.post_quant_conv(x)), attend)


def _apply_vae(module: nn.Module, params: Any, x: Float[Array, "b _ _ _"], method: Callable, attend: Attention | None) -> Any:
    """A method of the autoencoder. In float32 the formula of Flax is `plain`, and old runs go on bit for bit with it."""
    with ExitStack() as stack:
        if attend is not None or jnp.dtype(module.dtype) != jnp.float32:
            stack.enter_context(nn.intercept_methods(attention_by(attend or plain)))
        return module.apply({"params": params}, x, method=method)


def encode_text(module: nn.Module, params: Any, ids: Int[Array, "k n"]) -> Float[Array, "k n d"]:
    """Token embeddings after the final layer norm. Padding is not masked: Stable Diffusion was trained that way.

    Args:
        module: the text encoder.
        params: its parameters.
        ids: token ids [k n].

    Returns:
        [k n d].
    """
    return module.apply({"params": params}, *_text_inputs(ids)).last_hidden_state


def encode_penultimate(
    module: nn.Module, params: Any, ids: Int[Array, "k n"], end: int
) -> tuple[Float[Array, "k n d"], Float[Array, "k p"] | None]:
    """What SDXL sees of a text encoder: the states before its last layer, and of an encoder with a projection a pooled vector.

    Args:
        module: the text encoder.
        params: its parameters.
        ids: token ids [k n].
        end: id of the end token, whose first place in a text is pooled. transformers looks for the largest id where a config says
            2, as SDXL's does, and so misses the end of a text with added tokens.

    Returns:
        States [k n d] without the final norm, and the projected last state of the end token [k p], or None.
    """
    out = module.apply({"params": params}, *_text_inputs(ids), output_hidden_states=True)
    if "text_projection" not in params:
        return out.hidden_states[-2], None
    last = out.last_hidden_state[jnp.arange(len(ids)), jnp.argmax(ids == end, -1)]
    return out.hidden_states[-2], last @ params["text_projection"]["kernel"]


def encode_image(module: nn.Module, params: Any, rgb: Float[Array, "b H W 3"]) -> Float[Array, "b p"]:
    """The projected CLIP embedding of images.

    Args:
        module: the image encoder.
        params: its parameters.
        rgb: [b H W 3] in [0, 1], of the size that the encoder was trained for.

    Returns:
        [b p].
    """
    mean, deviation = jnp.array([0.48145466, 0.4578275, 0.40821073]), jnp.array([0.26862954, 0.26130258, 0.27577711])
    return module.apply({"params": params}, (rgb - mean[None, None, None]) / deviation[None, None, None])


def _kinds(cls: type) -> dict[str, Any]:
    """The kind of each setting that a Flax class of diffusers takes."""
    return {field.name: field.type for field in fields(cls) if field.name not in ("parent", "name", "dtype")}


def _patch(next_fun, args, kwargs, context):
    """An interceptor of `nn.intercept_methods` with the two patches of the module docstring."""
    from diffusers.models.attention_flax import FlaxGEGLU, FlaxTransformer2DModel

    module = context.module
    if isinstance(module, FlaxGEGLU) and context.method_name == "__call__":
        value, gate = jnp.split(module.proj(args[0]), 2, axis=-1)
        return value * nn.gelu(gate, approximate=False)
    if isinstance(module, nn.GroupNorm) and isinstance(module.parent, FlaxTransformer2DModel):
        return module.clone(parent=None, epsilon=1e-6).apply(module.variables, *args)
    return next_fun(*args, **kwargs)


def remat(kinds: bool | Collection[str] = True) -> Callable:
    """An interceptor that computes blocks again in the backward pass, instead of keeping their activations.

    Args:
        kinds: keys of BLOCKS; True for transformer blocks alone.

    Returns:
        For `nn.intercept_methods`.
    """
    inside: set[tuple] = set()
    blocks = [BLOCKS[kind] for kind in (("transformer",) if isinstance(kinds, bool) else kinds)]

    def intercept(next_fun, args, kwargs, context):
        module = context.module
        if type(module).__name__ not in blocks or context.method_name != "__call__" or module.path in inside:
            return next_fun(*args, **kwargs)
        inside.add(module.path)  # the block calls itself below, as its own reference
        try:
            return nn.remat(lambda block, *args: block(*args, **kwargs))(module, *args)
        finally:
            inside.discard(module.path)

    return intercept


def _example(module: nn.Module) -> tuple:
    """The smallest inputs that touch every parameter."""
    kind = type(module).__name__
    if kind in ("FlaxCLIPTextModule", "FlaxCLIPTextModelWithProjectionModule"):
        return _text_inputs(jnp.zeros((1, 1), jnp.int32))
    if kind == "ImageEncoder":
        return (jnp.zeros((1, module.config.image_size, module.config.image_size, 3)),)
    if kind == "Linear":
        return (jnp.zeros((1, module.in_channels)),)
    image = jnp.zeros((1, module.in_channels) + (2 ** len(module.block_out_channels),) * 2)
    if kind == "FlaxAutoencoderKL":
        return (image,)
    asked = image, jnp.zeros((1,), jnp.int32), jnp.zeros((1, 1, module.cross_attention_dim))
    if width := pooled_width(module):
        return *asked, {"text_embeds": jnp.zeros((1, width)), "time_ids": jnp.zeros((1, TIME_IDS))}
    return (*asked, jnp.zeros((1, CAMERA))) if kind == "MultiViewUNet" else asked


def _text_inputs(ids: Int[Array, "k n"]) -> tuple:
    """Token ids, attention mask, position ids."""
    return ids, jnp.ones_like(ids), jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)


def _not_the_deprecation(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(DEPRECATION)


def _hush_diffusers() -> None:
    """Drops one sentence that diffusers logs 330 times per trace; the versions are pinned, and nothing else is lost.

    On the loggers of the modules, since a logger's filters do not see the records of its children, and before the
    import, since two classes speak while they are defined. Adding a filter twice is adding it once.
    """
    for part in ("attention", "embeddings", "resnet", "vae", "modeling", "unets.unet_2d_blocks"):
        logging.getLogger(f"diffusers.models.{part}_flax").addFilter(_not_the_deprecation)
    for part in ("modeling_flax_utils", "unets.unet_2d_condition_flax"):
        logging.getLogger(f"diffusers.models.{part}").addFilter(_not_the_deprecation)
