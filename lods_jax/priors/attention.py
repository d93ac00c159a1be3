"""How attention is computed: interceptors that take the place of the formulas in the Flax modules of diffusers.

In every one of them the softmax is float32, as in PyTorch: the exponentials of bfloat16 have three digits, and their sum fewer.

Notation: b examples, q queries, k keys, h heads of width d.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Attention = Callable[..., jax.Array]  # (queries [b q h d], keys [b k h d], values [b k h d], scale=number) -> [b q h d]


def fused(implementation: str | None) -> Attention:
    """Attention by `jax.nn.dot_product_attention`, whose scores are float32.

    Args:
        implementation: "cudnn" is the fused kernel of NVIDIA GPUs, for bfloat16 and float16; "xla" or None runs anywhere.

    Returns:
        The function.
    """
    return partial(jax.nn.dot_product_attention, implementation=implementation)


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
