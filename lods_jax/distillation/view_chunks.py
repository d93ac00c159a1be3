"""A train step that computes a few views at a time: the memory of so many, and the gradients of all."""

import jax
import jax.numpy as jnp

from lods_jax.distillation.train_step import StepGrads, TrainStep


def chunk_size(most: int, views: int, group: int = 1) -> int:
    """The number of views in each of equal chunks.

    Args:
        most: views in a chunk, if a group is not larger.
        views: of a step, a multiple of `group`.
        group: number of views that cannot be parted.

    Returns:
        The largest number of whole groups' views that divides `views` and is at most `most`; one group if there is none.

    Examples:
        >>> chunk_size(4, 6), chunk_size(2, 8, group=4)
        (3, 4)
    """
    groups = views // group
    return group * max((n for n in range(1, groups + 1) if groups % n == 0 and group * n <= most), default=1)


def in_chunks(train_step: TrainStep, most: int, group: int | None = None) -> TrainStep:
    """A train step that computes its gradients over chunks of views, one after the other, and adds them up.

    Views draw their random numbers by their global index, so that the sums are those of all views at once, in another order.

    Args:
        train_step: the two halves.
        most: views in a chunk; equal chunks may be smaller, see `chunk_size`.
        group: number of views that cannot be parted; None for the step's own.

    Returns:
        The two halves. `compute_grads` raises ValueError for reference latents, which it cannot part.
    """

    def compute_grads(state, weights, texts, reference, key, views) -> StepGrads:
        size = chunk_size(most, len(views), group or train_step.group)
        chunks = len(views) // size
        if chunks == 1:
            return train_step.compute_grads(state, weights, texts, reference, key, views)
        if reference is not None and reference.latents is not None:
            raise ValueError("a step in chunks of views takes no reference latents")

        def add(total, part):
            p = train_step.compute_grads(state, weights, texts, reference, key, part)
            return jax.tree.map(jnp.add, total, (p.g_theta, p.g_psi, p.fit)), p.outputs

        nothing = *jax.tree.map(jnp.zeros_like, (state.theta, state.psi)), jnp.zeros(())
        (g_theta, g_psi, fit), outputs = jax.lax.scan(add, nothing, views.reshape(chunks, size))
        mean = lambda x: x / chunks  # noqa: E731
        joined = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), outputs)
        return StepGrads(g_theta, jax.tree.map(mean, g_psi), mean(fit), joined)

    return train_step._replace(compute_grads=compute_grads)
