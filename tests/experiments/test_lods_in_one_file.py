"""The one-file LODS and the library take the same steps: the file is a proof-read of the library, and the other way round."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lods_jax.core.cameras import VIEWS, orbit_camera
from lods_jax.core.noise_schedule import STABLE_DIFFUSION
from lods_jax.core.types import Prior, Render, Scene
from lods_jax.distillation.objectives import lods_embedding, sds
from lods_jax.distillation.parallel import compile_train_step
from lods_jax.distillation.train_step import init_state, make_train_step

PATH = Path(__file__).resolve().parents[2] / "experiments" / "lods_in_one_file.py"
spec = importlib.util.spec_from_file_location("lods_in_one_file", PATH)
one = importlib.util.module_from_spec(spec)
spec.loader.exec_module(one)

STEPS, TX = 4, (optax.sgd(0.05, momentum=0.9), optax.sgd(30.0))  # Adam would turn rounding of tiny gradients into whole steps
ROW_OF_SIDE = jnp.array([VIEWS.index(name) for name in ("front", "side", "back")])


def render(theta, aux, camera, keys, means2d_probe):
    rgb = one.render(theta, camera.azimuth)
    return Render(rgb, jnp.ones_like(rgb[..., :1]), jnp.zeros_like(rgb[..., :1]), {})


def cameras(keys, views):
    azimuth = 2 * jnp.pi * (views + jax.vmap(jax.random.uniform)(keys)) / one.BATCH
    flat = jnp.zeros_like(azimuth)
    return orbit_camera(azimuth, flat, flat + 2, flat + 1).replace(view=ROW_OF_SIDE[one.side_of(azimuth)])


SCENE = Scene(lambda key: (one.first_scene(key), {}), render, lambda aux, b: {}, lambda aux, means2d_grad, rendered: aux)
PRIOR = Prior(
    init=lambda key: one.make_prior(),
    embed=lambda weights, texts: None,
    init_psi=lambda weights, key, tokens, queries: {"embedding": tokens},
    encode=lambda weights, rgb, key: 2 * rgb - 1,
    decode=lambda weights, z: (z + 1) / 2,
    predict=lambda weights, psi, z_t, t, cond: one.predict(weights, z_t, t, cond.tokens[:, 0]),
    noise_schedule=STABLE_DIFFUSION,
)


def by_the_library(objective):
    step = compile_train_step(
        make_train_step(
            SCENE, PRIOR, objective, cameras=cameras, window=lambda step: (20, 980), tx_theta=TX[0], tx_psi=TX[1], batch=one.BATCH
        ),
        "jit",
        one.BATCH,
    )  # fmt: skip
    named = {"front": 0.0, "side": np.pi / 2, "back": np.pi, "overhead": 0.0}
    table = {"prompt": one.prompt(jnp.array([named[view] for view in VIEWS]))[:, None], "null": jnp.zeros((len(VIEWS), 1, 5))}
    psi = {"embedding": jnp.zeros((1, 5))} if objective.trained_query else {}
    state, weights = init_state(SCENE, psi, *TX, jax.random.key(0)), PRIOR.init(None)
    for _ in range(STEPS):
        state, _ = step(state, weights, table, None, jax.random.key(1))
    return state.theta, state.psi


def by_the_file(residual, s, learn):
    step = one.make_step(one.make_prior(), residual, s, learn, *TX)
    theta, psi, key = one.first_scene(jax.random.key(0)), jnp.zeros(5), jax.random.key(1)
    opt_theta, opt_psi = TX[0].init(theta), TX[1].init(psi)
    for i in range(STEPS):
        theta, psi, opt_theta, opt_psi = step(theta, psi, opt_theta, opt_psi, i, key)
    return theta, psi


@pytest.mark.parametrize(("name", "s"), [("sds", 7.5), ("lods", 100.0)])
def test_the_file_and_the_library_take_the_same_steps(name, s):
    learn = name == "lods"
    theta, psi = by_the_file({"sds": one.sds, "lods": one.lods}[name], s, learn)
    theta_too, psi_too = by_the_library({"sds": sds, "lods": lods_embedding}[name](s))
    start = one.first_scene(jax.random.key(0))
    for leaf, value in theta.items():
        moved = float(jnp.abs(value - start[leaf]).max())
        assert moved > 1e-3
        np.testing.assert_allclose(theta_too[leaf], value, atol=1e-4 * moved, err_msg=leaf)
    if learn:
        assert float(jnp.abs(psi).max()) > 1e-3
        np.testing.assert_allclose(psi_too["embedding"][0], psi, atol=1e-4 * float(jnp.abs(psi).max()))


def test_the_file_is_short():
    """The promise of its name: the whole method, to be read in one sitting."""
    assert len(PATH.read_text().splitlines()) <= 200
    assert "lods_jax" not in "".join(line for line in PATH.read_text().splitlines() if line.startswith(("import", "from")))
