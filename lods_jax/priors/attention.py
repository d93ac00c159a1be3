"""How attention is computed: interceptors that take the place of the formulas in the Flax modules of diffusers.

In every one of them the softmax is float32, as in PyTorch: the exponentials of bfloat16 have three digits, and their sum fewer.

`fused` takes for each layer the kernel that its device has for it, while the step is traced:

  flash   on a TPU, the Pallas kernel of JAX, for self-attention over at least FLASH_FROM tokens in whole blocks
  cudnn   on an NVIDIA GPU, for self-attention in half precision over at least CUDNN_FROM tokens, if its heads are narrow enough
  plain   elsewhere: the formula

Notation: b examples, q queries, k keys, h heads of width d.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lods_jax.core.devices import platform

Attention = Callable[..., jax.Array]  # (queries [b q h d], keys [b k h d], values [b k h d], scale=number) -> [b q h d]

FLASH_FROM = 1024  # tokens; a smaller matrix of scores is no burden
CUDNN_FROM = 256  # tokens; at 64 the formula took 0.14 ms forward and back on an H200, and cuDNN 0.19
BLOCKS = 128, 512  # tokens: the smallest and the largest block of the flash kernel


class Layer(NamedTuple):
    """A layer of attention as a kernel sees it.

    Attributes:
        queries: number of tokens that ask.
        keys: number of tokens that are looked at.
        width: of a head.
    """

    queries: int
    keys: int
    width: int


_KERNELS: ContextVar[dict[Layer, str] | None] = ContextVar("kernels", default=None)


@contextmanager
def kernels_noted() -> Iterator[dict[Layer, str]]:
    """Notes the kernels that `fused` takes while layers are traced inside.

    Yields:
        {layer: name of its kernel}, which fills.
    """
    found: dict[Layer, str] = {}
    token = _KERNELS.set(found)
    try:
        yield found
    finally:
        _KERNELS.reset(token)


def fused(upcast: bool = False) -> Attention:
    """Attention by the kernel that the device has for a layer, or by the formula.

    Args:
        upcast: of `plain`; the kernels hold scores in float32.

    Returns:
        The function.
    """
    kernels: dict[str, Attention] = {
        "flash": flash,
        "cudnn": partial(jax.nn.dot_product_attention, implementation="cudnn"),
        "plain": partial(plain, upcast=upcast),
    }

    def attend(q: Float[Array, "b q h d"], k: Float[Array, "b k h d"], v: Float[Array, "b k h d"], scale: float):
        layer, on = Layer(q.shape[1], k.shape[1], q.shape[3]), platform()
        kernel = kernel_for(on, q.dtype, layer, widest_head() if on == "gpu" else 0)
        if (noted := _KERNELS.get()) is not None:
            noted[layer] = kernel
        return kernels[kernel](q, k, v, scale=scale)

    return attend


def kernel_for(on: str, dtype: DTypeLike, layer: Layer, widest: int = 0) -> str:
    """The kernel for a layer of attention.

    Args:
        on: the platform, "tpu", "gpu" or "cpu".
        dtype: of queries, keys and values.
        layer: the layer.
        widest: the widest head that cuDNN takes on the GPU, from `widest_head`.

    Returns:
        "flash", "cudnn" or "plain".

    Examples:
        >>> kernel_for("gpu", jnp.bfloat16, Layer(4096, 4096, 64), widest=128)
        'cudnn'
    """
    tokens, width = layer.queries, layer.width
    if layer.keys != tokens:  # the few tokens of a text; the gradient of cuDNN does not take an odd number of them
        return "plain"
    if on == "tpu":
        return "flash" if tokens >= FLASH_FROM and tokens % BLOCKS[0] == 0 else "plain"
    half = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
    fits = half and width <= widest and width % 8 == 0 and tokens % 8 == 0
    return "cudnn" if on == "gpu" and fits and tokens >= CUDNN_FROM else "plain"


def widest_head() -> int:
    """The widest head that cuDNN's attention takes on the GPU that is here: 256 since Hopper, 128 since Ampere, else 0."""
    capability = str(getattr(jax.devices("gpu")[0], "compute_capability", ""))
    major = capability.split(".")[0]
    if not major.isdecimal():  # of AMD: gfx90a
        return 0
    return 256 if int(major) >= 9 else 128 if int(major) >= 8 else 0


def flash(q: Float[Array, "b n h d"], k: Float[Array, "b n h d"], v: Float[Array, "b n h d"], scale: float):
    """Attention by the flash kernel that JAX ships for TPUs, which never holds the matrix of scores.

    Args:
        q: queries.
        k: keys.
        v: values; n is a multiple of the smallest block.
        scale: of the scores.

    Returns:
        [b n h d], in the dtype of q.
    """
    from jax.experimental.pallas.ops.tpu.flash_attention import BlockSizes, flash_attention

    block = math.gcd(q.shape[1], BLOCKS[1])
    forward = dict.fromkeys(("block_q", "block_k_major", "block_k"), block)
    to_kv = dict.fromkeys(("block_q_major_dkv", "block_k_major_dkv", "block_k_dkv", "block_q_dkv"), block)
    to_q = dict.fromkeys(("block_k_major_dq", "block_k_dq", "block_q_dq"), block)
    heads_first = partial(jnp.swapaxes, axis1=1, axis2=2)
    sizes = BlockSizes(block_b=1, **forward, **to_kv, **to_q)
    return heads_first(flash_attention(*map(heads_first, (q, k, v)), sm_scale=scale, block_sizes=sizes))


def plain(
    q: Float[Array, "b q h d"],
    k: Float[Array, "b k h d"],
    v: Float[Array, "b k h d"],
    scale: float,
    upcast: bool = False,
) -> Float[Array, "b q h d"]:
    """softmax(scale q k^T) v, with the softmax in float32.

    Args:
        q: queries.
        k: keys.
        v: values.
        scale: of the scores.
        upcast: whether the scores are float32 too, as `upcast_attention` of a config asks; otherwise they have the dtype of q,
            which takes half the memory.

    Returns:
        In the dtype of v.
    """
    scores = scale * jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32 if upcast else None)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores.astype(jnp.float32)).astype(v.dtype), v)


def attention_by(attend: Attention) -> Callable:
    """An interceptor that computes the attention of the U-Net and of the autoencoder by another function.

    Args:
        attend: the function.

    Returns:
        For `nn.intercept_methods`.
    """

    def intercept(next_fun, args, kwargs, context):
        own = {"FlaxAttention": of_unet, "FlaxAttentionBlock": of_vae}.get(type(context.module).__name__)
        return (
            own(attend, context.module, *args, **kwargs)
            if own and context.method_name == "__call__"
            else next_fun(*args, **kwargs)
        )

    return intercept


def of_unet(
    attend: Attention, module: nn.Module, hidden: Float[Array, "b q w"], context: Float[Array, "b k c"] | None = None, **_
) -> Float[Array, "b q w"]:
    """The self-attention or cross-attention of a transformer block.

    Args:
        attend: computes it.
        module: `FlaxAttention`.
        hidden: what asks.
        context: what is looked at; None for `hidden`.
        **_: of dropout, which these networks do not have.

    Returns:
        Like `hidden`.
    """
    given = hidden if context is None else context
    heads = lambda x: x.reshape(*x.shape[:2], module.heads, module.dim_head)  # noqa: E731
    out = attend(heads(module.query(hidden)), heads(module.key(given)), heads(module.value(given)), scale=module.scale)
    return module.proj_attn(out.astype(hidden.dtype).reshape(*hidden.shape[:2], -1))


def of_vae(attend: Attention, module: nn.Module, hidden: Float[Array, "b m n c"]) -> Float[Array, "b m n c"]:
    """The self-attention over the pixels of an autoencoder's innermost level, with its norm and its residual.

    Args:
        attend: computes it.
        module: `FlaxAttentionBlock`.
        hidden: activations.

    Returns:
        Like `hidden`.
    """
    b, m, n, c = hidden.shape
    x = module.group_norm(hidden).reshape(b, m * n, c)
    heads = lambda x: x.reshape(b, m * n, module.num_heads, -1)  # noqa: E731
    scale = (c // module.num_heads) ** -0.5
    out = attend(heads(module.query(x)), heads(module.key(x)), heads(module.value(x)), scale=scale)
    return module.proj_attn(out.reshape(b, m * n, c)).reshape(hidden.shape) + hidden
