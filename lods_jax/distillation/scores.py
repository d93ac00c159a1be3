"""What the train step does with an objective: it asks its queries, takes its score, and fits its learned branch."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from lods_jax.core.noise_schedule import T, add_noise, per_example, score_weight
from lods_jax.core.random import split_named
from lods_jax.core.types import Cond, Objective, Query

# (psi, z_t, t, Cond) -> eps: a Prior's `predict` with its weights bound.
Predict = Callable[..., jax.Array]
Latents = Mapping[str, Float[Array, "b h w c"]]
Texts = Mapping[str, Float[Array, "b n d"]]
PredictNoise = Callable[..., dict[str, jax.Array]]  # `predict_noise`, or what stands in for it: `perp_neg.away_from`


# --- what the train step does with them -------------------------------------------------------------------------------------
def predict_noise(
    predict: Predict,
    psi: Any,
    queries: Mapping[str, Query],
    noised: Latents,
    texts: Texts,
    t: Int[Array, "b"],
    pose: Float[Array, "b 16"] | None = None,
    image: Float[Array, "b h w c"] | None = None,
) -> dict[str, Float[Array, "b h w c"]]:
    """The predictions of all queries in one call of the network: {name: eps}, float32.

    Args:
      noised: z_t of the latents that queries name, "render" and "reference".
      texts: a row per view; "learned" is psi's embedding, the same for every view.
      image: what a query with `image` shows to the network beside z_t; the others show zeros.

    The adapter and the pose are only mentioned to the prior where a query uses them.
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
        image=None if image is None else jnp.concatenate([image if q.image else jnp.zeros_like(image) for q in asked]),
    )
    z_t = jnp.concatenate([noised[q.latents] for q in asked])
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
    predict_noise_fn: PredictNoise = predict_noise,
) -> Float[Array, "b h w c"]:
    """w(t) residual per view, at t uniform in the window (both ends included); what is pulled back is this over b.

    Timestep and noise are drawn per view from its key. No gradient flows into psi or the latents: this is a cotangent.
    """
    z = latents["render"]
    t, noise = draw(keys, z, window)
    noised = {name: add_noise(x, noise, t) for name, x in latents.items()}
    if objective.inversion:
        eps_of = lambda text, z_t, t: predict_noise_fn(predict, psi, {"": Query(text)}, {"render": z_t}, texts, t)[""]  # noqa: E731
        noised["render"], noise = objective.inversion(eps_of, z, t, noise)
    eps = predict_noise_fn(predict, psi, objective.queries, noised, texts, t, pose)
    return per_example(score_weight(t), z) * objective.residual(eps, noise, t)


def denoising_loss(
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
    if objective.trained_query is None:
        return jnp.zeros(())
    z = jax.lax.stop_gradient(latents["render"])
    t, noise = draw(keys, z, (0, T - 1))
    query = {objective.trained_query: objective.queries[objective.trained_query]}
    eps = predict_noise(predict, psi, query, {"render": add_noise(z, noise, t)}, texts, t, pose)[objective.trained_query]
    return jnp.mean((eps - noise) ** 2)


def score_and_denoising_loss(
    psi: Any,
    objective: Objective,
    predict: Predict,
    latents: Latents,
    texts: Texts,
    window: tuple[Array | int, Array | int],
    keys: Key[Array, "b"],
    pose: Float[Array, "b 16"] | None = None,
    predict_noise_fn: PredictNoise = predict_noise,
) -> tuple[Float[Array, ""], Float[Array, "b h w c"]]:
    """(fit loss, w(t) residual) at the same timestep and noise: one forward pass of the learned branch serves both.

    Cheaper than `score` and `denoising_loss` by that pass, and no longer what the papers do: the branch is fitted in the
    score's window alone, and to the very noise that the residual is then taken at. Differentiate the first in psi, has_aux.
    """
    z = jax.lax.stop_gradient(latents["render"])
    t, noise = draw(keys, z, window)
    noised = {name: add_noise(x, noise, t) for name, x in latents.items()}
    # Apart from the others: the backward pass is that of this query alone.
    frozen = {name: query for name, query in objective.queries.items() if name != objective.trained_query}
    learned = {objective.trained_query: objective.queries[objective.trained_query]}
    eps = predict_noise_fn(predict, jax.lax.stop_gradient(psi), frozen, noised, texts, t, pose)
    eps |= predict_noise(predict, psi, learned, noised, texts, t, pose)
    return jnp.mean((eps[objective.trained_query] - noise) ** 2), per_example(score_weight(t), z) * objective.residual(
        eps, noise, t
    )


def draw(
    keys: Key[Array, "b"], z: Float[Array, "b h w c"], window: tuple[Array | int, Array | int]
) -> tuple[Int[Array, "b"], Float[Array, "b h w c"]]:
    """A timestep of the window, both ends included, and noise like z, for each view from its own key."""
    k = jax.vmap(lambda key: split_named(key, "t noise"))(keys)
    low, high = window
    t = jax.vmap(lambda key: jax.random.randint(key, (), low, high + 1))(k.t)
    return t, jax.vmap(lambda key: jax.random.normal(key, z.shape[1:]))(k.noise)
