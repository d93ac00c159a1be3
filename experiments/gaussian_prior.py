"""The whole argument on one pixel: where every objective lands, with a prior whose score is known exactly.

    python experiments/gaussian_prior.py           # every objective at four guidance scales, about 2 minutes on 2 cores

Images of the text "y" are drawn from N(1, 0.5^2), of the empty text from N(0.2, 0.5^2), of the source text from N(0.5, 0.5^2);
DDS has a reference at 0.5. A good image is 1. Guidance pulls SDS on to the point where its residual vanishes, 0.2 + 0.8 s: a good
image is pushed away. LODS learns the mean of the unconditional branch on the current image; where the image is 1 the learned
branch says 1 too, and the image stays. This is also the shortest complete use of the library: a scene, a prior, an objective, one
train step.

What each is expected to do is worked out without training: the expected residual is affine in the pixel, so two evaluations of it
in exact arithmetic give its root (`fixed_point`). Where guidance alone is left there is none: the pixel runs away.
"""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lods_jax.core.cameras import sample_orbit
from lods_jax.core.noise_schedule import STABLE_DIFFUSION
from lods_jax.core.types import Cond, Objective, Reference
from lods_jax.distillation.objectives import OBJECTIVES
from lods_jax.distillation.parallel import compile_train_step
from lods_jax.distillation.train_step import init_state, make_train_step
from lods_jax.priors.gaussian import gaussian
from lods_jax.scenes.images import pixels

MEANS, SIGMA, BATCH = {"": 0.2, "y": 1.0, "now": 0.5}, 0.5, 16
TEXTS = {"prompt": "y", "plain": "y", "null": "", "empty": "", "source": "now"}
REFERENCE, WINDOW = 0.5, (20, 980)
SCALES = (1.0, 2.0, 7.5, 100.0)


def run(objective: Objective, steps: int = 1500, lr: float = 0.05, psi_lr: float = 0.05, seed: int = 0) -> tuple[float, Any]:
    """Distils one pixel; returns its mean value over the last fifth of the run, and psi."""
    # A Gaussian has no camera to be conditioned on.
    objective = objective._replace(queries={name: query._replace(pose=False) for name, query in objective.queries.items()})
    scene, prior = pixels(1, 1, start=0.5), gaussian(MEANS, SIGMA)
    weights = prior.init(jax.random.key(0))
    table = {name: prior.embed(weights, [text] * 4) for name, text in TEXTS.items()}
    psi = prior.init_psi(weights, jax.random.key(1), table["null"][0], objective.trained_queries)
    tx_theta = optax.adam(optax.cosine_decay_schedule(lr, steps, 0.05), b1=0.5)
    tx_psi = optax.adam(psi_lr)
    build = make_train_step(
        scene,
        prior,
        objective,
        cameras=lambda keys, views: sample_orbit(keys, views, BATCH),
        window=lambda step: WINDOW,
        tx_theta=tx_theta,
        tx_psi=tx_psi,
        batch=BATCH,
    )
    step, key = compile_train_step(build, "jit", BATCH), jax.random.key(seed)
    state, values = init_state(scene, psi, tx_theta, tx_psi, key), []
    reference = Reference(latents=jnp.full((BATCH, 1, 1, 3), REFERENCE))
    for i in range(steps):
        state, _ = step(state, weights, table, reference, key)
        if i >= 4 * steps // 5:
            values.append(jnp.mean(state.theta["rgb"]))
    return float(np.mean(values)), state.psi


def expected_residual(objective: Objective, value: float) -> float:
    """Mean of w(t) residual over the window at a pixel of this value, its learned branch fitted perfectly to it.

    The residual is linear in the noise, so its mean is what zero noise gives.
    """
    t = jnp.arange(WINDOW[0], WINDOW[1] + 1)
    prior, zero = gaussian(MEANS, SIGMA), jnp.zeros((len(t), 1, 1, 3))

    def eps(mean, z_t, t):
        return prior.predict({}, {}, z_t, t, Cond(jnp.full((len(t), 1, 1), mean)))

    def noised(latent):
        return jnp.sqrt(jnp.asarray(STABLE_DIFFUSION.alpha_bar))[t][:, None, None, None] * (latent + zero)

    z_t, noise = {"render": noised(value), "reference": noised(REFERENCE)}, zero
    if objective.inversion:
        z_t["render"], noise = objective.inversion(
            STABLE_DIFFUSION, lambda text, z, t: eps(MEANS[TEXTS[text]], z, t), value + zero, t, zero
        )
    mean = lambda name, query: value if name == objective.trained_query else MEANS[TEXTS[query.text]]  # noqa: E731
    e = {name: eps(mean(name, query), z_t[query.latents], t) for name, query in objective.queries.items()}
    return float(jnp.mean(objective.weight(STABLE_DIFFUSION, t)[:, None, None, None] * objective.residual(e, noise, t)))


def fixed_point(objective: Objective) -> float:
    """Where the expected residual vanishes: a root of an affine function; inf where it does not depend on the pixel."""
    at_0, at_1 = expected_residual(objective, 0.0), expected_residual(objective, 1.0)
    slope = at_1 - at_0
    return -at_0 / slope if slope > 1e-4 * abs(at_0) else float("inf")


def main() -> None:
    print(f"{'objective':>16}" + "".join(f"{f's = {s:g}':>22}" for s in SCALES) + "    (landed / expected)")
    for name, factory in OBJECTIVES.items():
        if factory().noise:  # it goes where its one noise leads, and has no mean
            continue
        cells = []
        for s in SCALES if "s" in inspect.signature(factory).parameters else (None,):
            objective = factory() if s is None else factory(s=s)
            point = fixed_point(objective)
            # A far target needs a faster pixel; one that runs away is stopped.
            lr = 0.05 * max(1.0, abs(point) / 5) if np.isfinite(point) else 0.05
            value, _ = run(objective, lr=lr, psi_lr=lr)
            cells.append(f"{value:10.3f} / {point:<9.3f}" if np.isfinite(point) else f"{value:10.3f} / {'runs away':<9}")
        print(f"{name:>16}" + "".join(f"{cell:>22}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
