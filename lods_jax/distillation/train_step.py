"""The train step: pull the score of a prior back into a scene, and fit the learnable part of the prior to the scene's renders.

Scene, prior and objective are arguments; this file imports none of them. Theta's gradient comes from the score and the
regularizers alone, psi's from the denoising loss alone. All randomness is drawn per view from (key, step, global view
index), so a result does not depend on how views are split over devices.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from lods_jax.core.random import split_named, view_keys
from lods_jax.core.types import Camera, Objective, Prior, Reference, Scene, TrainState
from lods_jax.distillation.scores import PredictNoise, denoising_loss, predict_noise, score, score_and_denoising_loss

Step = Callable[..., tuple[TrainState, dict[str, jax.Array]]]


class ViewOutputs(NamedTuple):
    """What each view of one shard shows, by view."""

    means2d_grad: Any  # gradient with respect to the scene's probe
    render: Any
    squares: Any  # mean square of each score
    costs: Any  # of each regularizer


class StepGrads(NamedTuple):
    """Gradients and per-view outputs of one shard of the views."""

    g_theta: Any
    g_psi: Any
    fit: Any
    outputs: ViewOutputs


class AuxiliaryPrior(NamedTuple):
    """A further prior that is distilled beside the one of the step; it learns nothing."""

    name: str  # of its metric: score_rms_NAME
    prior: Prior
    objective: Objective
    select_prompts: Callable[..., tuple[dict[str, Array], PredictNoise]]
    window: Callable[[Array], tuple[Array | int, Array | int]]
    weight: Callable[[Array], Array | float]  # step -> what its score counts
    shares_latents: bool = False  # its autoencoder is that of the step's prior


class ReferenceView(NamedTuple):
    """A view of which there is a reference image."""

    scene: Scene  # the scene as the image shows it: on white, without chance
    costs: Callable[..., dict[str, Array]]  # (render of one view, ReferenceImage, step) -> {name: weighted cost [1]}


class TrainStep(NamedTuple):
    """A train step in two: the gradients of one shard of the views, and the update from those of all views."""

    compute_grads: Callable[..., StepGrads]  # (state, weights, texts, reference, key, views) -> StepGrads
    apply_grads: Callable[..., tuple[TrainState, dict[str, jax.Array]]]  # (state, StepGrads) -> (state, metrics)


def init_state(
    scene: Scene, psi: Any, tx_theta: optax.GradientTransformation, tx_psi: optax.GradientTransformation, key: Key[Array, ""]
) -> TrainState:
    """The state before the first step, with the leaf types of every state after it: one compilation of the step serves all.

    Args:
      psi: what the prior's `init_psi` gave for the fitted query.
    """
    # Before the optimizers see them: Adam's moments of a weakly typed leaf (`jnp.full(3, jnp.log(2.0))`) are weakly typed too,
    # the first step makes the leaf strong, the second its moments, and each of them would be compiled for.
    theta, aux = strongly_typed(scene.init(key))
    psi, zero = strongly_typed(psi), jnp.zeros((), jnp.int32)
    # Copies: the step donates its state, and a buffer that is shared (psi with a text table, say) can't be given away twice.
    return strongly_typed(TrainState(zero, theta, aux, psi, tx_theta.init(theta), tx_psi.init(psi), zero))


def strongly_typed(tree: Any) -> Any:
    """A copy whose leaves insist on their dtype, as what a compiled function returns does."""
    return jax.tree.map(lambda x: jnp.array(x, x.dtype), tree)


def select_view_prompts(tables: dict[str, Array], camera: Camera) -> tuple[dict[str, Array], PredictNoise]:
    """The row of each prompt table that describes the view, and the plain way to ask with it."""
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
    vae_slicing: bool = False,
    reference_view: ReferenceView | None = None,
    auxiliary_priors: Sequence[AuxiliaryPrior] = (),
) -> TrainStep:
    """Builds the two functions of a step: pass them to `compile_train_step`.

    Args:
      cameras: (keys[b], views[b]) -> b cameras. window: step -> lowest and highest timestep of the score.
      regularizers: (render, step) -> {name: weighted cost [b]}.
      batch: number of views of a step on all devices together.
      select_prompts: (tables, camera) -> a row of each table per view, and the function that predicts with them;
        `perp_neg.interpolate_view_prompts` is another.
      fit_shares_noise: score and fit share timestep and noise (`scores.score_and_denoising_loss`): a third fewer predictions.
      schedule: None updates scene and prior in every step, as the official LODS does. (m, k) takes turns, as the paper says: m
        steps of the scene alone, then k of the prior alone; what has no turn asks the prior nothing, and its metric is NaN.
      vae_slicing: encode one view after the other, which holds one view's activations at a time.
      reference_view: adds the costs of a known view to every step.
      auxiliary_priors: further priors, whose cotangents are added on the renders.

    The whole step maps (state, weights, texts, reference, key, views[b]) to (state, metrics). `texts` are prompt tables
    {name: [views n d]}, `reference` a `Reference` or None, `views` the global indices of this device's share of the batch. The
    metric `nonfinite_leaf` is the index of the first gradient that is not finite, in
    {"fit", "psi", "theta"} of theta and psi, or -1.
    """

    if fit_shares_noise and (objective.trained_query is None or objective.inversion):
        raise ValueError("fit_shares_noise needs an objective that learns something and draws its noise at random")
    if schedule is not None:
        if fit_shares_noise or objective.trained_query is None:
            raise ValueError("a schedule of turns needs an objective that learns something, and no fit_shares_noise")
        if min(schedule) < 1:
            raise ValueError(f"schedule must be two numbers of steps, each at least 1, got {schedule}")

    def compute_grads(state, weights, texts, reference, key, views) -> StepGrads:
        """What some views say of scene and prior."""
        k = jax.vmap(lambda key: split_named(key, "camera render encode score fit"))(view_keys(key, state.step, views))
        reference = reference or Reference()
        camera, b = cameras(k.camera, views), len(views)
        rows, predict_noise_fn = select_prompts(texts, camera)
        pose, predict = camera.c2w.reshape(b, 16), partial(prior.predict, weights)

        def forward(theta, means2d_probe):
            render = scene.render(theta, state.aux, camera, k.render, means2d_probe)
            z = encode_each(prior, weights, render.rgb, k.encode, vae_slicing)
            others = [
                z if g.shares_latents else encode_each(g.prior, w, render.rgb, k.encode, vae_slicing)
                for g, (w, _) in zip(auxiliary_priors, reference.auxiliary, strict=True)
            ]
            costs = regularizers(render, state.step)
            if reference_view:
                silent = reference_view.scene.means2d_probe(state.aux, 1)
                seen = reference_view.scene.render(theta, state.aux, reference.image.camera, k.render[:1], silent)
                # A share of it for each view: together the views of a step count it once.
                found = reference_view.costs(seen, reference.image, state.step)
                costs |= {name: jnp.broadcast_to(cost, (b,)) for name, cost in found.items()}
                if "total" in render.extras:  # what a scene needs room for, it needs in this view too
                    total = jnp.maximum(render.extras["total"], seen.extras["total"])
                    render = render.replace(extras=render.extras | {"total": total})
            return ((z, *others), sum(costs.values(), jnp.zeros(b))), (render, costs)

        (zs, _), pullback, (render, costs) = jax.vjp(forward, state.theta, scene.means2d_probe(state.aux, b), has_aux=True)
        latents = {"render": zs[0]} | ({} if reference.latents is None else {"reference": reference.latents})
        scene_on, prior_on = active_updates(schedule, state.step)
        at = window(state.step)
        if fit_shares_noise:
            both = jax.value_and_grad(score_and_denoising_loss, has_aux=True)
            (fit, own), g_psi = both(state.psi, objective, predict, latents, rows, at, k.score, pose, predict_noise_fn)
        else:
            scored = partial(score, objective, predict, state.psi, latents, rows, at, k.score, pose, predict_noise_fn)
            fitted = partial(jax.value_and_grad(denoising_loss), state.psi, objective, predict, latents, rows, k.fit, pose)
            own, (fit, g_psi) = cond_or_zeros(scene_on, scored), cond_or_zeros(prior_on, fitted)
        scores = {"score_rms": own}
        for i, (g, z, (w, tables)) in enumerate(zip(auxiliary_priors, zs[1:], reference.auxiliary, strict=True), 1):
            asked = g.select_prompts(tables, camera)
            keys = jax.vmap(jax.random.fold_in, (0, None))(k.score, i)
            further = partial(auxiliary_score, g, w, z, asked, g.window(state.step), keys, pose)
            scores[f"score_rms_{g.name}"] = g.weight(state.step) * cond_or_zeros(scene_on, further)
        g_theta, means2d_grad = pullback((tuple(x / batch for x in scores.values()), jnp.full(b, 1 / batch)))
        squares = {name: jnp.mean(x**2, tuple(range(1, x.ndim))) for name, x in scores.items()}
        return StepGrads(g_theta, g_psi, fit, ViewOutputs(means2d_grad, render, squares, costs))

    def apply_grads(state, p: StepGrads):
        theta, opt_theta = apply_gradients(tx_theta, p.g_theta, state.theta, state.opt_theta)
        psi, opt_psi = apply_gradients(tx_psi, p.g_psi, state.psi, state.opt_psi)
        aux = scene.update_stats(state.aux, p.outputs.means2d_grad, p.outputs.render)
        nonfinite_leaf = not_finite({"theta": p.g_theta, "psi": p.g_psi, "fit": p.fit})
        finite = nonfinite_leaf < 0
        scene_on, prior_on = active_updates(schedule, state.step)
        # A step with a non-finite gradient changes nothing but the counts: it can be told of, and it hides nothing.
        pick = lambda on, new, old: jax.tree.map(lambda a, b: jnp.where(finite & on, a, b), new, old)  # noqa: E731
        theta, aux, opt_theta = pick(scene_on, (theta, aux, opt_theta), (state.theta, state.aux, state.opt_theta))
        psi, opt_psi = pick(prior_on, (psi, opt_psi), (state.psi, state.opt_psi))
        new = TrainState(state.step + 1, theta, aux, psi, opt_theta, opt_psi, state.skipped + ~finite)
        metrics = {"fit": jnp.where(prior_on, p.fit, jnp.nan)}
        metrics |= {name: jnp.where(scene_on, jnp.sqrt(jnp.mean(x)), jnp.nan) for name, x in p.outputs.squares.items()}
        metrics |= {"grad": optax.tree.norm(p.g_theta), "nonfinite_leaf": nonfinite_leaf}
        return new, metrics | {name: jnp.mean(cost) for name, cost in p.outputs.costs.items()}

    return TrainStep(compute_grads, apply_grads)


def auxiliary_score(
    g: AuxiliaryPrior, weights: Any, z: Array, asked: tuple, at: tuple, keys: Key[Array, "b"], pose: Array
) -> Array:
    """The score of a further prior on the latents z; `asked` are a row of each table per view and how to ask with them."""
    rows, predict_noise_fn = asked
    return score(g.objective, partial(g.prior.predict, weights), {}, {"render": z}, rows, at, keys, pose, predict_noise_fn)


def make_diagnosis(
    scene: Scene,
    prior: Prior,
    objective: Objective,
    cameras: Callable[[Key[Array, "b"], Int[Array, "b"]], Camera],
    batch: int,
    vae_slicing: bool = False,
) -> Callable[..., dict[str, jax.Array]]:
    """Builds (state, psi_0, weights, texts, key) -> {"psi_displacement", "fit_gain"}: has the learnable branch learned?

    psi_displacement is the root mean square of psi - psi_0; fit_gain the fit loss of psi_0 minus that of psi, with the same
    noise on the same renders. Where both stay 0, LODS is only the limit that it starts from. `objective` must fit something.
    """

    @jax.jit
    def diagnose(state, psi_0, weights, texts, key):
        views = batch + jnp.arange(batch)  # beyond those of the step: what the step draws is not drawn again
        k = jax.vmap(lambda key: split_named(key, "camera render encode fit"))(view_keys(key, state.step, views))
        camera = cameras(k.camera, views)
        render = scene.render(state.theta, state.aux, camera, k.render, scene.means2d_probe(state.aux, batch))
        z = encode_each(prior, weights, render.rgb, k.encode, vae_slicing)
        rows, _ = select_view_prompts(texts, camera)
        predict, pose = partial(prior.predict, weights), camera.c2w.reshape(batch, 16)
        # One after the other, not side by side: a second copy of the network would double the compilation.
        both = jax.tree.map(lambda x_0, x: jnp.stack([x_0, x]), psi_0, state.psi)
        before, after = jax.lax.map(lambda psi: denoising_loss(psi, objective, predict, {"render": z}, rows, k.fit, pose), both)
        moved = [(x - x_0).ravel() for x, x_0 in zip(jax.tree.leaves(state.psi), jax.tree.leaves(psi_0), strict=True)]
        return {"psi_displacement": jnp.sqrt(jnp.mean(jnp.concatenate(moved) ** 2)), "fit_gain": before - after}

    return diagnose


def encode_each(prior: Prior, weights: Any, rgb: Array, keys: Key[Array, "b"], slicing: bool = False) -> Array:
    """The latents of views [b ...], one key per view: the encoder's noise must not depend on who else is in the batch.

    Args:
      slicing: one view after the other, which holds the activations of one at a time; the backward pass makes them again.
    """
    one = lambda view: prior.encode(weights, view[0][None], view[1])[0]  # noqa: E731
    return (partial(jax.lax.map, jax.checkpoint(one, prevent_cse=False)) if slicing else jax.vmap(one))((rgb, keys))


def active_updates(schedule: tuple[int, int] | None, step: Array) -> tuple[Array | bool, Array | bool]:
    """Whether a step updates the scene, and whether it updates the prior."""
    if schedule is None:
        return True, True
    scene_on = step % sum(schedule) < schedule[0]
    return scene_on, ~scene_on


def cond_or_zeros(on: Array | bool, f: Callable[[], Any]) -> Any:
    """f(), or zeros like it where it has no turn."""
    if on is True:
        return f()
    return jax.lax.cond(on, f, lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(f)))


def apply_gradients(tx: optax.GradientTransformation, grads: Any, params: Any, opt: optax.OptState) -> tuple[Any, optax.OptState]:
    """One step of an optax optimizer."""
    updates, opt = tx.update(grads, opt, params)
    return optax.apply_updates(params, updates), opt


def not_finite(tree: Any) -> jax.Array:
    """Index of the first leaf with a NaN or an infinity, -1 if there is none. `leaf_names` has their names."""
    bad = jnp.asarray([~jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)] + [False])
    return jnp.where(jnp.any(bad), jnp.argmax(bad), -1)


def leaf_names(tree: Any) -> list[str]:
    """Names of the leaves in the order of `jax.tree.leaves`: "theta.means", ..."""
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
