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
from lods_jax.distillation.auxiliary_priors import AuxiliaryPrior, auxiliary_scores
from lods_jax.distillation.known_views import ReferenceView, groups_around_image, seen_in_reference, show_image, where
from lods_jax.distillation.latents import encode_each, encode_for_all
from lods_jax.distillation.rewards import Reward, rewarded_score
from lods_jax.distillation.score_paths import ENCODER, ScorePath, pull_into_scene, sliced, through_decoder
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


class RenderedViews(NamedTuple):
    """The views of one shard.

    Attributes:
        camera: of each view.
        rgb: what the prior is asked about: the renders, some of them replaced by a reference image.
        render: the `Render` of the views.
        costs: {name: weighted cost [b]} of the regularizers and of the reference image.
        pullback: cotangent of `rgb` -> gradients of theta and of `means2d_probe`, those of the costs included.
    """

    camera: Camera
    rgb: Array
    render: Render
    costs: dict[str, Array]
    pullback: Callable[[Array], tuple[Any, Any]]


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


def step_keys(key: Key[Array, ""], step: Int[Array, ""], views: Int[Array, "b"], group: int) -> Any:
    """The keys of a step, by purpose.

    Args:
        key: of the run.
        step: index of the step.
        views: global indices of the views.
        group: number of views in a group.

    Returns:
        A named tuple of keys [b]: camera and render, alike within a group; encode, score and fit.
    """
    k = jax.vmap(lambda key: split_named(key, "camera render encode score fit"))(view_keys(key, step, views))
    return k._replace(camera=group_keys(k.camera, group), render=group_keys(k.render, group))


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

    def render_views(state, reference, k, views) -> RenderedViews:
        """Renders the views of a shard."""
        b, camera, known = len(views), cameras(k.camera, views), jnp.zeros(len(views), bool)
        if reference_view and joins:
            camera, known = groups_around_image(
                camera, reference.image.camera, views, state.step, prior.views, reference_view.orbit
            )

        def forward(theta, means2d_probe):
            render = scene.render(theta, state.aux, camera, k.render, means2d_probe)
            costs = regularizers(render, state.step)
            if reference_view:
                render, found = seen_in_reference(reference_view, theta, state, reference.image, k.render[:1], render)
                costs |= {name: jnp.broadcast_to(cost, (b,)) for name, cost in found.items()}
            return (render.rgb, sum(costs.values(), jnp.zeros(b))), (render, costs)

        probe = scene.means2d_probe(state.aux, b)
        (rgb, _), into_scene, (render, costs) = jax.vjp(forward, state.theta, probe, has_aux=True)

        def pullback(g_rgb):
            g_rgb = where(known, jnp.zeros_like(g_rgb), g_rgb) if joins else g_rgb
            return into_scene((g_rgb, jnp.full(b, 1 / batch)))

        rgb = show_image(rgb, render.opacity, reference.image, known) if joins else rgb
        return RenderedViews(camera, rgb, render, costs, pullback)

    def departed_from(state, weights, reference, camera, k) -> dict[str, Array]:
        """Latents of the reference of an edit: of a fixed image, or of the object before."""
        if reference.source is None:
            return {} if reference.latents is None else {"reference": reference.latents}
        # Seen by the same cameras with the same random numbers: alike scenes have alike latents.
        probe = scene.means2d_probe(reference.source[1], len(k.render))
        rgb = scene.render(*reference.source, camera, k.render, probe).rgb
        return {"reference": encode_each(prior, weights, rgb, k.encode, vae_slicing)}

    def query_prior(state, weights, texts, reference, seen, latents, k, fixed):
        """Asks the step's prior: the score of the renders, the denoising loss, and its gradient in psi."""
        rows, predict_noise_fn = select_prompts(texts, seen.camera)
        denoiser, stage, at = bind(prior, weights), objective.at(state.step), window(state.step)
        pose = seen.camera.c2w.reshape(-1, 16)
        if fit_shares_noise:
            both = jax.value_and_grad(score_and_denoising_loss, has_aux=True)
            (fit, own), g_psi = both(state.psi, stage, denoiser, latents, rows, at, k.score, pose, predict_noise_fn)
            return own, fit, g_psi
        scoring = partial(score, fixed=fixed)
        if reward:
            scoring = partial(rewarded_score, reward, reference.reward, sliced(partial(prior.decode, weights), vae_slicing))
        scored = partial(scoring, stage, denoiser, state.psi, latents, rows, at, k.score, pose, predict_noise_fn)
        fitted = partial(jax.value_and_grad(denoising_loss), state.psi, objective, denoiser, latents, rows, k.fit, pose)
        scene_on, prior_on = active_updates(schedule, state.step, fit_first)
        own, (fit, g_psi) = cond_or_zeros(scene_on, scored), cond_or_zeros(prior_on, fitted)
        return own, fit, g_psi

    def compute_grads(state, weights, texts, reference, key, views) -> StepGrads:
        """Gradients and per-view outputs of one shard of the views."""
        reference, k = reference or Reference(), step_keys(key, state.step, views, prior.views)
        seen = render_views(state, reference, k, views)
        priors = [(prior, weights), *((g.prior, own) for g, (own, _) in zip(auxiliary_priors, reference.auxiliary, strict=True))]
        shared = [g.shares_latents for g in auxiliary_priors]
        encode = partial(encode_for_all, priors, shared, keys=k.encode, slicing=vae_slicing)
        zs, through_encoder = jax.vjp(encode, seen.rgb)
        latents = {"render": zs[0]} | departed_from(state, weights, reference, seen.camera, k)

        fixed = None
        if objective.noise:
            fixed = objective.noise(fixed_keys(key, views // prior.views % scene.particles), zs[0], seen.render, seen.camera)
        own, fit, g_psi = query_prior(state, weights, texts, reference, seen, latents, k, fixed)
        scene_on, _ = active_updates(schedule, state.step, fit_first)
        scores = {"score_rms": own} | auxiliary_scores(
            auxiliary_priors, reference.auxiliary, zs[1:], seen.camera, state.step, k.score, scene_on
        )

        g_zs = tuple(x / batch for x in scores.values())
        (g_rgb,) = through_encoder(g_zs)
        to_step = batch * scores_to_steps(objective, bind(prior, weights), zs[0], window(state.step), k.score)
        decoded = partial(through_decoder, score_path, priors, zs, g_zs, to_step, seen.rgb, vae_slicing)
        g_theta, means2d_grad = pull_into_scene(score_path, state.step, seen.pullback, g_rgb, decoded, scene.colors)
        squares = {name: jnp.mean(x**2, tuple(range(1, x.ndim))) for name, x in scores.items()}
        return StepGrads(g_theta, g_psi, fit, ViewOutputs(means2d_grad, seen.render, squares, seen.costs))

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
