"""MVDream (Shi et al. 2024): a U-Net of Stable Diffusion that denoises several views of one object together.

Two things tell it from its single-view original: the self-attention of a view sees the tokens of all views of its group, and the
camera of a view is added to the embedding of the timestep, through two linear layers. Its files have the names of the original
latent-diffusion code; here it is a diffusers U-Net under diffusers' names, so that adapters and everything else fit both.
"""

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lods_jax.core.math import normalize

CAMERA = 16  # numbers of a camera-to-world matrix
KINDS = {
    "image_size": int, "in_channels": int, "out_channels": int, "model_channels": int, "num_res_blocks": int,
    "attention_resolutions": tuple[int, ...], "channel_mult": tuple[int, ...], "num_head_channels": int,
    "transformer_depth": int, "context_dim": int,
}  # fmt: skip
# What the network computes whatever the config says. An ip_dim is ImageDream's, which sees a picture.
FIXED = {
    "camera_dim": CAMERA, "conv_resample": True, "dims": 2, "dropout": 0, "ip_dim": 0, "num_heads": -1,
    "num_heads_upsample": -1, "resblock_updown": False, "use_linear_in_transformer": True, "use_scale_shift_norm": False,
    "use_spatial_transformer": True,
}  # fmt: skip
IDLE = {"ip_weight", "use_checkpoint", "use_fp16", "legacy"}

# Layers of a residual block: latent-diffusion's name -> diffusers'.
RESNET = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
    "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
}  # fmt: skip
OTHERS = {
    "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
    "camera_embed.0": "camera_embedding.linear_1", "camera_embed.2": "camera_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1", "label_emb.0.2": "add_embedding.linear_2",  # SDXL's
    "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out", "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0", "middle_block.2": "mid_block.resnets.1",
}  # fmt: skip


# --- files ------------------------------------------------------------------------------------------------------------------
def diffusers_config(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of MVDream's U-Net as those of a diffusers U-Net.

    Args:
        settings: by the names of `KINDS`, checked.

    Returns:
        Settings of `unet/config.json`.

    Raises:
        ValueError: a setting is missing, or the heads of attention do not divide its channels.
    """
    if missing := [key for key in KINDS if key not in settings]:
        raise ValueError(f"{missing[0]} is missing")
    channels, per_head = [m * settings["model_channels"] for m in settings["channel_mult"]], settings["num_head_channels"]
    if per_head < 1 or any(c % per_head for c in channels):
        raise ValueError(f"num_head_channels must divide the channels {channels} of all levels, got {per_head}")
    attends = [2**level in settings["attention_resolutions"] for level in range(len(channels))]
    kinds = lambda way, levels: [f"{'CrossAttn' * on}{way}Block2D" for on in levels]  # noqa: E731
    return {
        "sample_size": settings["image_size"],
        "in_channels": settings["in_channels"],
        "out_channels": settings["out_channels"],
        "block_out_channels": channels,
        "layers_per_block": settings["num_res_blocks"],
        "down_block_types": kinds("Down", attends),
        "up_block_types": kinds("Up", attends[::-1]),
        "attention_head_dim": [c // per_head for c in channels],  # which diffusers takes for the number of heads
        "transformer_layers_per_block": settings["transformer_depth"],
        "cross_attention_dim": settings["context_dim"],
        "use_linear_projection": True,
    }


def diffusers_state(state: Mapping[str, np.ndarray], layers_per_block: int) -> dict[str, np.ndarray]:
    """The arrays of MVDream's U-Net under diffusers' names.

    Args:
        state: {name in the file: array}.
        layers_per_block: of the U-Net.

    Returns:
        {diffusers' name: array}; a name that no such U-Net has stays as it is.
    """
    return {diffusers_name(name, layers_per_block): array for name, array in state.items()}


def diffusers_name(name: str, layers_per_block: int) -> str:
    """Diffusers' name of a parameter or layer of MVDream's U-Net.

    Args:
        name: as the original code has it.
        layers_per_block: of the U-Net.

    Returns:
        The name.

    Examples:
        >>> diffusers_name("input_blocks.4.1.proj_in.weight", 2)
        'down_blocks.1.attentions.0.proj_in.weight'
    """
    if found := re.match(rf"({'|'.join(map(re.escape, OTHERS))})(?=\.)", name):
        name = OTHERS[found[1]] + name[found.end() :]
    elif found := re.match(r"(input|output)_blocks\.(\d+)\.(\d+)\.", name):
        down, rest = found[1] == "input", name[found.end() :]
        # A level has its residual blocks, each perhaps with attention; after them comes the change of size, which going down is a
        # block of its own, and going up follows in the last block, where there is one residual block more.
        level, i = divmod(int(found[2]) - down, layers_per_block + 1)
        if rest.startswith(("op.", "conv.")):
            part = f"{'down' if down else 'up'}samplers.0.conv.{rest.partition('.')[2]}"
        else:
            part = f"{'attentions' if int(found[3]) else 'resnets'}.{i}.{rest}"
        name = f"{'down' if down else 'up'}_blocks.{level}.{part}"
    return re.sub(rf"(?<=\.)({'|'.join(map(re.escape, RESNET))})(?=\.)", lambda match: RESNET[match[1]], name)


# --- the network ------------------------------------------------------------------------------------------------------------
@cache
def unet_class() -> type[nn.Module]:
    """The Flax U-Net of diffusers, with the two linear layers of the camera."""
    from diffusers.configuration_utils import flax_register_to_config
    from diffusers.models.embeddings_flax import FlaxTimestepEmbedding
    from diffusers.models.unets.unet_2d_condition_flax import FlaxUNet2DConditionModel

    @flax_register_to_config  # the base class reads its settings back from there
    class MultiViewUNet(FlaxUNet2DConditionModel):
        def setup(self):
            super().setup()
            # Linear, SiLU, Linear: what embeds the timestep serves the camera too.
            self.camera_embedding = FlaxTimestepEmbedding(4 * self.block_out_channels[0], dtype=self.dtype)

        def __call__(self, sample, timesteps, tokens, camera=None):
            if camera is None:
                return super().__call__(sample, timesteps, tokens)
            added = self.camera_embedding(camera)

            def add(next_fun, args, kwargs, context):
                out = next_fun(*args, **kwargs)
                embeds = isinstance(context.module, FlaxTimestepEmbedding) and context.method_name == "__call__"
                return out + added if embeds else out

            with nn.intercept_methods(add):
                return super().__call__(sample, timesteps, tokens)

    return MultiViewUNet


def joined_views(views: int) -> Callable:
    """An interceptor that lets the self-attention of each view see the tokens of all views of its group.

    Args:
        views: number of views in a group, which divides the number of examples. Groups of one change nothing.

    Returns:
        For `nn.intercept_methods`, outside of those that compute attention otherwise.
    """

    def intercept(next_fun, args, kwargs, context):
        module = context.module
        if type(module).__name__ != "FlaxAttention" or module.name != "attn1" or context.method_name != "__call__":
            return next_fun(*args, **kwargs)
        hidden, *rest = args
        out = next_fun(hidden.reshape(-1, views * hidden.shape[1], hidden.shape[2]), *rest, **kwargs)
        return out.reshape(hidden.shape)

    return intercept


def camera_vectors(c2w: Float[Array, "b 16"]) -> Float[Array, "b 16"]:
    """Cameras as MVDream sees them: axes of OpenGL (x right, y up, z backward), and the position at unit distance.

    The world is the same: +z up, and its cameras at an azimuth of 90 degrees look at the front, which is +x here too.

    Args:
        c2w: camera-to-world matrices, row-major; x right, y down, z forward.

    Returns:
        Matrices of the same layout.
    """
    matrix = c2w.reshape(-1, 4, 4)
    rotation, position = matrix[:, :3, :3] * jnp.array([1.0, -1.0, -1.0])[None, None], normalize(matrix[:, :3, 3])
    top = jnp.concatenate([rotation, position[..., None]], -1)
    return jnp.concatenate([top, matrix[:, 3:]], 1).reshape(c2w.shape)
