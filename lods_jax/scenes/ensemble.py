"""n scenes of one kind as one: views show the particles in turn. Several particles under one prior, as VSD has them."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from lods_jax.core.types import Camera, Render, Scene


def ensemble(scene: Scene, n: int, group: int = 1) -> Scene:
    """n particles of a scene, from independent random starts (Wang et al. 2023, algorithm 1): group i shows particle i % n.

    theta and aux gain a leading axis [n ...]. A step needs a multiple of n groups on each device. A particle is seen in one of n
    views, so its gradient is 1/n of what it would be alone. Adam does not change with that scale, and regularizers shrink with
    the score.

    Args:
        scene: of one particle.
        n: number of particles.
        group: number of views in a row that show one particle; 1 unless the prior denoises several together.

    Returns:
        The scene of all. Its `render` raises ValueError if the views cannot be split evenly over the particles.
    """

    def init(key: Key[Array, ""]):
        return jax.vmap(scene.init)(jax.random.split(key, n))

    def render(theta, aux, camera: Camera, keys: Key[Array, "b"], means2d_probe) -> Render:
        if len(keys) % (n * group):
            raise ValueError(f"{n} particles need a multiple of {n * group} views on each device, got {len(keys)}")
        one = lambda x: scene.render(*x)  # noqa: E731
        return merged(jax.lax.map(one, (theta, aux, *shared_out((camera, keys, means2d_probe), n, group))), group)

    def means2d_probe(aux, b: int):
        return scene.means2d_probe(jax.tree.map(lambda x: x[0], aux), b)

    def update_stats(aux, means2d_grad, rendered: Render):
        # A scene takes its gradient to be of the mean over its own views, and it is of the mean over all.
        means2d_grad = jax.tree.map(lambda g: n * g, means2d_grad)
        return jax.vmap(scene.update_stats)(aux, *shared_out((means2d_grad, rendered), n, group))

    return Scene(init, render, means2d_probe, update_stats, scene.colors, n)


def shared_out(tree: Any, n: int, group: int = 1) -> Any:
    """Splits views [b ...] by particle: [n b/n ...].

    Args:
        tree: of arrays [b ...].
        n: number of particles.
        group: number of views in a row that show one particle.

    Returns:
        A tree of arrays [n b/n ...].
    """

    def split(x):
        groups = jnp.moveaxis(x.reshape(-1, n, group, *x.shape[1:]), 1, 0)
        return groups.reshape(n, -1, *x.shape[1:])

    return jax.tree.map(split, tree)


def merged(tree: Any, group: int = 1) -> Any:
    """The inverse of `shared_out`: a tree of arrays [n b/n ...] as [b ...], with each group of views in its order."""

    def join(x):
        groups = jnp.moveaxis(x.reshape(len(x), -1, group, *x.shape[2:]), 0, 1)
        return groups.reshape(-1, *x.shape[2:])

    return jax.tree.map(join, tree)
