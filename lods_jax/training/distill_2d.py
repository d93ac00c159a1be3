"""2-D distillation: images, or their latents, optimised under an objective. Generation from noise, editing from an image.

No renderer stands between prior and parameters, so this is where objectives are compared fastest. The train step is the one of
3-D: a scene of particles, a prior, an objective.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Array, Float

from lods_jax.core.cameras import sample_orbit
from lods_jax.core.types import Objective, Prior, Reference, TrainState
from lods_jax.distillation.latents import encode_each
from lods_jax.distillation.parallel import compile_train_step
from lods_jax.distillation.scores import bind, denoising_loss
from lods_jax.distillation.train_step import apply_gradients, init_state, make_train_step
from lods_jax.scenes.images import image_batch


class DistillConfig(NamedTuple):
    """Steps, rates and timesteps of a 2-D distillation.

    Attributes:
        steps: number of steps.
        lr: learning rate of Adam on the images or latents.
        decay: share of lr at the end of a cosine.
        b2: of Adam, on the images and on the learned branch.
        psi_lr: learning rate of Adam on the learned branch; None for 0.03 for an embedding and 0.003 for an adapter.
        window: lowest and highest timestep of the score, both included.
        fit_shares_noise: see `train_step.make_train_step`.
        schedule: see `train_step.make_train_step`.
        fit_first: steps that train the learned branch on the start, before anything else.
    """

    steps: int = 500
    lr: float = 0.05
    decay: float = 0.1
    b2: float = 0.99
    psi_lr: float | None = None
    window: tuple[int, int] = (20, 980)
    fit_shares_noise: bool = False
    schedule: tuple[int, int] | None = None
    fit_first: int = 0


def distill(
    prior: Prior,
    weights: Any,
    objective: Objective,
    texts: dict[str, Float[Array, "views k d"]],
    start: Float[Array, "n h w c"],
    recipe: DistillConfig,
    seed: int = 0,
    reference: Float[Array, "n h w c"] | None = None,
) -> Iterator[tuple[TrainState, dict[str, jax.Array]]]:
    """Optimises images, or their latents, under an objective; yields after each step.

    Args:
        prior: `in_latents(prior)` for latents.
        weights: its frozen parameters.
        objective: its pose is not used: an image has no camera.
        texts: {name: tokens [views k d]}, an embedded `prompts.prompt_table`.
        start: images or latents [n h w c].
        recipe: steps and rates.
        seed: of all noise.
        reference: latents [n h w c] that the objective compares with (DDS).

    Yields:
        State and metrics after each step; the images are state.theta["x"], in the form that `prior.encode` takes.

    Raises:
        ValueError: the objective needs a reference or a text that is not given, or keeps one noise for the run.
    """
    n, scene = len(start), image_batch(start)
    if objective.noise:
        raise ValueError("an objective that keeps one noise needs 3D, whose timesteps fall over the run: take another for images")
    if reference is None and any(query.latents == "reference" for query in objective.queries.values()):
        raise ValueError("this objective compares with a reference: an image to edit")
    if absent := sorted({query.text for query in objective.queries.values()} - {"learned", *texts}):
        raise ValueError(f"this objective asks with the text {absent[0]!r}, which there is none of here: edit an image instead")
    # An image has no camera: whatever asks for its pose is asked without.
    objective = objective._replace(queries={name: query._replace(pose=False) for name, query in objective.queries.items()})
    k_psi, k_fit, key = jax.random.split(jax.random.key(seed), 3)
    psi = prior.init_psi(weights, k_psi, texts["null"][0], objective.trained_queries)
    tx_theta, tx_psi = optimizers(recipe, psi)
    if objective.trained_query and recipe.fit_first:
        psi = fit_on(prior, weights, objective, texts, start, psi, tx_psi, k_fit, recipe.fit_first)
    options = {"cameras": lambda keys, views: sample_orbit(keys, views, n), "window": lambda step: recipe.window, "batch": n}
    options |= {"fit_shares_noise": recipe.fit_shares_noise, "schedule": recipe.schedule}
    step = compile_train_step(make_train_step(scene, prior, objective, tx_theta=tx_theta, tx_psi=tx_psi, **options), "jit", n)
    state, inputs = init_state(scene, psi, tx_theta, tx_psi, key), Reference(latents=reference)
    for _ in range(recipe.steps):
        state, metrics = step(state, weights, texts, inputs, key)
        yield state, metrics


def optimizers(recipe: DistillConfig, psi: Any) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """Adam for the images, and Adam for the learned branch.

    Args:
        recipe: rates.
        psi: the learned branch.

    Returns:
        Two optimizers.
    """
    tx_theta = optax.adam(optax.cosine_decay_schedule(recipe.lr, recipe.steps, recipe.decay), b2=recipe.b2)
    rate = recipe.psi_lr if recipe.psi_lr is not None else 3e-2 if "embedding" in psi else 3e-3
    return tx_theta, optax.adam(rate, b2=recipe.b2)


def fit_on(prior, weights, objective, texts, images, psi, tx, key, steps: int) -> Any:
    """Trains the learned branch to denoise images that stay as they are.

    Args:
        prior: encodes, and predicts the noise.
        weights: its frozen parameters.
        objective: names the trained query.
        texts: {name: tokens [views k d]}.
        images: [n h w c].
        psi: the learned branch.
        tx: its optimizer.
        key: of all noise.
        steps: number of steps.

    Returns:
        The trained branch.
    """
    rows = {name: table[np.zeros(len(images), int)] for name, table in texts.items()}

    @jax.jit
    def step(psi, opt, key, weights, images, rows):
        k_encode, k_fit = (jax.random.split(k, len(images)) for k in jax.random.split(key))
        z = encode_each(prior, weights, images, k_encode)
        gradient = jax.grad(denoising_loss)(psi, objective, bind(prior, weights), {"render": z}, rows, k_fit)
        return apply_gradients(tx, gradient, psi, opt)

    opt = tx.init(psi)
    for i in range(steps):
        psi, opt = step(psi, opt, jax.random.fold_in(key, i), weights, images, rows)
    return psi


def in_latents(prior: Prior) -> Prior:
    """The prior for scenes that hold latents: its `encode` leaves them as they are.

    Args:
        prior: any.

    Returns:
        A prior in its place.
    """
    return prior._replace(encode=lambda weights, z, key: z)


def film(
    steps: Iterator[tuple[TrainState, dict[str, jax.Array]]], show: Callable[[Array], Array], total: int, frames: int = 48
) -> tuple[Float[np.ndarray, "f n h w 3"], TrainState]:
    """Runs the steps with a progress bar, and keeps images at equal distances.

    Args:
        steps: from `distill`.
        show: theta["x"] -> images.
        total: number of steps.
        frames: number of images to keep, about.

    Returns:
        Images [f n h w 3], and the last state.
    """
    from tqdm import tqdm

    shots, every = [], max(1, total // frames)
    with tqdm(total=total, disable=None, unit="step", mininterval=0.5) as bar:
        for i, (state, metrics) in enumerate(steps, 1):
            if i % every == 0 or i == total:
                shots.append(np.asarray(show(state.theta["x"])))
                bar.set_postfix_str(f"score {float(metrics['score_rms']):.3g}, fit {float(metrics['fit']):.3g}")
            bar.update()
    return np.stack(shots), state
