"""Laws of Perp-Neg: what it leaves alone, and that it stands before every objective."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lods_jax.core.cameras import VIEWS, orbit_camera
from lods_jax.core.noise_schedule import STABLE_DIFFUSION
from lods_jax.core.types import Query
from lods_jax.distillation.objectives import OBJECTIVES, csd, lods_lora, sds
from lods_jax.distillation.perp_neg import away_from, interpolate_view_prompts, perpendicular, with_negatives
from lods_jax.distillation.scores import Denoiser, predict_noise, score

B, SHAPE = 3, (3, 4, 4, 4)
NOT = ("not front", "not side")


def normal(seed, shape=SHAPE):
    return jax.random.normal(jax.random.key(seed), shape)


def predict(psi, z_t, t, cond):
    """Answers that depend on every input."""
    return jnp.tanh(z_t * cond.tokens[:, :1, :1, None] + cond.tokens[:, :, :, None] + t[:, None, None, None] / 1000)


TEXTS = {name: normal(i, (B, 4, 4)) for i, name in enumerate(("prompt", "plain", "null", "empty", "source", *NOT))}
T = jnp.array([210, 500, 900])
WEIGHTS = {"not front": jnp.array([0.0, 1.5, 0.4]), "not side": jnp.array([0.0, 0.3, 2.0])}


def cameras(*azimuths, elevation=0.0):
    n = len(azimuths)
    return orbit_camera(jnp.deg2rad(jnp.array(azimuths)), jnp.full(n, jnp.deg2rad(elevation)), jnp.ones(n), jnp.ones(n))


def asked(predict_noise_fn, queries):
    return predict_noise_fn(predict, {}, queries, {"render": normal(9)}, TEXTS, T)


def test_a_prompt_is_turned_by_what_is_perpendicular_to_it():
    e, plain = asked(away_from(WEIGHTS), csd().queries), asked(predict_noise, csd().queries)
    assert set(e) == {"y", "null"}
    np.testing.assert_array_equal(e["null"], plain["null"])
    negative = asked(predict_noise, {name: Query(name) for name in NOT})
    y = plain["y"] - plain["null"]
    expected = plain["y"] - sum(
        WEIGHTS[name][:, None, None, None] * perpendicular(negative[name] - plain["null"], y) for name in NOT
    )
    np.testing.assert_allclose(e["y"], expected, atol=1e-5)
    np.testing.assert_allclose(e["y"][0], plain["y"][0], atol=1e-6)  # weights of 0
    # What was added has no part along the prompt: its own direction is as strong as before.
    np.testing.assert_allclose(jnp.sum((e["y"] - plain["y"]) * y, (1, 2, 3)), 0, atol=1e-3)


def test_the_perpendicular_part_is_perpendicular_and_the_rest_parallel():
    a, b = normal(1), normal(2)
    np.testing.assert_allclose(jnp.sum(perpendicular(a, b) * b, (1, 2, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(perpendicular(perpendicular(a, b), b), perpendicular(a, b), atol=1e-5)
    np.testing.assert_array_equal(perpendicular(a, jnp.zeros_like(a)), a)


def test_what_is_asked_already_is_not_asked_twice():
    seen = []

    def count(psi, z_t, t, cond):
        seen.append(len(z_t) // B)
        return z_t

    given = csd().queries, {"y": Query("prompt")}, lods_lora().queries
    for queries in given:
        away_from(WEIGHTS)(count, {}, queries, {"render": normal(9)}, TEXTS, T)
    assert seen == [4, 4, 5]  # prompt, null, two negatives: whether null was asked for or not; and a null through the LoRA
    assert [len(with_negatives(queries)[0]) for queries in given] == seen


@pytest.mark.parametrize("name", OBJECTIVES)
def test_it_stands_before_every_objective(name):
    """With it the force is another, and a network that knows the noise exerts none."""
    objective = OBJECTIVES[name]()
    objective = objective._replace(queries={k: q._replace(pose=False) for k, q in objective.queries.items()})
    psi, latents = {"embedding": normal(7, (4, 4))}, {"render": normal(0), "reference": normal(1)}
    forces = [
        score(
            objective,
            Denoiser(predict, STABLE_DIFFUSION),
            psi,
            latents,
            TEXTS,
            (20, 980),
            jax.random.split(jax.random.key(0), B),
            None,
            predict_noise_fn,
        )
        for predict_noise_fn in (predict_noise, away_from(WEIGHTS))
    ]
    assert bool(jnp.isfinite(forces[1]).all())
    assert float(jnp.abs(forces[1] - forces[0])[1:].max()) > 1e-4
    noise = normal(3)
    e = away_from(WEIGHTS)(lambda *_: jnp.tile(noise, (len(_[1]) // B, 1, 1, 1)), psi, objective.queries, latents, TEXTS, T)
    np.testing.assert_allclose(objective.residual(e, noise, T), 0, atol=1e-5)


def test_prompts_turn_with_the_camera():
    tables = {"prompt": jnp.eye(4)[:, None], "null": jnp.zeros((4, 1, 4))}  # a text is the name of its row
    rows, _ = interpolate_view_prompts(tables, cameras(0.0, 45.0, 90.0, -135.0, 180.0))
    side, front, back = (np.eye(4)[VIEWS.index(name)] for name in ("side", "front", "back"))
    expected = [front, (front + side) / 2, side, (side + back) / 2, back]
    np.testing.assert_allclose(rows["prompt"][:, 0], expected, atol=1e-5)
    np.testing.assert_array_equal(rows["not front"][:, 0], np.tile(front, (5, 1)))
    above, _ = interpolate_view_prompts(tables, cameras(30.0, elevation=80.0))
    np.testing.assert_array_equal(above["prompt"][0, 0], np.eye(4)[VIEWS.index("overhead")])


def weights_at(*azimuths, elevation=0.0):
    """The weights of both negatives, read off a network whose answers are one axis per text."""
    tables = {"prompt": jnp.eye(4)[:, None], "null": jnp.zeros((4, 1, 4))}
    rows, predict_noise_fn = interpolate_view_prompts(tables, cameras(*azimuths, elevation=elevation))
    n = len(azimuths)
    rows |= {"prompt": jnp.tile(jnp.eye(4)[3], (n, 1, 1))}  # perpendicular to both negatives
    axis = lambda psi, z_t, t, cond: cond.tokens[:, :, None]  # noqa: E731
    e = predict_noise_fn(axis, {}, {"y": Query("prompt")}, {"render": jnp.zeros((n, 1, 1, 4))}, rows, jnp.zeros(n, jnp.int32))[
        "y"
    ]
    return -e[:, 0, 0, VIEWS.index("front")], -e[:, 0, 0, VIEWS.index("side")]


def test_the_weights_are_those_of_the_paper():
    """0 for the view that it is; at 180 degrees exp(0) + 0.967 for the front; continuous where sectors meet; none from above."""
    front, side = weights_at(0.0, 89.999, 90.001, 180.0)
    np.testing.assert_allclose(front, [0.0, 1.574, 1.574, 1.967], atol=2e-3)
    np.testing.assert_allclose(side, [1.574, 0.0, 0.0, 0.394], atol=2e-3)
    np.testing.assert_array_equal(np.stack(weights_at(20.0, elevation=80.0)), 0)


def test_a_thing_without_a_front_is_left_alone():
    """All views have the same text, so that the negatives are the prompt itself."""
    same = jnp.broadcast_to(normal(0, (1, 4, 4)), (4, 4, 4))
    tables = {"prompt": same, "null": jnp.broadcast_to(normal(1, (1, 4, 4)), (4, 4, 4))}
    rows, predict_noise_fn = interpolate_view_prompts(tables, cameras(10.0, 100.0, 170.0))
    texts = dict(rows)
    keys = jax.random.split(jax.random.key(0), B)
    forces = [
        score(sds(), Denoiser(predict, STABLE_DIFFUSION), {}, {"render": normal(0)}, texts, (20, 980), keys, None, a)
        for a in (predict_noise, predict_noise_fn)
    ]
    np.testing.assert_allclose(forces[1], forces[0], atol=1e-4)
