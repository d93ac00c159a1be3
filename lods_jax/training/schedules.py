"""Settings that change at the switch of a run: pairs of values, the first before it, the second from there on."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array

from lods_jax.config import Config, PoseConfig, TimestepConfig
from lods_jax.core.noise_schedule import T


def phase(config: Config, pair: tuple, step: Array | int) -> Array:
    """The value of a pair at a step."""
    return jnp.where(step < config.switch * config.steps, *pair)


def window(config: Config, limits: TimestepConfig | PoseConfig) -> Callable[[Array], tuple[Array, Array]]:
    """step -> lowest and highest timestep, of fractions of all timesteps."""
    low, high = (tuple(int(T * x) for x in pair) for pair in (limits.min, limits.max))
    return lambda step: (phase(config, low, step), phase(config, high, step))
