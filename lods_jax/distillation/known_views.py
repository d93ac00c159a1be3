"""A reference image in the train step: a view with costs of its own, which may also be one view of a group.

A prior of several views then says what the others show beside it. In every second group the first view is the image, at its
own camera: its latents are noised like those of the renders, and the attention over the group carries what they show to the
other views, 360 / V degrees apart. This is the simplest form of ImageDream's pixel variant (Wang and Shi 2023, section 3.3),
for a network that was not trained on clean images. The image's view itself takes no score; the costs of the image are for
that.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from lods_jax.core.cameras import Orbit, view_of
from lods_jax.core.types import Camera, ReferenceImage, Render, Scene, TrainState

EVERY = 2  # the other groups look from anywhere


class ReferenceView(NamedTuple):
    """The camera of a reference image, and the costs of the render that it sees.

    Attributes:
        scene: the scene as the image shows it: on white, without random offsets.
        costs: (render of one view, `ReferenceImage`, step) -> {name: weighted cost [1]}.
        joins: whether the image is one view of every second group of a prior of several views (`known_views`).
        orbit: of the other cameras, for the words of the views.
    """

    scene: Scene
    costs: Callable[..., dict[str, Array]]
    joins: bool = False
    orbit: Orbit = Orbit()


def groups_around_image(
    camera: Camera, image: Camera, views: Int[Array, "b"], step: Int[Array, ""], group: int, orbit: Orbit
) -> tuple[Camera, Bool[Array, "b"]]:
    """The cameras of a step, of which those of every second group stand around the object beside the image's.

    Args:
        camera: as they were drawn.
        image: the camera of the image, one.
        views: global indices of the views [b].
        step: of the run.
        group: number of views in a group.
        orbit: says where the front ends and overhead begins.

    Returns:
        The cameras, and which of the views are the image.
    """
    turn = 2 * jnp.pi / group * (views % group)
    cos, sin, zero, one = jnp.cos(turn), jnp.sin(turn), jnp.zeros_like(turn), jnp.ones_like(turn)
    turned = jnp.stack([cos, -sin, zero, zero, sin, cos, zero, zero, zero, zero, one, zero, zero, zero, zero, one], -1)
    azimuth = (image.azimuth + turn + jnp.pi) % (2 * jnp.pi) - jnp.pi
    around = camera.replace(
        c2w=turned.reshape(-1, 4, 4) @ image.c2w,
        azimuth=azimuth,
        view=view_of(azimuth, jnp.broadcast_to(image.elevation, turn.shape), orbit.front, orbit.above),
        **{name: jnp.broadcast_to(getattr(image, name), turn.shape) for name in ("fov_y", "elevation", "radius")},
    )
    on = (step + views // group) % EVERY == 0
    return jax.tree.map(lambda a, b: where(on, a, b), around, camera), on & (views % group == 0)


def show_image(
    rgb: Float[Array, "b h w 3"], opacity: Float[Array, "b h w 1"], image: ReferenceImage, known: Bool[Array, "b"]
) -> Float[Array, "b h w 3"]:
    """The renders, some of them replaced by the image on the background that the render had.

    Args:
        rgb: renders.
        opacity: of the renders; the pixel that is covered least tells the background, which has one colour.
        image: on white, of any size.
        known: which views are the image.

    Returns:
        Like `rgb`.
    """
    b, h, w, _ = rgb.shape
    on_white, mask = (jax.image.resize(x, (h, w, x.shape[2]), "linear")[None] for x in (image.rgb, image.mask))
    bare = jnp.argmin(opacity.reshape(b, -1), 1)
    background = jnp.take_along_axis(rgb.reshape(b, -1, 3), bare[:, None, None], 1)[:, None]
    return where(known, on_white - (1 - mask) * (1 - background), rgb)


def where(on: Bool[Array, "b"], a: Array, b: Array) -> Array:
    """`jnp.where` by the leading axis.

    Args:
        on: for each entry of that axis [b].
        a: taken where `on` holds.
        b: taken elsewhere.

    Returns:
        Like `b`.
    """
    return jnp.where(on.reshape(-1, *[1] * (b.ndim - 1)), a, b)


def seen_in_reference(
    view: ReferenceView, theta: Any, state: TrainState, image: Any, keys: Key[Array, "1"], render: Render
) -> tuple[Render, dict[str, Array]]:
    """The costs of the reference image's view.

    Args:
        view: its scene and costs.
        theta: parameters of the scene.
        state: for its step and aux.
        image: a `ReferenceImage`.
        keys: of its render.
        render: the renders of the other views.

    Returns:
        `render`, its "total" raised to what this view needs; and {name: weighted cost [1]}, of which each view of a step takes a
            share.
    """
    seen = view.scene.render(theta, state.aux, image.camera, keys, view.scene.means2d_probe(state.aux, 1))
    if "total" in render.extras:
        total = jnp.maximum(render.extras["total"], seen.extras["total"])
        render = render.replace(extras=render.extras | {"total": total})
    return render, view.costs(seen, image, state.step)
