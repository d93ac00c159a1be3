"""Low-rank adapters (LoRA; Hu et al. 2022) of the U-Net's attention, and the camera network of VSD.

An adapter is a tree of its own beside the frozen weights: {site: {"down": [in r], "up": [r out]}}, a site being PyTorch's name of
a linear layer, "mid_block.attentions.0.transformer_blocks.0.attn1.to_q". It acts as a side path, x W + scale (x down) up, and is
never merged while it learns: the weights are not copied and may be bfloat16, and scale is a number per example, so that one call
serves the frozen network (scale 0) and the adapted one.

A pose adapter (VSD; Wang et al. 2023) adds a small network of the camera to the embedding of the timestep.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Key

from lods_jax.priors.torch_weights import torch_name

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
RANK = 4
POSE = 16  # numbers of a camera-to-world matrix
Lora = dict[str, dict[str, Float[Array, "..."]]]


def sites(shapes: Any, targets: Sequence[str] = TARGETS) -> dict[str, tuple[int, int]]:
    """The linear layers of a U-Net that an adapter of these targets changes.

    Args:
        shapes: the U-Net's parameters, or their ShapeDtypeStructs.
        targets: ends of the layers' names.

    Returns:
        {PyTorch's name: (in, out)}, sorted by name.

    Raises:
        ValueError: no layer has such a name.
    """
    found = {}
    for path, leaf in flatten_dict(shapes).items():
        name = site_name(path)
        if path[-1] == "kernel" and len(leaf.shape) == 2 and any(name.endswith(f".{target}") for target in targets):
            found[name] = leaf.shape
    if not found:
        raise ValueError(f"no linear layer of this U-Net ends in {', '.join(targets)}")
    return dict(sorted(found.items()))


def init(key: Key[Array, ""], shapes: Any, rank: int = RANK, targets: Sequence[str] = TARGETS) -> Lora:
    """A new adapter: down ~ N(0, 1 / rank^2) and up = 0, as in the official LODS and diffusers, so that it changes nothing yet.

    Args:
        key: consumed.
        shapes: the U-Net's parameters, or their ShapeDtypeStructs.
        rank: of the factors, at least 1.
        targets: ends of the layers' names.

    Returns:
        {layer: {"down": [in rank], "up": [rank out]}}.

    Raises:
        ValueError: the rank is below 1, or no layer has such a name.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    found = sites(shapes, targets)
    return {
        name: {"down": jax.random.normal(k, (n_in, rank)) / rank, "up": jnp.zeros((rank, n_out))}
        for k, (name, (n_in, n_out)) in zip(jax.random.split(key, len(found)), found.items(), strict=True)
    }


def side_path(lora: Lora, scale: Float[Array | np.ndarray, "b"], hit: set[str]) -> Callable:
    """An interceptor that adds scale (x down) up to the output of every layer of an adapter, in the dtype of the layer.

    Where the scales are known while tracing, as a NumPy array, and the layer computes in half precision, examples at a scale of 0
    before and behind the others take no part.

    Args:
        lora: the adapter, float32.
        scale: per example [b].
        hit: gets the names of the layers that were met.

    Returns:
        For `nn.intercept_methods`.
    """
    table = {flax_path(name): (name, factors) for name, factors in lora.items()}

    def intercept(next_fun, args, kwargs, context):
        out = next_fun(*args, **kwargs)
        if not isinstance(context.module, nn.Dense) or context.module.path not in table:
            return out
        name, factors = table[context.module.path]
        hit.add(name)
        # In float32 all rows take part: a product of fewer may round otherwise, and old runs go on bit for bit.
        low, high = (0, len(scale)) if out.dtype == jnp.float32 else adapted_rows(scale)
        if low == high:
            return out
        # By example: where views attend to each other, a layer sees the tokens of a group in one row.
        x = args[0].reshape(len(scale), -1, args[0].shape[-1])[low:high].astype(out.dtype)
        down, up = (factors[part].astype(out.dtype) for part in ("down", "up"))
        added = (scale[low:high].reshape(-1, 1, 1) * jnp.matmul(jnp.matmul(x, down), up)).astype(out.dtype)
        return out + jnp.pad(added, ((low, len(scale) - high), (0, 0), (0, 0))).reshape(out.shape)

    return intercept


def adapted_rows(scale: Float[Array | np.ndarray, "b"]) -> tuple[int, int]:
    """The first example at a scale other than 0, and the one behind the last.

    Args:
        scale: per example [b].

    Returns:
        Two indices: of all examples where the scales are not known while tracing, and twice the same where all are 0.

    Examples:
        >>> adapted_rows(np.array([0.0, 0.5, 0.5], np.float32))
        (1, 3)
    """
    if not isinstance(scale, np.ndarray):
        return 0, len(scale)
    adapted = np.flatnonzero(scale)
    return (int(adapted[0]), int(adapted[-1]) + 1) if len(adapted) else (0, 0)


def merge(params: Any, lora: Lora, scale: float = 1.0) -> Any:
    """The U-Net's parameters with the adapter added to its kernels, for programs that know no adapters.

    Args:
        params: of the U-Net.
        lora: the adapter.
        scale: its factor.

    Returns:
        A new tree.

    Raises:
        ValueError: the U-Net lacks a layer of the adapter.
    """
    flat = flatten_dict(params)
    for name, factors in lora.items():
        path = (*flax_path(name), "kernel")
        if path not in flat:
            raise ValueError(f"this U-Net has no layer {name}")
        flat[path] = flat[path] + (scale * jnp.matmul(factors["down"], factors["up"])).astype(flat[path].dtype)
    return unflatten_dict(flat)


# --- cameras ----------------------------------------------------------------------------------------------------------------
def init_pose(key: Key[Array, ""], width: int) -> dict[str, Float[Array, "..."]]:
    """A network of two layers from a camera to the embedding of the timestep. Its last layer is 0, so it changes nothing yet.

    Args:
        key: consumed.
        width: of the timestep's embedding.

    Returns:
        Kernels and biases by name.
    """
    return {
        "kernel_1": jax.random.normal(key, (POSE, width)) / POSE**0.5,
        "bias_1": jnp.zeros(width),
        "kernel_2": jnp.zeros((width, width)),
        "bias_2": jnp.zeros(width),
    }


def pose_path(pose_net: dict[str, Array], pose: Float[Array, "b 16"], on: Float[Array, "b"]) -> Callable:
    """An interceptor that adds the camera's embedding to that of the timestep.

    Args:
        pose_net: from `init_pose`.
        pose: camera-to-world matrices [b 16].
        on: 1 where it is added, else 0 [b].

    Returns:
        For `nn.intercept_methods`.
    """
    hidden = nn.silu(pose @ pose_net["kernel_1"] + pose_net["bias_1"][None])
    added = on[:, None] * (hidden @ pose_net["kernel_2"] + pose_net["bias_2"][None])

    def intercept(next_fun, args, kwargs, context):
        out = next_fun(*args, **kwargs)
        # By its name: other conditions than the timestep are embedded by the same class.
        embeds = context.module.name == "time_embedding" and context.method_name == "__call__"
        return out + added.astype(out.dtype) if embeds else out

    return intercept


# --- names ------------------------------------------------------------------------------------------------------------------
def site_name(path: Sequence[str]) -> str:
    """PyTorch's name of the layer of a kernel, from its Flax path.

    Examples:
        >>> site_name(("attn1", "to_out_0", "kernel"))
        'attn1.to_out.0'
    """
    return torch_name(tuple(path)).removesuffix(".weight")


def flax_path(name: str) -> tuple[str, ...]:
    """The Flax path of a layer, without the kernel, from its PyTorch name: the inverse of `site_name`.

    Examples:
        >>> flax_path("attn1.to_out.0")
        ('attn1', 'to_out_0')
    """
    return tuple(re.sub(r"\.(\d+)(?=\.|$)", r"_\1", name).split("."))
