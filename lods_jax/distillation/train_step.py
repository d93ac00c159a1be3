"""The train step: pull the score of a prior back into a scene, and fit the learnable part of the prior to the scene's renders.

Scene, prior and objective are arguments; this file imports none of them. Theta's gradient comes from the score and the
regularizers alone, psi's from the denoising loss alone. All randomness is drawn per view from (key, step, global view
index), so a result does not depend on how views are split over devices. What the views of one group share, camera, background
and timestep, comes from the key of its first view; a prior of single images has groups of one.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from lods_jax.core.random import fixed_keys, group_keys, split_named, view_keys
from lods_jax.core.trees import not_finite, strongly_typed
from lods_jax.core.types import Camera, Objective, Prior, Reference, Render, Scene, TrainState
from lods_jax.distillation.known_views import groups_around_image, show_image, where
from lods_jax.distillation.rewards import Reward, rewarded_score
from lods_jax.distillation.score_paths import ENCODER, ScorePath, by_view, pull_into_scene, through_decoder
from lods_jax.distillation.scores import (
    PredictNoise,
    bind,
    denoising_loss,
    predict_noise,
    score,
    score_and_denoising_loss,
    scores_to_steps,
)
from lods_jax.distillation.turns import active_updates, cond_or_zeros

Step = Callable[..., tuple[TrainState, dict[str, jax.Array]]]


class ViewOutputs(NamedTuple):
    """Per-view outputs of one shard of the views.

    Attributes:
        means2d_grad: gradient with respect to the scene's `means2d_probe`, [b n 2] or empty.
        render: the `Render` of the views.
        squares: {metric: mean square of the score [b]}, of the step's prior and of each auxiliary prior.
        costs: {name: weighted cost [b]} of the regularizers.
    """

    means2d_grad: Any
    render: Any
    squares: Any
    costs: Any


class StepGrads(NamedTuple):
    """Gradients and per-view outputs of one shard of the views.

    Attributes:
        g_theta: gradient of the scene's parameters, summed over the shard and divided by the batch size.
        g_psi: gradient of the prior's learnable part, the mean over the shard.
        fit: the denoising loss, the mean over the shard.
        outputs: per-view outputs, a `ViewOutputs`.
    """

    g_theta: Any
    g_psi: Any
    fit: Any
    outputs: ViewOutputs


class AuxiliaryPrior(NamedTuple):
    """A further prior that is distilled beside that of the step; it learns nothing.

    Attributes:
        name: of its metric, `score_rms_NAME`.
        prior: the prior.
        objective: whose score is taken; it must train no query.
        select_prompts: (tables, camera) -> ({name: tokens [b n d]}, the function that predicts with them).
        window: step -> lowest and highest timestep, both included.
        weight: step -> the factor of its score.
        shares_latents: whether its autoencoder is that of the step's prior, so that its latents need not be encoded again.
    """

    name: str
    prior: Prior
    objective: Objective
    select_prompts: Callable[..., tuple[dict[str, Array], PredictNoise]]
    window: Callable[[Array], tuple[Array | int, Array | int]]
    weight: Callable[[Array], Array | float]
    shares_latents: bool = False


class ReferenceView(NamedTuple):
    """The camera of a reference image, and the costs of the render that it sees.

    Attributes:
        scene: the scene as the image shows it: on white, without random offsets.
        costs: (render of one view, `ReferenceImage`, step) -> {name: weighted cost [1]}.
        joins: whether the image is one view of every second group of a prior of several views (`known_views`).
    """

    scene: Scene
    costs: Callable[..., dict[str, Array]]
    joins: bool = False


class TrainStep(NamedTuple):
    """A train step in two pure functions: gradients of one shard of the views, then the update from those of all views.

    `parallel.compile_train_step` joins them for one device or several.

    Attributes:
        compute_grads: (state, weights, texts, reference, key, views) -> `StepGrads`; `views` are whole groups in a row.
        apply_grads: (state, `StepGrads`) -> (state, metrics).
        group: number of views in a group, all of which are of one shard.
    """

    compute_grads: Callable[..., StepGrads]
    apply_grads: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    group: int = 1


def init_state(
    scene: Scene, psi: Any, tx_theta: optax.GradientTransformation, tx_psi: optax.GradientTransformation, key: Key[Array, ""]
) -> TrainState:
    """The state before the first step.

    Its leaves have the types of those of every later state, so that the step is compiled once.

    Args:
        scene: its `init` gives theta and aux.
        psi: the learnable part of the prior, as its `init_psi` gives it.
        tx_theta: optimizer of theta.
        tx_psi: optimizer of psi.
        key: for the scene.

    Returns:
        A `TrainState` at step 0. It shares no buffer with psi, since the step donates its state.
    """
    # Before the optimizers see them: Adam's moments of a weakly typed leaf (`jnp.full(3, jnp.log(2.0))`) are weakly typed too,
    # the first step makes the leaf strong, the second its moments, and each of them would be compiled for.
    theta, aux = strongly_typed(scene.init(key))
    psi, zero = strongly_typed(psi), jnp.zeros((), jnp.int32)
    # Copies: the step donates its state, and a buffer that is shared (psi with a text table, say) can't be given away twice.
    return strongly_typed(TrainState(zero, theta, aux, psi, tx_theta.init(theta), tx_psi.init(psi), zero))


def select_view_prompts(tables: dict[str, Array], camera: Camera) -> tuple[dict[str, Array], PredictNoise]:
    """The row of each prompt table that describes the view of each camera.

    Args:
        tables: {name: tokens [views n d]}, a row for each of `cameras.VIEWS`.
        camera: b cameras.

    Returns:
        {name: tokens [b n d]}, and `predict_noise`, the function that predicts with them.
    """
    return {name: table[camera.view] for name, table in tables.items()}, predict_noise


def make_train_step(
    scene: Scene,
    prior: Prior,
    objective: Objective,
    *,
    cameras: Callable[[Key[Array, "b"], Int[Array, "b"]], Camera],
    window: Callable[[Array], tuple[Array | int, Array | int]],
    regularizers: Callable[..., dict[str, Array]] = lambda render, step: {},
    tx_theta: optax.GradientTransformation,
    tx_psi: optax.GradientTransformation,
    batch: int,
    select_prompts: Callable[..., tuple[dict[str, Array], PredictNoise]] = select_view_prompts,
    fit_shares_noise: bool = False,
    schedule: tuple[int, int] | None = None,
    fit_first: int = 0,
    vae_slicing: bool = False,
    reference_view: ReferenceView | None = None,
    auxiliary_priors: Sequence[AuxiliaryPrior] = (),
    score_path: ScorePath = ENCODER,
    reward: Reward | None = None,
) -> TrainStep:
    """Builds the train step: render, encode, take the score of the prior, pull it back; train the prior's learnable part.

    One call of the step maps (state, weights, texts, reference, key, views [b]) to (state, metrics): `texts` are prompt tables
    {name: [views n d]}, `reference` is a `Reference` or None, `views` the global indices of this shard's views. A step with a
    non-finite gradient changes nothing but the counts `step` and `skipped`; its metric `nonfinite_leaf` is the index of the first
    such gradient among the leaves of {"fit", "psi", "theta"}, and -1 otherwise.

    Args:
        scene: renders theta.
        prior: predicts noise.
        objective: the queries, the residual and the trained query.
        cameras: (keys [b], views [b]) -> b cameras; the views of a group of `prior.views` come with one key.
        window: step -> lowest and highest timestep of the score, both included.
        regularizers: (render, step) -> {name: weighted cost [b]}.
        tx_theta: optimizer of theta.
        tx_psi: optimizer of psi.
        batch: number of views per step, on all devices together, a multiple of `prior.views`.
        select_prompts: (tables, camera) -> (a row of each table per view, the function that predicts with them), as
            `select_view_prompts` or `perp_neg.interpolate_view_prompts`.
        fit_shares_noise: whether score and denoising loss share timestep and noise (`scores.score_and_denoising_loss`), which
            saves a third of the predictions.
        schedule: None updates scene and prior in every step, as the official LODS does. (m, k) alternates as in the paper: m
            steps of the scene alone, then k of the prior alone. The half that pauses asks the prior nothing, and its metric is
            NaN.
        fit_first: steps of the prior alone, before all others.
        vae_slicing: whether views are encoded and decoded one after the other, which holds the activations of one at a time.
        reference_view: the view of a reference image, whose costs are added in every step.
        auxiliary_priors: further priors, whose scores are added.
        score_path: how scores come from latents to pixels; by the encoder's transpose, as in the papers, unless it is given.
        reward: weighs noises of a view (`rewards.rewarded_score`); its parameters are in `reference.reward`.

    Returns:
        The two halves of the step, for `parallel.compile_train_step`.

    Raises:
        ValueError: `batch` is no multiple of `prior.views`; or a reward has no noises to weigh; or the objective trains nothing,
            inverts or has a noise of its own where `fit_shares_noise` is set; or `schedule` or `fit_first` is given with an
            objective that trains nothing or with `fit_shares_noise`; or `schedule` has a number below 1; or `score_path` parts
            geometry and colours of a scene that has no leaves of colours alone.
    """

    if batch % prior.views:
        raise ValueError(f"batch must be a multiple of the {prior.views} views that this prior denoises together, got {batch}")
    if reward and not objective.draws_noise:
        raise ValueError("a reward weighs several noises of a view, and this objective draws none: leave the reward out")
    if fit_shares_noise and (objective.trained_query is None or objective.inversion or objective.noise or reward):
        raise ValueError("fit_shares_noise needs an objective that learns something and draws one noise at random")
    if (schedule is not None or fit_first) and (fit_shares_noise or objective.trained_query is None):
        raise ValueError("a schedule of turns and fit_first need an objective that learns something, and no fit_shares_noise")
    if schedule is not None and min(schedule) < 1:
        raise ValueError(f"schedule must be two numbers of steps, each at least 1, got {schedule}")
    if score_path.colors is not score_path.geometry and not scene.colors:
        raise ValueError("this scene has no leaves that are colours alone: take a score_path that is one for all of it")

    joins = reference_view is not None and reference_view.joins and prior.views > 1

    def compute_grads(state, weights, texts, reference, key, views) -> StepGrads:
        """Gradients and per-view outputs of one shard of the views."""
        k = jax.vmap(lambda key: split_named(key, "camera render encode score fit"))(view_keys(key, state.step, views))
        reference = reference or Reference()
        k_camera, k_render = (group_keys(keys, prior.views) for keys in (k.camera, k.render))
        camera, b = cameras(k_camera, views), len(views)
        if joins:
            camera, known = groups_around_image(camera, reference.image.camera, views, state.step, prior.views)
        rows, predict_noise_fn = select_prompts(texts, camera)
        pose, denoiser = camera.c2w.reshape(b, 16), bind(prior, weights)

        def forward(theta, means2d_probe):
            render = scene.render(theta, state.aux, camera, k_render, means2d_probe)
            costs = regularizers(render, state.step)
            if reference_view:
                render, found = seen_in_reference(reference_view, theta, state, reference.image, k.render[:1], render)
                costs |= {name: jnp.broadcast_to(cost, (b,)) for name, cost in found.items()}
            return (render.rgb, sum(costs.values(), jnp.zeros(b))), (render, costs)

        asked = [(prior, weights), *((g.prior, w) for g, (w, _) in zip(auxiliary_priors, reference.auxiliary, strict=True))]

        def encode(rgb):
            z = encode_each(prior, weights, rgb, k.encode, vae_slicing)
            shared = [g.shares_latents for g in auxiliary_priors]
            others = zip(asked[1:], shared, strict=True)
            return z, *(z if same else encode_each(*who, rgb, k.encode, vae_slicing) for who, same in others)

        (rgb, _), into_scene, (render, costs) = jax.vjp(forward, state.theta, scene.means2d_probe(state.aux, b), has_aux=True)
        if joins:
            rgb = show_image(rgb, render.opacity, reference.image, known)
        zs, through_encoder = jax.vjp(encode, rgb)
        latents = {"render": zs[0]} | ({} if reference.latents is None else {"reference": reference.latents})
        if reference.source is not None:  # seen by the same cameras with the same random numbers: alike scenes have alike latents
            seen = scene.render(*reference.source, camera, k_render, scene.means2d_probe(reference.source[1], b))
            latents |= {"reference": encode_each(prior, weights, seen.rgb, k.encode, vae_slicing)}
        scene_on, prior_on = active_updates(schedule, state.step, fit_first)
        at, stage = window(state.step), objective.at(state.step)
        if fit_shares_noise:
            both = jax.value_and_grad(score_and_denoising_loss, has_aux=True)
            (fit, own), g_psi = both(state.psi, stage, denoiser, latents, rows, at, k.score, pose, predict_noise_fn)
        else:
            fixed = None
            if objective.noise:
                fixed = objective.noise(fixed_keys(key, views // prior.views % scene.particles), zs[0], render, camera)
            plain = partial(score, fixed=fixed)
            decode = by_view(partial(prior.decode, weights), vae_slicing)
            rated = partial(rewarded_score, reward, reference.reward, decode) if reward else plain
            scored = partial(rated, stage, denoiser, state.psi, latents, rows, at, k.score, pose, predict_noise_fn)
            fitted = partial(jax.value_and_grad(denoising_loss), state.psi, objective, denoiser, latents, rows, k.fit, pose)
            own, (fit, g_psi) = cond_or_zeros(scene_on, scored), cond_or_zeros(prior_on, fitted)
        scores = {"score_rms": own}
        for i, (g, z, (w, tables)) in enumerate(zip(auxiliary_priors, zs[1:], reference.auxiliary, strict=True), 1):
            keys = jax.vmap(jax.random.fold_in, (0, None))(k.score, i)
            further = partial(auxiliary_score, g, w, z, g.select_prompts(tables, camera), g.window(state.step), keys, pose)
            scores[f"score_rms_{g.name}"] = g.weight(state.step) * cond_or_zeros(scene_on, further)
        g_zs = tuple(x / batch for x in scores.values())
        (g_rgb,) = through_encoder(g_zs)
        of_renders = lambda g_rgb: where(known, jnp.zeros_like(g_rgb), g_rgb) if joins else g_rgb  # noqa: E731
        pullback = lambda g_rgb: into_scene((of_renders(g_rgb), jnp.full(b, 1 / batch)))  # noqa: E731
        to_step = batch * scores_to_steps(objective, denoiser, zs[0], at, k.score)
        decoded = partial(through_decoder, score_path, asked, zs, g_zs, to_step, rgb, vae_slicing)
        g_theta, means2d_grad = pull_into_scene(score_path, state.step, pullback, g_rgb, decoded, scene.colors)
        squares = {name: jnp.mean(x**2, tuple(range(1, x.ndim))) for name, x in scores.items()}
        return StepGrads(g_theta, g_psi, fit, ViewOutputs(means2d_grad, render, squares, costs))

    def apply_grads(state, p: StepGrads):
        theta, opt_theta = apply_gradients(tx_theta, p.g_theta, state.theta, state.opt_theta)
        psi, opt_psi = apply_gradients(tx_psi, p.g_psi, state.psi, state.opt_psi)
        aux = scene.update_stats(state.aux, p.outputs.means2d_grad, p.outputs.render)
        nonfinite_leaf = not_finite({"theta": p.g_theta, "psi": p.g_psi, "fit": p.fit})
        finite = nonfinite_leaf < 0
        scene_on, prior_on = active_updates(schedule, state.step, fit_first)
        # A step with a non-finite gradient changes nothing but the counts: it can be told of, and it hides nothing.
        pick = lambda on, new, old: jax.tree.map(lambda a, b: jnp.where(finite & on, a, b), new, old)  # noqa: E731
        theta, aux, opt_theta = pick(scene_on, (theta, aux, opt_theta), (state.theta, state.aux, state.opt_theta))
        psi, opt_psi = pick(prior_on, (psi, opt_psi), (state.psi, state.opt_psi))
        new = TrainState(state.step + 1, theta, aux, psi, opt_theta, opt_psi, state.skipped + ~finite)
        metrics = {"fit": jnp.where(prior_on, p.fit, jnp.nan)}
        metrics |= {name: jnp.where(scene_on, jnp.sqrt(jnp.mean(x)), jnp.nan) for name, x in p.outputs.squares.items()}
        metrics |= {"grad": optax.tree.norm(p.g_theta), "nonfinite_leaf": nonfinite_leaf}
        return new, metrics | {name: jnp.mean(cost) for name, cost in p.outputs.costs.items()}

    return TrainStep(compute_grads, apply_grads, prior.views)


def seen_in_reference(
    view: ReferenceView, theta: Any, state: TrainState, image: Any, keys: Key[Array, "1"], render: Render
) -> tuple[Render, dict[str, Array]]:
    """The costs of the reference image's view.

    Args:
        view: its scene and costs.
        theta: parameters of the scene.
        state: for its step and aux.
        image: a `ReferenceImage`.
        keys: of its render.
        render: the renders of the other views.

    Returns:
        `render`, its "total" raised to what this view needs; and {name: weighted cost [1]}, of which each view of a step takes a
            share.
    """
    seen = view.scene.render(theta, state.aux, image.camera, keys, view.scene.means2d_probe(state.aux, 1))
    if "total" in render.extras:
        total = jnp.maximum(render.extras["total"], seen.extras["total"])
        render = render.replace(extras=render.extras | {"total": total})
    return render, view.costs(seen, image, state.step)


def auxiliary_score(
    g: AuxiliaryPrior, weights: Any, z: Array, asked: tuple, at: tuple, keys: Key[Array, "b"], pose: Array
) -> Array:
    """The score of an auxiliary prior on its latents.

    Args:
        g: the auxiliary prior.
        weights: its frozen parameters.
        z: latents of the renders [b h w c].
        asked: what its `select_prompts` gives: texts per view, and the function that predicts with them.
        at: lowest and highest timestep, both included.
        keys: one per view.
        pose: camera-to-world matrices [b 16].

    Returns:
        w(t) residual [b h w c], without the prior's weight.
    """
    rows, predict_noise_fn = asked
    return score(g.objective, bind(g.prior, weights), {}, {"render": z}, rows, at, keys, pose, predict_noise_fn)


def encode_each(prior: Prior, weights: Any, rgb: Array, keys: Key[Array, "b"], slicing: bool = False) -> Array:
    """The latents of each view, from a key of its own: the encoder's noise does not depend on the other views of the batch.

    Args:
        prior: its `encode` is used.
        weights: its frozen parameters.
        rgb: renders [b h w 3] in [0, 1].
        keys: one per view.
        slicing: whether views are encoded one after the other: the activations of one are held at a time, and the backward pass
            computes them again.

    Returns:
        Latents [b h w c], float32.
    """
    one = lambda view: prior.encode(weights, view[0][None], view[1])[0]  # noqa: E731
    return (partial(jax.lax.map, jax.checkpoint(one, prevent_cse=False)) if slicing else jax.vmap(one))((rgb, keys))


def apply_gradients(tx: optax.GradientTransformation, grads: Any, params: Any, opt: optax.OptState) -> tuple[Any, optax.OptState]:
    """One step of an optax optimizer.

    Args:
        tx: the optimizer.
        grads: gradients, a tree like params.
        params: parameters.
        opt: state of the optimizer.

    Returns:
        The new parameters and the new state of the optimizer.
    """
    updates, opt = tx.update(grads, opt, params)
    return optax.apply_updates(params, updates), opt
