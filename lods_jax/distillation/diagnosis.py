"""Whether the learnable branch of an objective has learned: how far psi moved, and by how much it denoises better."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from lods_jax.core.random import group_keys, split_named, view_keys
from lods_jax.core.types import Camera, Objective, Prior, Scene
from lods_jax.distillation.latents import encode_each
from lods_jax.distillation.scores import bind, denoising_loss
from lods_jax.distillation.train_step import select_view_prompts


def make_diagnosis(
    scene: Scene,
    prior: Prior,
    objective: Objective,
    cameras: Callable[[Key[Array, "b"], Int[Array, "b"]], Camera],
    batch: int,
    vae_slicing: bool = False,
    at_once: int | None = None,
) -> Callable[..., dict[str, jax.Array]]:
    """Builds a function that measures whether the learnable branch has learned.

    Where both of its numbers stay 0, LODS is no more than its limit at initialisation, SDS / s.

    Args:
        scene: renders theta.
        prior: predicts noise.
        objective: must train a query.
        cameras: (keys [b], views [b]) -> b cameras; the views of a group of `prior.views` come with one key.
        batch: number of views.
        vae_slicing: whether views are encoded one after the other.
        at_once: number of views that are computed at a time, which divides `batch`; None for all.

    Returns:
        A function (state, psi_0, weights, texts, key) -> {"psi_displacement": root mean square of psi - psi_0, "fit_gain":
            denoising loss of psi_0 minus that of psi, with the same noise on the same renders}.
    """

    def losses(state, psi_0, weights, texts, key, views):
        """The denoising losses of psi_0 and of psi on renders of these views."""
        k = jax.vmap(lambda key: split_named(key, "camera render encode fit"))(view_keys(key, state.step, views))
        k_camera, k_render = (group_keys(keys, prior.views) for keys in (k.camera, k.render))
        camera = cameras(k_camera, views)
        render = scene.render(state.theta, state.aux, camera, k_render, scene.means2d_probe(state.aux, len(views)))
        z = encode_each(prior, weights, render.rgb, k.encode, vae_slicing)
        rows, _ = select_view_prompts(texts, camera)
        denoiser, pose = bind(prior, weights), camera.c2w.reshape(-1, 16)
        # One after the other, not side by side: a second copy of the network would double the compilation.
        both = jax.tree.map(lambda x_0, x: jnp.stack([x_0, x]), psi_0, state.psi)
        return jax.lax.map(lambda psi: denoising_loss(psi, objective, denoiser, {"render": z}, rows, k.fit, pose), both)

    @jax.jit
    def diagnose(state, psi_0, *rest):
        views = batch + jnp.arange(batch)  # beyond those of the step: what the step draws is not drawn again
        of_chunk = lambda views: losses(state, psi_0, *rest, views)  # noqa: E731
        before, after = jnp.mean(jax.lax.map(of_chunk, views.reshape(-1, at_once or batch)), 0)
        moved = [(x - x_0).ravel() for x, x_0 in zip(jax.tree.leaves(state.psi), jax.tree.leaves(psi_0), strict=True)]
        return {"psi_displacement": jnp.sqrt(jnp.mean(jnp.concatenate(moved) ** 2)), "fit_gain": before - after}

    return diagnose
