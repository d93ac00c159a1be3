"""From an objective to numbers: the predictions of its queries, its score, and the loss of its trained query."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from lods_jax.core.noise_schedule import NoiseSchedule, T, add_noise, eps_to_x0, per_example
from lods_jax.core.random import group_keys, split_named
from lods_jax.core.types import Cond, Objective, Prior, Query
from lods_jax.distillation.score_paths import score_to_step

# (psi, z_t, t, Cond) -> eps: a Prior's `predict` with its weights bound.
Predict = Callable[..., jax.Array]
Latents = Mapping[str, Float[Array, "b h w c"]]
Texts = Mapping[str, Float[Array, "b n d"]]
PredictNoise = Callable[..., dict[str, jax.Array]]  # `predict_noise`, or one that takes its place: `perp_neg.away_from`


class Denoiser(NamedTuple):
    """A prior with its weights bound, as far as scores need it.

    Attributes:
        predict: (psi, z_t, t [b], `Cond`) -> eps like z_t.
        noise_schedule: of the prior.
        views: number of views that are denoised together, under one timestep.
    """

    predict: Predict
    noise_schedule: NoiseSchedule
    views: int = 1


def bind(prior: Prior, weights: Any) -> Denoiser:
    """The denoiser of a prior.

    Args:
        prior: its `predict`, its noise schedule and its number of views are used.
        weights: its frozen parameters.

    Returns:
        What `score` and the losses ask.
    """
    return Denoiser(partial(prior.predict, weights), prior.noise_schedule, prior.views)


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
    """The noise predictions of all queries, in one call of the network.

    The prior gets an adapter scale or the pose of an adapter only if some query uses it.

    Args:
        predict: (psi, z_t, t, Cond) -> eps, a prior's `predict` with its weights bound.
        psi: the learnable part of the prior.
        queries: {name: query}.
        noised: z_t [b h w c] of the latents that the queries use, "render" and "reference".
        texts: {name: tokens [b n d]}, a row per view. The text "learned" is `psi["embedding"]`, the same for every view.
        t: timesteps [b], 0 to 999.
        pose: camera-to-world matrices [b 16], row-major.
        image: image condition [b h w c] of queries with `image`; the others see zeros.

    Returns:
        {name: eps [b h w c]}, float32.
    """
    b, asked = len(t), list(queries.values())

    def tokens(query):
        if query.text != "learned":
            return texts[query.text]
        return jnp.broadcast_to(psi["embedding"], (b, *psi["embedding"].shape))

    per_query = lambda values: np.repeat(np.asarray(values, np.float32), b)  # noqa: E731 (known while tracing: `lora.side_path`)
    posed = any(q.pose for q in asked)
    cond = Cond(
        tokens=jnp.concatenate([tokens(q) for q in asked]),
        lora=per_query([q.lora for q in asked]) if any(q.lora for q in asked) else None,
        pose=jnp.tile(pose, (len(asked), 1)) if posed else None,  # type: ignore[arg-type]
        pose_on=jnp.asarray(per_query([q.pose for q in asked])) if posed else None,
        image=None if image is None else jnp.concatenate([image if q.image else jnp.zeros_like(image) for q in asked]),
        camera=None if pose is None else jnp.tile(pose, (len(asked), 1)),
    )
    z_t = jnp.concatenate([noised[q.latents] for q in asked])
    # float32: at s = 1000 the terms of a residual cancel to three digits in bfloat16.
    eps = predict(psi, z_t, jnp.tile(t, len(asked)), cond).astype(jnp.float32)
    return dict(zip(queries, jnp.split(eps, len(asked)), strict=True))


def score(
    objective: Objective,
    denoiser: Denoiser,
    psi: Any,
    latents: Latents,
    texts: Texts,
    window: tuple[Array | int, Array | int],
    keys: Key[Array, "b"],
    pose: Float[Array, "b 16"] | None = None,
    predict_noise_fn: PredictNoise = predict_noise,
    fixed: Float[Array, "b h w c"] | None = None,
) -> Float[Array, "b h w c"]:
    """The score of the renders under an objective: w(t) times its residual, at a random noise per view and timestep per group.

    The train step divides it by the batch size and pulls it back. It is a cotangent: no gradient flows into psi or the latents.

    Args:
        objective: the queries and the residual.
        denoiser: the prior with its weights bound.
        psi: the learnable part of the prior.
        latents: {"render": z [b h w c]}, and "reference" for DDS.
        texts: {name: tokens [b n d]}, a row per view.
        window: lowest and highest timestep, both included.
        keys: one per view, see `draw`.
        pose: camera-to-world matrices [b 16], row-major.
        predict_noise_fn: `predict_noise`, or one that takes its place, as `perp_neg.away_from` gives it.
        fixed: noise [b h w c] in place of a random one.

    Returns:
        w(t) residual [b h w c], float32.
    """
    z = latents["render"]
    t, noise = draw(keys, z, window, denoiser.views)
    noise = noise if fixed is None else fixed
    eps, noised, noise = predictions_at(objective, denoiser, psi, latents, texts, t, noise, pose, predict_noise_fn)
    return score_of(objective, denoiser, eps, z, noised, noise, t)


def predictions_at(
    objective: Objective,
    denoiser: Denoiser,
    psi: Any,
    latents: Latents,
    texts: Texts,
    t: Int[Array, "b"],
    noise: Float[Array, "b h w c"],
    pose: Float[Array, "b 16"] | None = None,
    predict_noise_fn: PredictNoise = predict_noise,
) -> tuple[dict[str, Array], Latents, Float[Array, "b h w c"]]:
    """All that the score at given timesteps and noise is made of, for `score_of`.

    Args:
        objective: as of `score`.
        denoiser: as of `score`.
        psi: as of `score`.
        latents: as of `score`.
        texts: as of `score`.
        t: timesteps [b].
        noise: [b h w c]; an inversion may leave it aside.
        pose: as of `score`.
        predict_noise_fn: as of `score`.

    Returns:
        {name: prediction} of the queries; z_t of each of the latents; and what takes the place of the noise.
    """
    noised = {name: add_noise(denoiser.noise_schedule, x, noise, t) for name, x in latents.items()}
    if objective.inversion:

        def eps_of(text, z_t, t):
            return predict_noise_fn(denoiser.predict, psi, {"": Query(text)}, {"render": z_t}, texts, t, pose)[""]

        noised["render"], noise = objective.inversion(denoiser.noise_schedule, eps_of, latents["render"], t, noise)
    return predict_noise_fn(denoiser.predict, psi, objective.queries, noised, texts, t, pose), noised, noise


def score_of(
    objective: Objective,
    denoiser: Denoiser,
    eps: Mapping[str, Float[Array, "b h w c"]],
    z: Float[Array, "b h w c"],
    noised: Latents,
    noise: Float[Array, "b h w c"],
    t: Int[Array, "b"],
) -> Float[Array, "b h w c"]:
    """The score that the predictions of an objective make: w(t) times its residual, or its residual of clean latents.

    Args:
        objective: its residuals are used.
        denoiser: its noise schedule and its number of views are used.
        eps: {name: prediction} of all queries.
        z: latents of the renders.
        noised: z_t [b h w c] of the latents that the queries use.
        noise: that z_t holds.
        t: timesteps [b], 0 to 999.

    Returns:
        [b h w c].
    """
    schedule = denoiser.noise_schedule
    if objective.x0_residual is None:
        return per_example(objective.weight(schedule, t), z) * objective.residual(eps, noise, t)
    x0 = {name: eps_to_x0(schedule, e, noised[objective.queries[name].latents], t) for name, e in eps.items()}
    return objective.x0_residual(x0, z, denoiser.views)


def scores_to_steps(
    objective: Objective,
    denoiser: Denoiser,
    z: Float[Array, "b h w c"],
    window: tuple[Array | int, Array | int],
    keys: Key[Array, "b"],
) -> Float[Array, "b"]:
    """What the score of each view is multiplied by to be a step: z minus the estimate of the clean latents.

    Args:
        objective: as of `score`. A residual of clean latents is such a step already.
        denoiser: as of `score`.
        z: latents of the renders.
        window: as of `score`.
        keys: those of `score`, from which it draws its timesteps.

    Returns:
        Factors [b].
    """
    if objective.x0_residual:
        return jnp.ones(len(z))
    t, _ = draw(keys, z, window, denoiser.views)
    return score_to_step(denoiser.noise_schedule, t, objective.weight)


def denoising_loss(
    psi: Any,
    objective: Objective,
    denoiser: Denoiser,
    latents: Latents,
    texts: Texts,
    keys: Key[Array, "b"],
    pose: Float[Array, "b 16"] | None = None,
) -> Float[Array, ""]:
    """Mean squared error of the trained query's noise prediction on the renders; 0 if the objective trains none.

    This is the training loss of a prior that predicts noise: t is uniform over all timesteps, the noise fresh, nothing weighted,
    no text dropped. Of one that predicts a velocity it is alpha_bar_t times the squared error of the velocity.

    Args:
        psi: the learnable part of the prior. Differentiate in it.
        objective: names the trained query.
        denoiser: the prior with its weights bound.
        latents: {"render": z [b h w c]}; no gradient flows into them.
        texts: {name: tokens [b n d]}, a row per view.
        keys: one per view.
        pose: camera-to-world matrices [b 16], row-major.

    Returns:
        The mean over views, pixels and channels.
    """
    if objective.trained_query is None:
        return jnp.zeros(())
    z = jax.lax.stop_gradient(latents["render"])
    t, noise = draw(keys, z, (0, T - 1), denoiser.views)
    query = {objective.trained_query: objective.queries[objective.trained_query]}
    noised = {"render": add_noise(denoiser.noise_schedule, z, noise, t)}
    eps = predict_noise(denoiser.predict, psi, query, noised, texts, t, pose)[objective.trained_query]
    return jnp.mean((eps - noise) ** 2)


def score_and_denoising_loss(
    psi: Any,
    objective: Objective,
    denoiser: Denoiser,
    latents: Latents,
    texts: Texts,
    window: tuple[Array | int, Array | int],
    keys: Key[Array, "b"],
    pose: Float[Array, "b 16"] | None = None,
    predict_noise_fn: PredictNoise = predict_noise,
) -> tuple[Float[Array, ""], Float[Array, "b h w c"]]:
    """The denoising loss and the score at the same timestep and noise, with one forward pass of the trained query for both.

    It saves that pass and departs from the papers: the branch is trained only in the window of the score, and on the very noise
    that the residual is then taken at. Differentiate the first output in psi, with `has_aux=True`.

    Args:
        psi: the learnable part of the prior.
        objective: must train a query.
        denoiser: the prior with its weights bound.
        latents: {"render": z [b h w c]}, and "reference" for DDS; no gradient flows into them.
        texts: {name: tokens [b n d]}, a row per view.
        window: lowest and highest timestep, both included.
        keys: one per view.
        pose: camera-to-world matrices [b 16], row-major.
        predict_noise_fn: `predict_noise`, or one that takes its place for the queries that are not trained.

    Returns:
        The loss, and w(t) residual [b h w c].

    Raises:
        ValueError: the objective trains no query.
    """
    trained = objective.trained_query
    if trained is None:
        raise ValueError("score and fit can share their noise only if the objective trains a query, and this one trains none")
    z = jax.lax.stop_gradient(latents["render"])
    t, noise = draw(keys, z, window, denoiser.views)
    noised = {name: add_noise(denoiser.noise_schedule, x, noise, t) for name, x in latents.items()}
    # Apart from the others: the backward pass is that of this query alone.
    frozen = {name: query for name, query in objective.queries.items() if name != trained}
    learned = {trained: objective.queries[trained]}
    eps = predict_noise_fn(denoiser.predict, jax.lax.stop_gradient(psi), frozen, noised, texts, t, pose)
    eps |= predict_noise(denoiser.predict, psi, learned, noised, texts, t, pose)
    return jnp.mean((eps[trained] - noise) ** 2), score_of(objective, denoiser, eps, z, noised, noise, t)


def draw(
    keys: Key[Array, "b"], z: Float[Array, "b h w c"], window: tuple[Array | int, Array | int], views: int = 1
) -> tuple[Int[Array, "b"], Float[Array, "b h w c"]]:
    """A random noise for each view, from its own key, and a random timestep for each group, from that of its first view.

    Args:
        keys: one per view.
        z: latents [b h w c], for their shape.
        window: lowest and highest timestep, both included.
        views: number of views in a group, which divides b.

    Returns:
        Timesteps [b], uniform in the window, and standard normal noise [b h w c].
    """
    k = jax.vmap(lambda key: split_named(key, "t noise"))(keys)
    low, high = window
    t = jax.vmap(lambda key: jax.random.randint(key, (), low, high + 1))(group_keys(k.t, views))
    return t, jax.vmap(lambda key: jax.random.normal(key, z.shape[1:]))(k.noise)
