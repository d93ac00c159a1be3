"""A prior with a closed-form score: images of a text y are drawn from N(mu_y, sigma^2), each value on its own.

On it the fixed points of the objectives are known: SDS lands on mu_null + s (mu_y - mu_null), LODS on mu_y for every s.
"""

from collections.abc import Iterable, Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from lods_jax.core.math import clip_to_unit
from lods_jax.core.noise_schedule import STABLE_DIFFUSION, NoiseSchedule, divisor, per_example, signal_and_noise
from lods_jax.core.types import Cond, Prior, Query


def init_psi(
    weights: dict, key: Key[Array, ""], tokens: Float[Array, "n w"], queries: Iterable[Query]
) -> dict[str, Float[Array, "n w"]]:
    """The learnable part for the trained queries: an embedding that starts as `tokens`, an adapter that starts as no shift.

    A closed form has no layers to adapt. Its adapter is a learned shift of the tokens. Like LoRA it starts at zero and is scaled
    per example.

    Args:
        weights: unused.
        key: unused.
        tokens: [n w].
        queries: the trained ones.

    Returns:
        {"embedding": [n w], "lora": [n w]}, with the entries that the queries use.
    """
    queries = list(queries)
    psi = {}
    if any(query.text == "learned" for query in queries):
        psi["embedding"] = tokens
    if any(query.lora for query in queries):
        psi["lora"] = jnp.zeros_like(tokens)
    return psi


def adapter_shift(psi: dict, cond: Cond) -> Float[Array, "b n w"]:
    """The shift of the tokens by the adapter, times its scale.

    Args:
        psi: {"lora": [n w]}, or empty.
        cond: tokens [b n w] and scales.

    Returns:
        [b n w]; zero without an adapter.
    """
    if "lora" not in psi or cond.lora is None:
        return jnp.zeros_like(cond.tokens)
    return per_example(jnp.asarray(cond.lora), cond.tokens) * psi["lora"][None]


def gaussian(means: Mapping[str, float], sigma: float = 0.5, noise_schedule: NoiseSchedule = STABLE_DIFFUSION) -> Prior:
    """A prior with a closed-form score. Latents are the rgb values, and the tokens [k 1 1] of a text hold its mean.

    Args:
        means: {text: mean of its images}, with "" for the unconditional.
        sigma: standard deviation of the images of any one text, at least 0.
        noise_schedule: what z_t is mixed by.

    Returns:
        The prior. Its `embed` raises ValueError for texts without a mean.

    Raises:
        ValueError: sigma is negative or NaN.

    Examples:
        >>> gaussian({"": 0.2, "red": 1.0}).embed({}, ["red"]).shape
        (1, 1, 1)
    """
    if not sigma >= 0:
        raise ValueError(f"sigma must be at least 0, got {sigma}")

    def init(key: Key[Array, ""]) -> dict:
        return {}

    def embed(weights: dict, texts: list[str]) -> Float[Array, "k 1 1"]:
        if unknown := [text for text in texts if text not in means]:
            raise ValueError(f"the Gaussian prior knows no text {unknown[0]!r}, only {sorted(means)}")
        return jnp.asarray([[[means[text]]] for text in texts], jnp.float32)

    def encode(weights: dict, rgb: Float[Array, "b h w c"], key: Key[Array, ""]) -> Float[Array, "b h w c"]:
        return rgb

    def decode(weights: dict, z: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return clip_to_unit(z)

    def predict(
        weights: dict, psi: dict, z_t: Float[Array, "b h w c"], t: Int[Array, "b"], cond: Cond
    ) -> Float[Array, "b h w c"]:
        signal, noise_std = signal_and_noise(noise_schedule, t, z_t)
        mean = (cond.tokens + adapter_shift(psi, cond))[..., None]
        # z_t is N(signal mu, signal^2 sigma^2 + noise_std^2), and eps = -noise_std times its score.
        return noise_std * (z_t - signal * mean) / divisor(signal**2 * sigma**2 + noise_std**2)

    def predict_x0(
        weights: dict, psi: dict, z_t: Float[Array, "b h w c"], t: Int[Array, "b"], cond: Cond
    ) -> Float[Array, "b h w c"]:
        signal, noise_std = signal_and_noise(noise_schedule, t, z_t)
        mean = (cond.tokens + adapter_shift(psi, cond))[..., None]
        gain = signal * sigma**2 / divisor(signal**2 * sigma**2 + noise_std**2)
        return mean + gain * (z_t - signal * mean)

    own_x0 = predict_x0 if noise_schedule.ends_in_noise else None
    return Prior(init, embed, init_psi, encode, decode, predict, noise_schedule, own_x0)
