"""Laws of attention: one formula, whichever way it is computed, with a softmax in float32. On single layers: they trace fast."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lods_jax.priors import flax_networks
from lods_jax.priors.attention import attention_by, fused, plain

WIDTH, HEADS = 32, 4


def layer(kind, dtype):
    """An attention layer of the U-Net or of the autoencoder, its parameters and an input."""
    flax_networks._hush_diffusers()
    from diffusers.models.attention_flax import FlaxAttention
    from diffusers.models.vae_flax import FlaxAttentionBlock

    make = {
        "unet": lambda: FlaxAttention(WIDTH, HEADS, WIDTH // HEADS, dtype=dtype),
        "vae": lambda: FlaxAttentionBlock(WIDTH, num_groups=8, dtype=dtype),
    }
    module, shape = make[kind](), {"unet": (2, 9, WIDTH), "vae": (2, 3, 3, WIDTH)}[kind]
    x = jax.random.normal(jax.random.key(0), shape)
    params = jax.tree.map(lambda x: 2 * x, module.init(jax.random.key(1), x))  # scores that are not all alike
    cast = lambda tree: jax.tree.map(lambda x: x.astype(dtype), tree)  # noqa: E731
    return module, cast(params), x.astype(dtype)


def says(kind, dtype, attend=None):
    module, params, x = layer(kind, dtype)
    if attend is None:
        return module.apply(params, x)
    with nn.intercept_methods(attention_by(attend)):
        return module.apply(params, x)


@pytest.mark.parametrize("kind", ["unet", "vae"])
@pytest.mark.parametrize(
    "attend", [plain, fused("xla"), lambda *qkv, scale: plain(*qkv, scale, upcast=True)], ids=["plain", "fused", "up"]
)
def test_every_way_is_the_formula_of_diffusers(kind, attend):
    """In float32 to its rounding; in bfloat16 no farther from it, on average, than the formula of diffusers is there."""
    exact = says(kind, jnp.float32)
    np.testing.assert_allclose(says(kind, jnp.float32, attend), exact, atol=3e-5)  # of values up to 9
    half, own = says(kind, jnp.bfloat16, attend), says(kind, jnp.bfloat16)
    assert half.dtype == jnp.bfloat16
    error = lambda out: float(jnp.abs(out.astype(jnp.float32) - exact).mean())  # noqa: E731
    assert error(half) < 1.1 * error(own)


def exponentials(jaxpr):
    """The dtypes in which a computation takes exponentials, its inner functions too."""
    inner = [x for eqn in jaxpr.eqns for x in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr"))]
    found = {eqn.outvars[0].aval.dtype for eqn in jaxpr.eqns if eqn.primitive.name == "exp"}
    return found.union(*(exponentials(x.jaxpr) for x in inner if hasattr(x, "jaxpr")))


@pytest.mark.parametrize("kind", ["unet", "vae"])
@pytest.mark.parametrize("attend", [plain, fused("xla")], ids=["plain", "fused"])
def test_the_softmax_of_half_precision_is_float32(kind, attend):
    module, params, x = layer(kind, jnp.bfloat16)
    assert exponentials(jax.make_jaxpr(module.apply)(params, x).jaxpr) == {jnp.dtype(jnp.bfloat16)}  # that of diffusers
    with nn.intercept_methods(attention_by(attend)):
        assert exponentials(jax.make_jaxpr(module.apply)(params, x).jaxpr) == {jnp.dtype(jnp.float32)}


def test_upcast_scores_hold_what_float16_does_not():
    q = jnp.full((1, 1, 1, 4), 200.0, jnp.float16)
    k, v = jnp.stack([q[0], q[0] / 2], 1), jnp.eye(2, 4, dtype=jnp.float16)[None, :, None]
    np.testing.assert_array_equal(plain(q, k, v, 1.0, upcast=True), v[:, :1])
    assert not jnp.isfinite(plain(q, k, v, 1.0)).all()
