"""Perp-Neg (Armandpour et al. 2023): prompts interpolated by azimuth, with the other views as negatives.

The prompt of a camera lies between those of the two views beside it. Two of the views are negative: of what each would change,
the part perpendicular to what the prompt changes is subtracted, with a weight that depends on the azimuth. It replaces the
prediction for the prompt before any residual, so that it works with every objective.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lods_jax.core.cameras import VIEWS, wrap
from lods_jax.core.noise_schedule import per_example
from lods_jax.core.types import Camera, Query
from lods_jax.distillation.scores import PredictNoise, predict_noise

SIDE, FRONT, BACK, OVERHEAD = (VIEWS.index(name) for name in ("side", "front", "back", "overhead"))
NEGATIVES = ("not front", "not side")
# (a, b, c) of a weight a exp(-b r) + c, as threestudio has them.
FRONT_FROM_FRONT_SIDE = SIDE_FROM_FRONT_SIDE = (4.0, 0.5, -2.426)
SIDE_FROM_SIDE_BACK, FRONT_FROM_SIDE_BACK = (1.0, 0.5, -0.606), (1.0, 0.5, 0.967)


def interpolate_view_prompts(
    tables: Mapping[str, Float[Array, "views n d"]], camera: Camera
) -> tuple[dict[str, Float[Array, "b n d"]], PredictNoise]:
    """The prompt of each camera, interpolated between those of its two neighbouring views, with two views as negatives.

    It takes the place of `train_step.select_view_prompts`. "prompt" is interpolated between front and side, or side and back.
    Overhead it is the row itself, without negatives. The weights are threestudio's.

    Args:
        tables: {name: tokens [views n d]}, a row for each of `cameras.VIEWS`.
        camera: b cameras.

    Returns:
        {name: tokens [b n d]} with the further texts "not front" and "not side", and the function that predicts with them.
    """
    prompt, quarter = tables["prompt"], jnp.rad2deg(jnp.abs(wrap(camera.azimuth))) / 90  # 0 front, 1 side, 2 back
    above, ahead = camera.view == OVERHEAD, quarter < 1
    r = jnp.where(ahead, 1 - quarter, 2 - quarter)
    rows = {name: table[camera.view] for name, table in tables.items()}
    part = r[:, None, None]
    mix = lambda a, b: part * prompt[a][None] + (1 - part) * prompt[b][None]  # noqa: E731
    choose = lambda on, a, b: jnp.where(on[:, None, None], a, b)  # noqa: E731
    rows["prompt"] = choose(above, rows["prompt"], choose(ahead, mix(FRONT, SIDE), mix(SIDE, BACK)))
    rows |= {name: prompt[jnp.full_like(camera.view, row)] for name, row in zip(NEGATIVES, (FRONT, SIDE), strict=True)}
    curve = lambda abc, r: abc[0] * jnp.exp(-abc[1] * r) + abc[2]  # noqa: E731
    front = jnp.where(ahead, curve(FRONT_FROM_FRONT_SIDE, r), curve(FRONT_FROM_SIDE_BACK, r))
    side = jnp.where(ahead, curve(SIDE_FROM_FRONT_SIDE, 1 - r), curve(SIDE_FROM_SIDE_BACK, r))
    off = lambda weight: jnp.where(above, 0.0, jnp.maximum(weight, 0.0))  # noqa: E731
    return rows, away_from(dict(zip(NEGATIVES, (off(front), off(side)), strict=True)))


def away_from(weights: Mapping[str, Float[Array, "b"]]) -> PredictNoise:
    """`scores.predict_noise` with the prediction for the prompt turned away from negative texts.

    Perp-Neg (Armandpour et al. 2023, section 4): from e[y] it subtracts weight times the part of e[negative] - e[null] that is
    perpendicular to e[y] - e[null]. No query is predicted twice.

    Args:
        weights: {text: weight [b]} of the negative texts.

    Returns:
        A function with the arguments and outputs of `scores.predict_noise`.
    """

    def predict_noise_fn(predict: Callable[..., jax.Array], psi: Any, queries: Mapping[str, Query], *rest) -> dict[str, Array]:
        asked, others = with_negatives(queries, weights)
        e = predict_noise(predict, psi, asked, *rest)
        for name, (null, *negatives) in others.items():
            y = e[name] - e[null]
            for negative, weight in zip(negatives, weights.values(), strict=True):
                e[name] = e[name] - per_example(weight, y) * perpendicular(e[negative] - e[null], y)
        return {name: e[name] for name in queries}

    return predict_noise_fn


def with_negatives(
    queries: Mapping[str, Query], negatives: Iterable[str] = NEGATIVES
) -> tuple[dict[Any, Query], dict[str, list[Any]]]:
    """What is asked where the predictions for the prompt are turned away from negative texts.

    Args:
        queries: of an objective, by name.
        negatives: the texts.

    Returns:
        All queries, each once, those of the objective first and by its names; and of each query for the prompt the names of the
            null text and of the negatives.

    Examples:
        >>> len(with_negatives({"y": Query("prompt"), "null": Query("null")})[0])
        4
    """
    asked: dict[Any, Query] = dict(queries)

    def name_of(query: Query) -> Any:  # what is asked already is not asked twice
        known = next((name for name, other in asked.items() if other == query), query)
        asked[known] = query
        return known

    turned = {name: query for name, query in queries.items() if query.text == "prompt"}
    return asked, {name: [name_of(q._replace(text=text)) for text in ("null", *negatives)] for name, q in turned.items()}


def perpendicular(a: Float[Array, "b h w c"], to: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """The part of one array that is perpendicular to another, per example.

    Args:
        a: [b h w c].
        to: the other, [b h w c].

    Returns:
        a minus its projection on `to`; a itself where `to` is zero.

    Examples:
        >>> perpendicular(jnp.ones((1, 1, 1, 2)), jnp.array([1.0, 0.0]).reshape(1, 1, 1, 2)).ravel().tolist()
        [0.0, 1.0]
    """
    dot = lambda a, b: jnp.sum(a * b, (1, 2, 3), keepdims=True)  # noqa: E731
    return a - dot(a, to) / jnp.maximum(dot(to, to), 1e-20) * to
