"""The whole argument on one pixel: why SDS overshoots and LODS does not, with a prior whose score is known exactly.

    python experiments/gaussian_prior.py           # half a minute

Images of the text "y" are drawn from N(1, 0.5^2), images of the empty text from N(0.2, 0.5^2). A good image is 1. Guidance
pulls SDS on to the point where its residual vanishes, 0.2 + 0.8 s: a good image is pushed away. LODS learns the mean of the
unconditional branch on the current image; where the image is 1 the learned branch says 1 too, and the image stays. This is also
the shortest complete use of the library: a scene, a prior, an objective, one train step.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lods_jax.cameras import sample_orbit
from lods_jax.objectives import csd, lods_embedding, sds
from lods_jax.priors.analytic import gaussian
from lods_jax.scenes.pixels import pixels
from lods_jax.train import init_state, make_train_step, parallelise
from lods_jax.types import Objective

MEANS, SIGMA, BATCH = {"": 0.2, "y": 1.0}, 0.5, 16


def run(objective: Objective, steps: int = 1500, lr: float = 0.05, psi_lr: float = 0.05, seed: int = 0) -> tuple[float, Any]:
    """Distils one pixel; returns its mean value over the last fifth of the run, and psi."""
    scene, prior = pixels(1, 1, start=0.5), gaussian(MEANS, SIGMA)
    weights = prior.init(jax.random.key(0))
    table = {"prompt": prior.embed(weights, ["y"] * 4), "null": prior.embed(weights, [""] * 4)}
    fitted = [objective.queries[objective.fit]] if objective.fit else []
    psi = prior.init_psi(weights, jax.random.key(1), table["null"][0], fitted)
    tx_theta = optax.adam(optax.cosine_decay_schedule(lr, steps, 0.05), b1=0.5)
    tx_psi = optax.adam(psi_lr)
    build = make_train_step(
        scene,
        prior,
        objective,
        cameras=lambda keys, views: sample_orbit(keys, views, BATCH),
        window=lambda step: (20, 980),
        tx_theta=tx_theta,
        tx_psi=tx_psi,
        batch=BATCH,
    )
    step, key = parallelise(build, "jit", BATCH), jax.random.key(seed)
    state, values = init_state(scene, psi, tx_theta, tx_psi, key), []
    for i in range(steps):
        state, _ = step(state, weights, table, None, key)
        if i >= 4 * steps // 5:
            values.append(jnp.mean(state.theta["rgb"]))
    return float(np.mean(values)), state.psi


def main() -> None:
    print(f"{'objective':>24} {'lands on':>9} {'expected':>9}")
    for s in (1.0, 2.0, 5.0):
        value, _ = run(sds(s))
        print(f"{f'SDS s = {s:g}':>24} {value:9.3f} {0.2 + 0.8 * s:9.3f}")
    for s in (5.0, 100.0):
        value, psi = run(lods_embedding(s))
        print(f"{f'LODS-embedding s = {s:g}':>24} {value:9.3f} {1.0:9.3f}   learned branch {float(psi['embedding'][0, 0]):.3f}")
    value, _ = run(csd())
    print(f"{'CSD':>24} {value:9.3f} {'no stop':>9}")


if __name__ == "__main__":
    main()
