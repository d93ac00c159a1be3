"""n scenes of one kind as one: view i shows particle i % n. Several particles under one prior, as VSD has them."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from lods_jax.core.types import Camera, Render, Scene


def ensemble(scene: Scene, n: int) -> Scene:
    """n particles of a scene, from independent random starts (Wang et al. 2023, algorithm 1): view i shows particle i % n.

    theta and aux gain a leading axis [n ...]. A step needs a multiple of n views on each device. A particle is seen in one of n
    views, so its gradient is 1/n of what it would be alone. Adam does not change with that scale, and regularizers shrink with
    the score.

    Args:
        scene: of one particle.
        n: number of particles.

    Returns:
        The scene of all. Its `render` raises ValueError if the views cannot be split evenly over the particles.
    """

    def init(key: Key[Array, ""]):
        return jax.vmap(scene.init)(jax.random.split(key, n))

    def render(theta, aux, camera: Camera, keys: Key[Array, "b"], means2d_probe) -> Render:
        if len(keys) % n:
            raise ValueError(f"{n} particles need a multiple of {n} views on each device, got {len(keys)}")
        one = lambda x: scene.render(*x)  # noqa: E731
        return merged(jax.lax.map(one, (theta, aux, *shared_out((camera, keys, means2d_probe), n))))

    def means2d_probe(aux, b: int):
        return scene.means2d_probe(jax.tree.map(lambda x: x[0], aux), b)

    def update_stats(aux, means2d_grad, rendered: Render):
        # A scene takes its gradient to be of the mean over its own views, and it is of the mean over all.
        means2d_grad = jax.tree.map(lambda g: n * g, means2d_grad)
        return jax.vmap(scene.update_stats)(aux, *shared_out((means2d_grad, rendered), n))

    return Scene(init, render, means2d_probe, update_stats, scene.colors)


def shared_out(tree: Any, n: int) -> Any:
    """Splits views [b ...] by particle: [n b/n ...].

    Args:
        tree: of arrays [b ...].
        n: number of particles.

    Returns:
        A tree of arrays [n b/n ...].
    """
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, n, *x.shape[1:]), 1, 0), tree)


def merged(tree: Any) -> Any:
    """The inverse of `shared_out`: a tree of arrays [n b/n ...] as [b ...], with the views in their order."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), tree)
