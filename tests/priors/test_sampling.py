"""Asked in small batches, a prior gives the values and the gradients that it gives when it is asked for all at once."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lods_jax.core.types import Cond
from lods_jax.priors.gaussian import gaussian
from lods_jax.priors.sampling import image_size, in_batches

N = 5
z = jax.random.normal(jax.random.key(0), (N, 2, 2, 4))
cond = Cond(tokens=jax.random.normal(jax.random.key(1), (N, 3, 6)), lora=jnp.linspace(0, 1, N))
t = jnp.arange(N) * 100
seen = []


def predict(weights, psi, z_t, t, cond):
    """Depends on every input, each in its own row."""
    seen.append(len(z_t))
    row = psi["a"] * cond.tokens.mean((1, 2)) + cond.lora * t
    return jnp.tanh(z_t + row[:, None, None, None])


prior = gaussian({"": 0.5}, 0.5)._replace(predict=predict, predict_x0=predict, decode=lambda weights, z: jnp.tanh(z))
loss = lambda prior, psi: jnp.sum(prior.predict({}, psi, z, t, cond) ** 2)  # noqa: E731


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64])
def test_batches_give_what_one_call_gives(size):
    psi, small = {"a": jnp.float32(0.3)}, in_batches(prior, size)
    np.testing.assert_allclose(small.predict({}, psi, z, t, cond), prior.predict({}, psi, z, t, cond), rtol=1e-6)
    np.testing.assert_allclose(small.predict_x0({}, psi, z, t, cond), prior.predict({}, psi, z, t, cond), rtol=1e-6)
    np.testing.assert_allclose(small.decode({}, z), prior.decode({}, z), rtol=1e-6)
    slopes = [jax.grad(lambda psi, p=p: loss(p, psi))(psi)["a"] for p in (small, prior)]
    np.testing.assert_allclose(*slopes, rtol=1e-5)


def test_no_batch_is_larger_than_was_asked_for():
    for asked in ("predict", "predict_x0"):
        seen.clear()
        getattr(in_batches(prior, 2), asked)({}, {"a": 1.0}, z, t, cond)
        assert set(seen) == {2}


def test_the_size_of_a_priors_images_is_known_without_its_weights(tmp_path):
    """Nor does it matter which variants of them a folder has."""
    folder = Path(__file__).parents[1] / "data" / "lods_parity" / "sd"
    bare = shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    assert image_size(bare) == image_size(folder)
