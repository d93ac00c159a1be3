"""Laws of views in groups: what a prior that denoises several views together asks of cameras, timesteps, shards and prompts."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lods_jax.cli import main
from lods_jax.cli.command_line import parse
from lods_jax.core.cameras import Orbit, sample_orbit
from lods_jax.core.noise_schedule import STABLE_DIFFUSION
from lods_jax.core.random import group_keys
from lods_jax.distillation.objectives import OBJECTIVES, lods_embedding, sds
from lods_jax.distillation.parallel import compile_train_step
from lods_jax.distillation.scores import Denoiser, draw, score
from lods_jax.distillation.train_step import init_state, make_train_step
from lods_jax.distillation.view_chunks import in_chunks
from lods_jax.priors import registry
from lods_jax.priors.gaussian import gaussian
from lods_jax.scenes.ensemble import merged, shared_out
from lods_jax.scenes.images import pixels
from lods_jax.training.run_prompts import prompt_table_of
from tests.toy import TINY

ROOT = Path(__file__).resolve().parents[2]
V, B = 4, 16
SINGLE = gaussian({"": 0.2, "y": 1.0, "now": 0.5}, 0.5)
KEYS = jax.random.split(jax.random.key(0), 8)
Z = jax.random.normal(jax.random.key(1), (8, 2, 2, 3))


def coupled(weights, psi, z_t, t, cond):
    """The closed form, plus what only a network of several views can say: of the others, and of the cameras."""
    groups = z_t.reshape(-1, V, *z_t.shape[1:])
    others = jnp.broadcast_to(groups.mean(1, keepdims=True), groups.shape).reshape(z_t.shape)
    return SINGLE.predict(weights, psi, z_t, t, cond) + 0.05 * others + 0.01 * cond.camera[:, :3][:, None, None]


COUPLED = SINGLE._replace(predict=coupled, views=V)
TEXTS = {"prompt": SINGLE.embed({}, ["y"] * 4), "null": SINGLE.embed({}, [""] * 4)}


# --- cameras and draws ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("draw_name", ["sphere", "threestudio"])
def test_views_of_a_group_differ_in_azimuth_alone_by_equal_angles(draw_name):
    orbit = Orbit(radius=(2.0, 4.0), elevation_draw=draw_name)
    camera = sample_orbit(group_keys(KEYS, V), jnp.arange(8), 8, orbit, V)
    for name in ("elevation", "radius", "fov_y"):
        rows = getattr(camera, name).reshape(2, V)
        np.testing.assert_array_equal(rows, np.repeat(rows[:, :1], V, 1))
        assert rows[0, 0] != rows[1, 0]
    turns = np.diff(np.asarray(camera.azimuth).reshape(2, V)) % (2 * np.pi)
    np.testing.assert_allclose(turns, np.pi / 2, atol=1e-5)
    # The two groups start in two halves of the first 90 degrees from -180.
    starts = np.rad2deg(np.asarray(camera.azimuth).reshape(2, V)[:, 0]) + 180
    assert 0 <= starts[0] < 45 <= starts[1] < 90


def test_a_group_has_one_timestep_and_each_view_its_own_noise():
    t, noise = draw(KEYS, Z, (0, 999), V)
    alone, own = draw(KEYS, Z, (0, 999))
    np.testing.assert_array_equal(t, np.repeat(np.asarray(alone)[::V], V))
    np.testing.assert_array_equal(noise, own)
    assert len(set(np.asarray(noise[:, 0, 0, 0]).tolist())) == 8


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_says_of_a_view_in_a_group_what_it_says_of_the_view_alone(name):
    """At the group's timestep: groups change what is drawn together, and no formula."""
    objective, latents, pose = OBJECTIVES[name](), {"render": Z, "reference": Z + 1}, jnp.ones((8, 16))
    rows = {"prompt": "y", "plain": "y", "null": "", "empty": "", "source": "now"}
    texts = {key: SINGLE.embed({}, [text] * 8) for key, text in rows.items()}
    psi = SINGLE.init_psi({}, jax.random.key(0), texts["null"][0], objective.trained_queries)
    ask = lambda views, rows, window: score(  # noqa: E731
        objective, Denoiser(lambda psi, *rest: SINGLE.predict({}, psi, *rest), STABLE_DIFFUSION, views), psi,
        *(jax.tree.map(lambda x: x[rows], x) for x in (latents, texts)), window, KEYS[rows], pose[rows],
    )  # fmt: skip
    together = ask(V, slice(None), (20, 980))
    t, _ = draw(KEYS, Z, (20, 980), V)
    for i in range(8):
        alone = ask(1, slice(i, i + 1), (t[i], t[i]))
        np.testing.assert_allclose(together[i], alone[0], atol=1e-5)


# --- steps ------------------------------------------------------------------------------------------------------------------
def parts(objective=None, batch=B, prior=COUPLED, scene=pixels(1, 1)):  # noqa: B008
    """The halves of the step and the first state of one pixel."""
    objective, tx = objective or lods_embedding(100.0), (optax.sgd(0.1), optax.sgd(0.1))
    build = make_train_step(
        scene, prior, objective, cameras=lambda keys, views: sample_orbit(keys, views, batch, group=prior.views),
        window=lambda step: (20, 980), tx_theta=tx[0], tx_psi=tx[1], batch=batch,
    )  # fmt: skip
    psi = SINGLE.init_psi({}, jax.random.key(1), TEXTS["null"][0], objective.trained_queries)
    return build, lambda: init_state(scene, psi, *tx, jax.random.key(2))


MANY_DEVICES = """
import jax, numpy as np
from tests.distillation.test_view_groups import *
def after(mode, n, reduce="sum"):
    build, start = parts()
    step, state, key = compile_train_step(build, mode, B, jax.devices()[:n], reduce), start(), jax.random.key(3)
    for _ in range(3):
        state, metrics = step(state, {}, TEXTS, None, key)
    return jax.tree.map(np.asarray, (state.theta, state.psi, metrics))
one = after("jit", 1)
close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
for mode, n in (("pmap", 2), ("shard_map", 4)):
    jax.tree.map(close, after(mode, n), one)
ordered = [after("shard_map", n, "ordered") for n in (1, 2, 4)]
jax.tree.map(close, ordered[0], one)
for more in ordered[1:]:
    jax.tree.map(np.testing.assert_array_equal, more, ordered[0])
print("equal")
"""


def test_groups_on_1_2_and_4_devices_give_the_same_gradients():
    """The prior's answer to a view depends on the other views of its group and on its camera: a group torn apart would show."""
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "4"}
    done = subprocess.run([sys.executable, "-c", MANY_DEVICES], env=env, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout.strip() == "equal", done.stderr[-2000:]


def test_a_group_is_on_one_background_and_each_group_on_its_own():
    """As the priors of several views were trained: a background is no view of the object."""
    scene = pixels(1, 1)

    def render(theta, aux, camera, keys, means2d_probe):
        return scene.render(theta, aux, camera, keys, means2d_probe).replace(rgb=jax.vmap(behind)(keys))

    behind = lambda key: jax.random.uniform(key, (1, 1, 3))  # noqa: E731
    build, start = parts(scene=scene._replace(render=render))
    rgb = jax.jit(build.compute_grads)(start(), {}, TEXTS, None, jax.random.key(0), jnp.arange(8)).outputs.render.rgb
    groups = np.asarray(rgb).reshape(2, V, 3)
    np.testing.assert_array_equal(groups, np.repeat(groups[:, :1], V, 1))
    assert np.abs(groups[0, 0] - groups[1, 0]).max() > 0.01


def test_in_groups_too_lods_lands_on_the_good_image():
    """One timestep a group makes a step noisier than one a view, and does not move the fixed point."""
    build, start = parts(batch=8, prior=SINGLE._replace(views=V))
    step, state, values = compile_train_step(build, "jit", 8), start(), []
    for _ in range(1200):
        state, _ = step(state, {}, TEXTS, None, jax.random.key(3))
        values.append(state.theta["rgb"].mean())
    np.testing.assert_allclose(np.mean(values[-400:]), 1.0, atol=0.05)


def test_a_group_at_a_time_makes_the_step_of_all_groups():
    """A chunk is a whole group, also where fewer views are asked for."""
    build, start = parts(batch=8)
    run = lambda step: compile_train_step(step, "jit", 8)(start(), {}, TEXTS, None, jax.random.key(3))  # noqa: E731
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6)  # noqa: E731
    jax.tree.map(close, run(build), run(in_chunks(build, 1)))


def test_a_batch_that_parts_a_group_is_refused():
    with pytest.raises(ValueError, match="batch must be a multiple of the 4 views that this prior denoises together, got 6"):
        parts(batch=6)
    with pytest.raises(ValueError, match="batch must be a multiple of the 2 devices times 4 views of a group, got 12"):
        compile_train_step(parts(sds(), batch=12)[0], "shard_map", 12, jax.devices() * 2)


def test_a_group_shows_one_particle():
    views = np.arange(8)
    np.testing.assert_array_equal(shared_out(views, 2, 2), [[0, 1, 4, 5], [2, 3, 6, 7]])
    np.testing.assert_array_equal(merged(shared_out(views, 2, 2), 2), views)


# --- runs -------------------------------------------------------------------------------------------------------------------
@pytest.fixture
def views(monkeypatch):
    """A prior of the name "views", which takes four together and knows no text that names a view."""
    prior = gaussian({"a thing": 0.8, "": 0.2}, 0.5)._replace(views=V)
    monkeypatch.setattr(registry, "PRIORS", dict(registry.PRIORS))
    registry.register_prior("views", lambda: registry.RegisteredPrior(lambda **_: prior, "four views together", views=V))


def test_a_prior_that_sees_its_cameras_gets_prompts_without_view_words(views):
    words = [*TINY, "--batch", "4", "--prior", "views"]
    assert set(prompt_table_of(parse(words).settings)["prompt"]) == {"a thing"}
    assert len(set(prompt_table_of(parse([*words, "--view-words", "on"]).settings)["prompt"])) == V


def test_a_run_takes_whole_groups_and_refuses_others_in_one_line(views, tmp_path, capsys):
    words = [*TINY, "--prior", "views", "--out", str(tmp_path / "run"), "--steps", "2"]
    assert main([*words, "--batch", "6"]) == 2
    assert (
        capsys.readouterr()
        .err.strip()
        .endswith("batch must be a multiple of the 4 views that this prior denoises together, got 6: pass --batch")
    )
    assert not (tmp_path / "run").exists()
    assert main([*words, "--batch", "8", "--particles", "2"]) == 0
