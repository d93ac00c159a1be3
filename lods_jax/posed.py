"""Asking a prior that knows a picture and the pose from which it was taken (`priors.zero123`)."""

from functools import partial
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from lods_jax.objectives import Ask, ask
from lods_jax.types import Camera, Objective


def by_pose(tables: dict[str, Any], camera: Camera) -> tuple[dict[str, Array], Ask]:
    """A `texts_of` for `train.make_train_step`: the token of each view, from its pose relative to that of the picture."""
    b = len(camera.azimuth)
    pose = relative_pose(tables["camera"], camera)
    seen = jnp.concatenate([jnp.broadcast_to(tables["embedding"], (b, len(tables["embedding"]))), pose], -1)
    token = (seen @ tables["join"]["kernel"] + tables["join"]["bias"][None])[:, None]
    image = jnp.broadcast_to(tables["image"], (b, *tables["image"].shape))
    return {"prompt": token, "null": jnp.zeros_like(token)}, partial(ask, image=image)


def relative_pose(one: Camera, camera: Camera) -> Float[Array, "b 4"]:
    """Polar angle, sine and cosine of the azimuth, and distance, each relative to those of camera `one`."""
    turn = camera.azimuth - one.azimuth
    return jnp.stack([one.elevation - camera.elevation, jnp.sin(turn), jnp.cos(turn), camera.radius - one.radius], -1)


def shown(objective: Objective) -> Objective:
    """The objective whose prompt query also sees the picture; the null query sees none."""
    queries = {name: query._replace(image=query.text == "prompt") for name, query in objective.queries.items()}
    return objective._replace(queries=queries)
