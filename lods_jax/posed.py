"""Asking a prior that knows a picture and the pose from which it was taken (`priors.zero123`)."""

from functools import partial
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from lods_jax.objectives import Ask, ask
from lods_jax.types import Camera, Objective


def by_pose(tables: dict[str, Any], camera: Camera) -> tuple[dict[str, Array], Ask]:
    """A `texts_of` for `train.make_train_step`: the token of each view, from its pose relative to that of the picture."""
    many = lambda x: jnp.broadcast_to(x, (len(camera.azimuth), *x.shape))  # noqa: E731
    context = token(tables["join"], many(tables["embedding"]), relative_pose(tables["camera"], camera))
    return {"prompt": context, "null": jnp.zeros_like(context)}, partial(ask, image=many(tables["image"]))


def token(join: dict[str, Any], embedding: Float[Array, "b p"], pose: Float[Array, "b 4"]) -> Float[Array, "b 1 w"]:
    """The context of the U-Net: embeddings of pictures and poses relative to theirs, through the layer that joins them."""
    return (jnp.concatenate([embedding, pose], -1) @ join["kernel"] + join["bias"][None])[:, None]


def relative_pose(one: Camera, camera: Camera) -> Float[Array, "b 4"]:
    """Polar angle, sine and cosine of the azimuth, and distance, each relative to those of camera `one`."""
    turn = camera.azimuth - one.azimuth
    return jnp.stack([one.elevation - camera.elevation, jnp.sin(turn), jnp.cos(turn), camera.radius - one.radius], -1)


def shown(objective: Objective) -> Objective:
    """The objective whose prompt query also sees the picture; the null query sees none."""
    queries = {name: query._replace(image=query.text == "prompt") for name, query in objective.queries.items()}
    return objective._replace(queries=queries)
