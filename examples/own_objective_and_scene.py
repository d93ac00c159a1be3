"""An objective and a scene of one's own, on a prior whose answer is known: a lamp that the prior knows to be at 0.7."""

import jax.numpy as jnp

import lods_jax


def render(theta, aux, camera, keys, means2d_probe):
    """A lamp that every camera sees alike: one colour in an image of 8 x 8 pixels."""
    rgb = jnp.broadcast_to(theta["color"], (len(camera.view), 8, 8, 3))
    return lods_jax.Render(rgb, jnp.ones_like(rgb[..., :1]), jnp.ones_like(rgb[..., :1]), {})


def denoised_score() -> lods_jax.Objective:
    """e[prompt] minus what a branch that learns the renders predicts of them: VSD at s = 1 with a learned embedding."""
    queries = {"y": lods_jax.Query("prompt"), "q": lods_jax.Query("learned")}
    return lods_jax.Objective(queries, residual=lambda e, noise, t: e["y"] - e["q"], trained_query="q")


scene = lods_jax.Scene(init=lambda key: ({"color": jnp.full(3, 0.2)}, {}), render=render)
prior = lods_jax.gaussian_prior({"a lamp": 0.7, "": 0.2})
for state, metrics in lods_jax.distill_scene(scene, prior, denoised_score(), "a lamp", view_words=False, psi_lr=0.03, steps=400):
    if int(state.step) % 100 == 0:
        print(f"step {state.step}: color {state.theta['color']}, score {metrics['score_rms']:.3f}")
