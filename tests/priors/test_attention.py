"""Laws of attention: one formula, whichever way it is computed, with a softmax in float32. On single layers: they trace fast."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from lods_jax.core.devices import traced_for
from lods_jax.priors import attention, flax_networks
from lods_jax.priors.attention import Layer, attention_by, flash, fused, kernel_for, kernels_noted, plain

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
    "attend", [plain, fused(), lambda *qkv, scale: plain(*qkv, scale, upcast=True)], ids=["plain", "fused", "up"]
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
@pytest.mark.parametrize("attend", [plain, fused()], ids=["plain", "fused"])
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


LONG, CROSS, SMALL, AUTOENCODER = Layer(4096, 4096, 64), Layer(4096, 77, 64), Layer(64, 64, 64), Layer(4096, 4096, 512)


@pytest.mark.parametrize(
    ("platform", "dtype", "layer", "widest", "kernel"),
    [
        ("tpu", "bfloat16", LONG, 0, "flash"),
        ("tpu", "float32", AUTOENCODER, 0, "flash"),
        ("tpu", "bfloat16", CROSS, 0, "plain"),
        ("tpu", "bfloat16", SMALL, 0, "plain"),
        ("tpu", "bfloat16", Layer(1100, 1100, 64), 0, "plain"),  # no whole blocks
        ("gpu", "bfloat16", LONG, 128, "cudnn"),
        ("gpu", "float16", LONG, 128, "cudnn"),
        ("gpu", "bfloat16", CROSS, 128, "plain"),
        ("gpu", "bfloat16", SMALL, 128, "plain"),
        ("gpu", "bfloat16", Layer(25 * 25, 25 * 25, 64), 128, "plain"),  # nor odd numbers of tokens
        ("gpu", "float32", LONG, 128, "plain"),
        ("gpu", "bfloat16", AUTOENCODER, 256, "plain"),
        ("gpu", "bfloat16", Layer(256, 256, 160), 128, "plain"),  # Stable Diffusion 1.5 before Hopper
        ("gpu", "bfloat16", Layer(256, 256, 160), 256, "cudnn"),
        ("gpu", "bfloat16", Layer(256, 256, 20), 256, "plain"),  # cuDNN takes multiples of 8
        ("gpu", "bfloat16", LONG, 0, "plain"),  # another maker's, or too old
        ("cpu", "bfloat16", LONG, 0, "plain"),
    ],
)
def test_each_layer_gets_the_kernel_that_its_device_has(platform, dtype, layer, widest, kernel):
    assert kernel_for(platform, dtype, layer, widest) == kernel


@pytest.mark.parametrize(("capability", "widest"), [("9.0", 256), ("12.0", 256), ("8.6", 128), ("7.5", 0), ("gfx942", 0)])
def test_how_wide_a_head_may_be_is_read_off_the_gpu(monkeypatch, capability, widest):
    gpu = type("Gpu", (), {"compute_capability": capability})()
    monkeypatch.setattr(jax, "devices", lambda platform: [gpu])
    assert attention.widest_head() == widest


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_the_flash_kernel_has_the_values_and_gradients_of_the_formula(monkeypatch, dtype):
    """Three blocks, so that its softmax is put together from parts; in bfloat16 within its rounding of the formula in float32."""
    monkeypatch.setattr(attention, "BLOCKS", (128, 128))
    q, k, v, g = (2 * jax.random.normal(key, (1, 384, 2, 16)).astype(dtype) for key in jax.random.split(jax.random.key(0), 4))

    def both(attend, *arrays):
        out, pull = jax.vjp(lambda q, k, v: attend(q, k, v, scale=0.25), *arrays[:3])
        return out, *pull(arrays[3])

    with pltpu.force_tpu_interpret_mode():
        found = jax.jit(lambda *arrays: both(flash, *arrays))(q, k, v, g)
    exact = both(plain, *(x.astype(jnp.float32) for x in (q, k, v, g)))
    for x, y in zip(found, exact, strict=True):
        assert x.dtype == dtype
        error = jnp.linalg.norm(x.astype(jnp.float32) - y) / jnp.linalg.norm(y)
        assert error < {jnp.float32: 2e-6, jnp.bfloat16: 8e-3}[dtype]


def test_the_kernel_is_chosen_for_the_device_that_is_traced_for(monkeypatch):
    """Also for one that is not there; what is chosen can be told."""
    q = jnp.ones((1, 1024, 1, 8), jnp.bfloat16)
    monkeypatch.setattr(attention, "widest_head", lambda: 0)
    for platform, kernel in (("tpu", "flash"), ("gpu", "plain")):
        with traced_for(platform), kernels_noted() as kernels:
            jaxpr = str(jax.make_jaxpr(lambda q: fused()(q, q, q, scale=1.0))(q))
        assert kernels == {Layer(1024, 1024, 8): kernel}
        assert ("pallas_call" in jaxpr) == (kernel == "flash")
    assert "pallas_call" not in str(jax.make_jaxpr(lambda q: fused()(q, q, q, scale=1.0))(q))  # for the CPU that is here
