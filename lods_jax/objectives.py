"""Every distillation objective: a few noise predictions and one formula.

Notation: e[q] is the noise predicted for query q at z_t = sqrt(ab) z + sqrt(1 - ab) noise, s the guidance scale. What an
objective calls `residual` is multiplied by w(t) = 1 - alpha_bar_t and pulled back through encoder and renderer: a score is a
cotangent, not a loss. Equal, up to rounding, to the gradient of the surrogate 0.5 |z - sg(z - w residual)|^2 / b.

Coefficients of the predictions and of the noise sum to zero, so a perfect denoiser exerts no force.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from lods_jax.diffusion import T, add_noise, per_example, score_weight
from lods_jax.rng import split_named
from lods_jax.types import Cond, Objective, Query

# (psi, z_t, t, Cond) -> eps: a Prior's `predict` with its weights bound.
Predict = Callable[..., jax.Array]
Latents = Mapping[str, Float[Array, "b h w c"]]
Texts = Mapping[str, Float[Array, "b n d"]]


# --- objectives -----------------------------------------------------------------------------------------------------------
def sds(s: float = 100.0, scale: float | None = None) -> Objective:
    """Score distillation sampling (DreamFusion; Poole et al. 2023, eq. 3) with classifier-free guidance s.

    `scale` multiplies the residual; its default 1/s puts SDS on the scale of LODS, so that one learning rate, one set of penalty
    weights and one densification threshold serve both. scale = 1 is the published form.
    """
    scale = 1 / at_least(s, 1.0) if scale is None else scale
    return Objective(
        {"y": Query("prompt"), "null": Query("null")},
        residual=lambda e, noise, t: scale * (s * e["y"] + (1 - s) * e["null"] - noise),
    )


def csd() -> Objective:
    """Classifier score distillation (Yu et al. 2024, eq. 7): guidance alone, what LODS is for s = inf before it has learned."""
    return Objective({"y": Query("prompt"), "null": Query("null")}, residual=lambda e, noise, t: e["y"] - e["null"])


def lods_embedding(s: float = 1000.0) -> Objective:
    """LODS with a learned unconditional embedding (Yang et al. 2024, eq. 10): SDS / s at initialisation; s may be inf.

    The embedding is fitted to denoise the current renders. Once it predicts their noise, the residual is e[y] - noise, which a
    good image does not feel: the mismatch between training and guided sampling is gone.
    """
    keep = 1 / at_least(s, 1.0)  # 0 at s = inf
    return Objective(
        {"y": Query("prompt"), "a": Query("learned")},
        residual=lambda e, noise, t: e["y"] - (1 - keep) * e["a"] - keep * noise,
        fit="a",
    )


def at_least(s: float, least: float) -> float:
    """The guidance scale, if it is one."""
    if math.isnan(s) or s < least:
        raise ValueError(f"guidance needs s >= {least:g}, got {s}")
    return s


# --- what the train step does with them -------------------------------------------------------------------------------------
def ask(
    predict: Predict,
    psi: Any,
    queries: Mapping[str, Query],
    latents: Latents,
    texts: Texts,
    t: Int[Array, "b"],
    noise: Float[Array, "b h w c"],
    pose: Float[Array, "b 16"] | None = None,
) -> dict[str, Float[Array, "b h w c"]]:
    """The predictions of all queries in one call of the network: {name: eps}, float32.

    A text is a row of `texts` per view; "learned" is psi's embedding, the same for every view. The adapter and the pose are only
    mentioned to the prior where a query uses them.
    """
    b, asked = len(t), list(queries.values())

    def tokens(query):
        if query.text != "learned":
            return texts[query.text]
        return jnp.broadcast_to(psi["embedding"], (b, *psi["embedding"].shape))

    per_query = lambda values: jnp.repeat(jnp.asarray(values, jnp.float32), b)  # noqa: E731
    posed = any(q.pose for q in asked)
    cond = Cond(
        tokens=jnp.concatenate([tokens(q) for q in asked]),
        lora=per_query([q.lora for q in asked]) if any(q.lora for q in asked) else None,
        pose=jnp.tile(pose, (len(asked), 1)) if posed else None,
        pose_on=per_query([q.pose for q in asked]) if posed else None,
    )
    z_t = jnp.concatenate([add_noise(latents[q.latents], noise, t) for q in asked])
    # float32: at s = 1000 the terms of a residual cancel to three digits in bfloat16.
    eps = predict(psi, z_t, jnp.tile(t, len(asked)), cond).astype(jnp.float32)
    return dict(zip(queries, jnp.split(eps, len(asked)), strict=True))


def score(
    objective: Objective,
    predict: Predict,
    psi: Any,
    latents: Latents,
    texts: Texts,
    window: tuple[Array | int, Array | int],
    keys: Key[Array, "b"],
    pose: Float[Array, "b 16"] | None = None,
) -> Float[Array, "b h w c"]:
    """w(t) residual per view, at t uniform in the window (both ends included); what is pulled back is this over b.

    Timestep and noise are drawn per view from its key. No gradient flows into psi or the latents: this is a cotangent.
    """
    k = jax.vmap(lambda key: split_named(key, "t noise"))(keys)
    z = latents["render"]
    low, high = window
    t = jax.vmap(lambda key: jax.random.randint(key, (), low, high + 1))(k.t)
    noise = jax.vmap(lambda key: jax.random.normal(key, z.shape[1:]))(k.noise)
    eps = ask(predict, psi, objective.queries, latents, texts, t, noise, pose)
    return per_example(score_weight(t), z) * objective.residual(eps, noise, t)


def fit_loss(
    psi: Any,
    objective: Objective,
    predict: Predict,
    latents: Latents,
    texts: Texts,
    keys: Key[Array, "b"],
    pose: Float[Array, "b 16"] | None = None,
) -> Float[Array, ""]:
    """Mean-squared error of the learnable query's noise prediction on the current latents; 0 if nothing is learned.

    The prior's own training loss: t uniform over all timesteps, fresh noise, no weighting and no dropped text.
    """
    if objective.fit is None:
        return jnp.zeros(())
    k = jax.vmap(lambda key: split_named(key, "t noise"))(keys)
    z = jax.lax.stop_gradient(latents["render"])
    t = jax.vmap(lambda key: jax.random.randint(key, (), 0, T))(k.t)
    noise = jax.vmap(lambda key: jax.random.normal(key, z.shape[1:]))(k.noise)
    query = {objective.fit: objective.queries[objective.fit]}
    eps = ask(predict, psi, query, {**latents, "render": z}, texts, t, noise, pose)[objective.fit]
    return jnp.mean((eps - noise) ** 2)
