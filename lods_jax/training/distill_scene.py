"""Distillation in one call, for scripts: a scene, a prior and an objective, whoever wrote them, and one prompt."""

from collections.abc import Iterator
from typing import Any

import jax
import optax

from lods_jax.core.cameras import TABLETOP, Orbit, sample_orbit
from lods_jax.core.random import run_key
from lods_jax.core.types import Objective, Prior, Scene, TrainState
from lods_jax.distillation.parallel import compile_train_step
from lods_jax.distillation.prompts import prompt_table
from lods_jax.distillation.train_step import init_state, make_train_step


def distill_scene(
    scene: Scene,
    prior: Prior,
    objective: Objective,
    prompt: str,
    *,
    steps: int = 500,
    batch: int = 4,
    lr: float | optax.GradientTransformation = 0.01,
    psi_lr: float = 3e-3,
    negative_prompt: str = "",
    view_words: bool = True,
    window: tuple[int, int] = (20, 980),
    orbit: Orbit = TABLETOP,
    weights: Any = None,
    seed: int = 0,
    **options: Any,
) -> Iterator[tuple[TrainState, dict[str, jax.Array]]]:
    """Distils a prior into a scene, on one device. `build` and `train` do the same from a configuration.

    Args:
        scene: what is optimised.
        prior: the diffusion model that is asked.
        objective: the formula of the score.
        prompt: what the scene is to become.
        steps: how many steps are yielded.
        batch: random views of a step, a multiple of `prior.views`.
        lr: learning rate of Adam on the scene's parameters, or an optax optimizer of one's own.
        psi_lr: learning rate of Adam on what is learned of the prior.
        negative_prompt: the text of the unconditional branch.
        view_words: whether the prompt of a view names it, "a red mug, front view"; a prior of several views sees their cameras
            and needs no words.
        window: lowest and highest diffusion timestep of the score, of 0..999.
        orbit: the distribution of cameras.
        weights: of the prior; by default what its `init` gives.
        seed: of everything that is drawn.
        **options: of `make_train_step`: `regularizers`, `schedule`, `fit_shares_noise`, ...

    Yields:
        State and metrics after each step: `state.theta` are the scene's parameters, `state.psi` what was learned of the prior.
            The state is given away to the next step: copy what has to outlive it.

    Raises:
        ValueError: the objective asks with a text or with latents that a prompt alone does not give.

    Examples:
        >>> from lods_jax.distillation.objectives import sds
        >>> from lods_jax.priors.gaussian import gaussian
        >>> from lods_jax.scenes.images import pixels
        >>> prior = gaussian({"": 0.2, "light": 0.8})
        >>> *_, (state, metrics) = distill_scene(pixels(4, 4), prior, sds(1.0), "light", steps=2, view_words=False)
        >>> int(state.step)
        2
    """
    table = prompt_table(prompt, negative_prompt, view_words and prior.views == 1)
    for query in objective.queries.values():
        if query.text not in ("learned", *table) or query.latents != "render":
            raise ValueError(
                f"the objective asks with the text {query.text!r} on {query.latents} latents, which there are none of"
            )
    weights = prior.init(jax.random.key(0)) if weights is None else weights
    texts = {name: prior.embed(weights, list(rows)) for name, rows in table.items()}
    psi = prior.init_psi(weights, run_key(seed, "psi"), texts["null"][0], objective.trained_queries)
    tx_theta = lr if isinstance(lr, optax.GradientTransformation) else optax.adam(lr, b2=0.99)
    tx_psi = optax.adam(psi_lr, b2=0.99)
    made = make_train_step(
        scene,
        prior,
        objective,
        cameras=lambda keys, views: sample_orbit(keys, views, batch, orbit, prior.views),
        window=lambda step: window,
        tx_theta=tx_theta,
        tx_psi=tx_psi,
        batch=batch,
        **options,
    )
    step, state = compile_train_step(made, "jit", batch), init_state(scene, psi, tx_theta, tx_psi, run_key(seed, "scene"))
    key = run_key(seed, "train")
    for _ in range(steps):
        state, metrics = step(state, weights, texts, None, key)
        yield state, metrics
