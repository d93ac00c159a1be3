"""Agreement with the official PyTorch code of LODS and threestudio on a tiny random Stable Diffusion, in float32.

tests/priors/conftest.py tells what the arrays of `arrays.npz` are. adapters.npz (NCHW, PyTorch's names) adds a LoRA of rank 4,
its gradients, a camera network, a reference image, and what VSD, DDS and LODS-LoRA make of them at four guidance scales:
  lods_lora_grad_*, dds_grad_w_*, vsd_grad_*, vsd_cam_grad_*   w(t) times the residual of the published form
  lora_loss, vsd_cam_lora_loss                                 the fit at t_train with noise_train
  traj_lora_*                                                  six steps of AdamW on latents (3e-2) and LoRA (1e-2) at s = 1e6
DDS is composed of official predictions, everything else is what the official code returned.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lods_jax.core.noise_schedule import STABLE_DIFFUSION, add_noise, per_example, score_weight
from lods_jax.distillation.objectives import csd, dds, lods_embedding, lods_lora, sds, vsd
from lods_jax.distillation.scores import predict_noise
from lods_jax.priors.adapter_files import load_lora
from lods_jax.priors.stable_diffusion import stable_diffusion

DATA = Path(__file__).parents[1] / "data" / "lods_parity"
SCALES = {"7p5": 7.5, "100": 100.0, "1000": 1000.0, "1e6": 1e6}
TABLE = {
    "sds_grad_": lambda s: sds(s, scale=1.0),
    "lods_emb_grad_": lods_embedding,
    "lods_lora_grad_": lods_lora,
    "dds_grad_w_": lambda s: dds(s, scale=1.0),
    "vsd_grad_": lambda s: vsd(s, scale=1.0, pose=0),
    "vsd_cam_grad_": lambda s: vsd(s, scale=1.0),
}


@pytest.fixture(scope="module", autouse=True)
def _exact_products():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def arrays():
    stored = {**np.load(DATA / "arrays.npz"), **np.load(DATA / "adapters.npz")}
    latents = lambda x: x.ndim == 4 and x.shape[1] in (3, 4)  # noqa: E731
    stacked = lambda x: x.ndim == 5  # noqa: E731 (trajectories)
    last = lambda x: x.transpose(0, 2, 3, 1) if latents(x) else x.transpose(0, 1, 3, 4, 2) if stacked(x) else x  # noqa: E731
    return {name: jnp.asarray(last(x)) for name, x in stored.items()}


@pytest.fixture(scope="module")
def prior():
    return stable_diffusion(DATA / "sd")


@pytest.fixture(scope="module")
def weights(prior):
    return prior.init(jax.random.key(0))


@pytest.fixture(scope="module")
def psi(arrays, weights):
    lora = {
        name.split("/")[1]: {"down": arrays[name].T, "up": arrays[name.replace("/A", "/B")].T}
        for name in arrays
        if name.startswith("lora/") and name.endswith("/A")
    }
    mlp = {f"kernel_{i}": arrays[f"camera_mlp/linear_{i}.weight"].T for i in (1, 2)}
    mlp |= {f"bias_{i}": arrays[f"camera_mlp/linear_{i}.bias"] for i in (1, 2)}
    return {"embedding": arrays["alpha"], "lora": lora, "pose": mlp}


@pytest.fixture(scope="module")
def texts(arrays):
    return {
        "prompt": arrays["emb_cond_vd"],
        "plain": arrays["emb_cond"],
        "null": arrays["emb_uncond"],
        "source": arrays["emb_src_cond"],
    }


@pytest.fixture(scope="module")
def asked(prior, weights):
    """ask(queries) on the fixture's prior, compiled once per set of queries."""

    def run(queries, psi, noised, texts, t, pose):
        predict = lambda psi, *rest: prior.predict(weights, psi, *rest)  # noqa: E731
        return jax.jit(lambda psi, noised, texts, t, pose: predict_noise(predict, psi, queries, noised, texts, t, pose))(
            psi, noised, texts, t, pose
        )

    return run


@pytest.fixture(scope="module")
def answers(arrays, psi, texts, asked):
    """Every prediction that an objective of TABLE asks for: one call per objective, whatever s."""
    latents = {"render": arrays["latents"], "reference": arrays["latents_src"]}
    noised = {name: add_noise(STABLE_DIFFUSION, z, arrays["noise"], arrays["t"]) for name, z in latents.items()}
    pose = arrays["camera"].reshape(2, 16)
    return {name: asked(make(7.5).queries, psi, noised, texts, arrays["t"], pose) for name, make in TABLE.items()}


@pytest.mark.parametrize("s", SCALES)
@pytest.mark.parametrize("name", TABLE)
def test_latent_gradients_equal_the_official_code(arrays, answers, name, s):
    """Relative to the largest entry: SDS, VSD and DDS grow with s."""
    objective, t = TABLE[name](SCALES[s]), arrays["t"]
    ours = per_example(score_weight(STABLE_DIFFUSION, t), arrays["noise"]) * objective.residual(answers[name], arrays["noise"], t)
    expected = arrays[name + s]
    assert float(jnp.abs(ours - expected).max() / jnp.abs(expected).max()) < 1e-4


def test_csd_equals_the_official_code(arrays, answers):
    noise, t = arrays["noise"], arrays["t"]
    ours = per_example(score_weight(STABLE_DIFFUSION, t), noise) * csd().residual(answers["sds_grad_"], noise, t)
    np.testing.assert_allclose(ours, arrays["csd_grad"], atol=2e-5)


def fit(prior, weights, query, arrays, texts, pose):
    """psi -> the fit loss at the fixture's timesteps and noise."""

    def loss(psi):
        predict = lambda psi, *rest: prior.predict(weights, psi, *rest)  # noqa: E731
        t, noise = arrays["t_train"], arrays["noise_train"]
        noised = {"render": add_noise(STABLE_DIFFUSION, arrays["latents"], noise, t)}
        return jnp.mean((predict_noise(predict, psi, {"a": query}, noised, texts, t, pose)["a"] - noise) ** 2)

    return loss


def test_the_fit_of_the_embedding_and_its_gradient_equal_the_official_code(prior, weights, arrays, texts, psi):
    loss = fit(prior, weights, lods_embedding().queries["a"], arrays, texts, None)
    value, gradient = jax.jit(jax.value_and_grad(loss))(psi)
    np.testing.assert_allclose(value, arrays["emb_loss"], rtol=1e-5)
    expected = arrays["emb_dalpha"]
    np.testing.assert_allclose(gradient["embedding"], expected, atol=2e-5 * float(jnp.abs(expected).max()))
    assert not any(bool(jnp.any(g)) for g in jax.tree.leaves((gradient["lora"], gradient["pose"])))


def test_the_fit_of_lora_and_its_gradient_equal_the_official_code(prior, weights, arrays, texts, psi):
    loss = fit(prior, weights, lods_lora().queries["a"], arrays, texts, None)
    value, gradient = jax.jit(jax.value_and_grad(loss))(psi)
    np.testing.assert_allclose(value, arrays["lora_loss"], rtol=1e-5)
    for site, factors in gradient["lora"].items():
        for part, letter in (("down", "A"), ("up", "B")):
            ours, theirs = factors[part].T, arrays[f"lora_grad/{site}/{letter}"]
            np.testing.assert_allclose(ours, theirs, atol=1e-4 * float(jnp.abs(theirs).max()) + 1e-8, err_msg=site)
    assert not any(bool(jnp.any(g)) for g in jax.tree.leaves((gradient["embedding"], gradient["pose"])))


def test_the_fit_of_vsd_equals_the_official_code(prior, weights, arrays, texts, psi):
    loss = fit(prior, weights, vsd().queries["q"], arrays, texts, arrays["camera"].reshape(2, 16))
    np.testing.assert_allclose(jax.jit(loss)(psi), arrays["vsd_cam_lora_loss"], rtol=1e-4)


def test_noising_uses_the_same_schedule_as_the_official_code(arrays):
    np.testing.assert_allclose(
        add_noise(STABLE_DIFFUSION, arrays["latents"], arrays["noise"], arrays["t"]), arrays["latents_noisy"], atol=1e-6
    )


def test_the_lora_of_the_file_is_that_of_the_arrays(weights, psi):
    lora, scale = load_lora(DATA / "pytorch_lora_weights.safetensors", weights["unet"])
    assert scale == 1
    jax.tree.map(np.testing.assert_array_equal, lora, dict(sorted(psi["lora"].items())))


def test_six_steps_of_lods_lora_follow_the_official_trajectory(prior, weights, arrays, texts, psi):
    """Latents and LoRA learn at once, each with its own AdamW; LoRA starts with up = 0."""
    objective = lods_lora(1e6)
    predict = lambda psi, *rest: prior.predict(weights, psi, *rest)  # noqa: E731
    lora = jax.tree.map_with_path(lambda path, x: x if path[-1].key == "down" else jnp.zeros_like(x), psi["lora"])
    tx = [optax.adamw(rate, 0.9, 0.999, 1e-8, weight_decay=0.0) for rate in (3e-2, 1e-2)]
    z, psi = arrays["latents"], {"lora": lora}
    opt = [tx[0].init(z), tx[1].init(psi)]

    @jax.jit
    def step(z, psi, opt, t, noise, t_train, noise_train):
        answers = predict_noise(predict, psi, objective.queries, {"render": add_noise(STABLE_DIFFUSION, z, noise, t)}, texts, t)
        force = per_example(score_weight(STABLE_DIFFUSION, t), z) * objective.residual(answers, noise, t) / len(z)

        def fit(psi):
            query, noised = {"a": objective.queries["a"]}, {"render": add_noise(STABLE_DIFFUSION, z, noise_train, t_train)}
            return jnp.mean((predict_noise(predict, psi, query, noised, texts, t_train)["a"] - noise_train) ** 2)

        value, gradient = jax.value_and_grad(fit)(psi)
        (dz, opt_z), (dpsi, opt_psi) = tx[0].update(force, opt[0], z), tx[1].update(gradient, opt[1], psi)
        return optax.apply_updates(z, dz), optax.apply_updates(psi, dpsi), [opt_z, opt_psi], value

    for i in range(6):
        drawn = [arrays[f"traj_{name}"][i] for name in ("t", "noise", "t_train", "noise_train")]
        z, psi, opt, value = step(z, psi, opt, *drawn)
        np.testing.assert_allclose(value, arrays["traj_lora_losses"][i, 1], rtol=1e-4)
    final = arrays["traj_lora_latents"]
    np.testing.assert_allclose(z, final[-1] if final.ndim == 5 else final, atol=1e-4)
