import json
import shutil
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lods_jax.core.noise_schedule import STABLE_DIFFUSION, from_betas, linear_betas, scaled_linear_betas, v_to_eps
from lods_jax.core.types import Cond
from lods_jax.priors.diffusers_folder import read_config
from lods_jax.priors.hub import family
from lods_jax.priors.sampling import sample
from lods_jax.priors.scheduler_config import FLOW, SCHEDULER, read_scheduler, scheduler_of
from lods_jax.priors.stable_diffusion import stable_diffusion

V = {"prediction_type": "v_prediction"}
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LINEAR = from_betas(linear_betas(1e-4, 0.02))


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (SCHEDULER, STABLE_DIFFUSION),
        ({"_class_name": "PNDMScheduler"}, LINEAR),  # diffusers' own defaults, not those of Stable Diffusion
        ({"_class_name": "EulerDiscreteScheduler", "use_flow_sigmas": False}, LINEAR),
        ({}, LINEAR),
        ({"_class_name": "DDIMScheduler", "beta_end": 0.012}, from_betas(linear_betas(1e-4, 0.012))),
        ({"_class_name": "LCMScheduler"}, STABLE_DIFFUSION),
        ({"_class_name": "HeunDiscreteScheduler"}, from_betas(linear_betas(0.00085, 0.012))),
        ({"_class_name": "OwnScheduler", **SD}, STABLE_DIFFUSION),
        (SD | V | {"rescale_betas_zero_snr": True}, from_betas(scaled_linear_betas(0.00085, 0.012), True)),
        ({"trained_betas": linear_betas(1e-4, 0.02).tolist(), "beta_start": 0.5}, LINEAR),
    ],
)
def test_a_config_gives_the_schedule_that_diffusers_makes_of_it(config, expected):
    assert same(scheduler_of(config).noise_schedule, expected)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"_class_name": "EDMEulerScheduler", "sigma_data": 0.5}, "'EDMEulerScheduler' is not known, and without beta_start"),
        (SD | {"prediction_type": "sample"}, "prediction_type must be epsilon, v_prediction or flow_prediction, got 'sample'"),
        (SD | {"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule must be linear or scaled_linear, got 'squaredcos_cap_v2'"),
        (SD | {"beta_schedule": ["linear"]}, "beta_schedule must be linear or scaled_linear"),
        (SD | {"beta_end": "0.012"}, "beta_start and beta_end must be between 0 and 1"),
        (SD | {"beta_start": None}, "beta_start and beta_end must be between 0 and 1"),
        (SD | {"num_train_timesteps": 500}, "num_train_timesteps must be 1000, got 500"),
        (SD | {"trained_betas": [0.1, 0.2]}, "betas must be 1000 numbers"),
        (SD | {"rescale_betas_zero_snr": 1} | V, "rescale_betas_zero_snr must be true or false"),
        (SD | {"rescale_betas_zero_snr": True}, "needs the prediction_type v_prediction"),
    ],
)
def test_what_no_prior_here_is_trained_on_is_refused_by_name(tmp_path, config, named):
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler/scheduler_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"scheduler_config\.json: ") as error:
        read_scheduler(tmp_path)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "refused"),
    [
        (SD | {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}, True),  # sd-turbo
        (SD | {"_class_name": "LCMScheduler"}, True),
        (SD | {"_class_name": "TCDScheduler"}, True),
        ({"_class_name": "FlowMatchLCMScheduler", "shift": 3.0}, True),
        (SD | V | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, False),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "timestep_spacing": "trailing"}, False),
        ({"_class_name": "UniPCMultistepScheduler", "prediction_type": FLOW, "timestep_spacing": "trailing"}, False),
    ],
)
def test_networks_of_a_few_steps_are_refused_whatever_their_family_unless_asked_for(sd, tmp_path, config, refused):
    folder = shutil.copytree(sd, tmp_path / "sd")
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(config))
    says = pytest.raises(ValueError, match="was distilled to a few steps") if refused else nullcontext()
    with says:
        stable_diffusion(folder)
    assert ("distilled to a few steps" in family(folder)) == refused
    stable_diffusion(folder, few_steps=True)  # of somebody who knows better


def test_noise_without_terminal_signal_is_pytorchs(torch_arrays):
    a, schedule = torch_arrays, scheduler_of(SD | V | {"rescale_betas_zero_snr": True}).noise_schedule
    np.testing.assert_allclose(v_to_eps(schedule, a["zero_snr_v"], a["z"], a["t"]), a["zero_snr_eps"], atol=2e-6)
    wrong = jnp.abs(v_to_eps(STABLE_DIFFUSION, a["zero_snr_v"], a["z"], a["t"]) - a["zero_snr_eps"])
    assert wrong.max() > 0.05  # what reading it with the usual schedule costs


def test_a_network_without_terminal_signal_is_sampled_from_its_velocity(sd, tmp_path, arrays):
    """In one step from t = 999 the sample is -v: of noise alone, v says what clean latents it leads to."""
    folder, file = shutil.copytree(sd, tmp_path / "sd"), "scheduler/scheduler_config.json"
    (folder / file).write_text(json.dumps(read_config(sd / file) | V | {"rescale_betas_zero_snr": True}))
    prior = stable_diffusion(folder)
    weights = prior.init(jax.random.key(0))
    tokens = arrays["emb_cond_vd"][:1]
    prior = prior._replace(decode=lambda weights, z: z[..., :3])
    keys = jax.vmap(jax.random.key)(jnp.arange(1))
    z0 = jax.jit(lambda: sample(prior, weights, tokens, tokens, keys, 1.0, 1))()
    z, t = jax.random.normal(keys[0], (8, 8, 4))[None], jnp.array([999])
    usual = stable_diffusion(sd)  # epsilon: what the network says itself
    v = jax.jit(lambda: usual.predict(weights, {}, z, t, Cond(tokens)))()
    np.testing.assert_allclose(z0, jnp.clip(-v, -4, 4)[..., :3], atol=2e-5)
