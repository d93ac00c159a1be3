"""A flow-matching folder of Stable Diffusion's kind is read as diffusers reads it, and sampled as diffusers samples it.

`tests/data/flow_matching/arrays.npz` is what diffusers 0.39 answered in PyTorch, float32, under FlowMatchEulerDiscreteScheduler,
with the U-Net, the latents, the noise and the tokens of `tests/data/lods_parity`:
  sigmas_shift_1, sigmas_shift_3, timesteps_shift_3   its tables, rising
  t, z_t, v              `scale_noise` at the timesteps t of shift 3, and the U-Net's output there
  sample_0, sample_1, sample_2   after each of three Euler steps from `noise` at guidance 3, shift 3
"""

import json
import shutil
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lods_jax.core.noise_schedule import add_noise, flow_matching, network_time
from lods_jax.core.types import Cond
from lods_jax.priors import hub
from lods_jax.priors.ddim import ddim
from lods_jax.priors.scheduler_config import FLOW, config_of, scheduler_of
from lods_jax.priors.stable_diffusion import stable_diffusion

EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
SHIFT_3 = EULER | {"shift": 3.0, "base_shift": 0.5, "max_shift": 1.15, "use_dynamic_shifting": False, "invert_sigmas": False}
UNIPC = {"_class_name": "UniPCMultistepScheduler", "prediction_type": FLOW, "use_flow_sigmas": True}


@pytest.fixture(scope="module")
def torch_flow() -> dict[str, jax.Array]:
    stored = np.load(Path(__file__).resolve().parents[1] / "data" / "flow_matching" / "arrays.npz")
    return {name: jnp.asarray(x.transpose(0, 2, 3, 1) if x.ndim == 4 else x) for name, x in stored.items()}


@pytest.fixture(scope="module")
def folder(sd, tmp_path_factory):
    folder = shutil.copytree(sd, tmp_path_factory.mktemp("flow") / "sd")
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(SHIFT_3))
    return folder


# --- the schedule -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_sigmas_and_network_times_are_those_of_diffusers(torch_flow, shift):
    schedule = flow_matching(shift)
    sigmas = torch_flow[f"sigmas_shift_{shift:g}"]
    np.testing.assert_allclose(np.sqrt(schedule.sigma2), sigmas, rtol=3e-7)
    np.testing.assert_allclose(np.sqrt(schedule.alpha_bar), 1 - sigmas, atol=2e-7)
    if shift == 3:
        np.testing.assert_allclose(network_time(schedule, jnp.arange(1000)), torch_flow["timesteps_shift_3"], rtol=3e-7)


@pytest.mark.parametrize(
    ("config", "shift"),
    [
        (EULER, 1.0),
        (SHIFT_3, 3.0),
        (EULER | {"shift": 3.0, "prediction_type": "epsilon"}, 3.0),  # left over from another class, which this one ignores
        (EULER | {"shift": 3.0, "use_dynamic_shifting": True}, 1.0),  # by the size of the image, when sampling
        ({"_class_name": "FlowMatchHeunDiscreteScheduler", "shift": 3}, 3.0),
        (config_of(FLOW), 1.0),  # what is written
        (UNIPC | {"flow_shift": 3.0}, 3.0),
        (UNIPC, 1.0),
    ],
)
def test_a_config_of_flow_matching_gives_the_schedule_that_diffusers_makes_of_it(config, shift):
    found = scheduler_of(config)
    assert found.prediction_type == FLOW
    assert found.noise_schedule.straight
    for ours, expected in zip(found.noise_schedule[:2], flow_matching(shift)[:2], strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (EULER | {"shift": 0}, "shift must be a positive number, got 0"),
        (EULER | {"shift": "3"}, "shift must be a positive number, got '3'"),
        (EULER | {"shift": None}, "shift must be a positive number, got None"),
        (UNIPC | {"flow_shift": -1}, "flow_shift must be a positive number, got -1"),
        (EULER | {"invert_sigmas": True}, "invert_sigmas is not supported: expected a network that predicts noise minus data"),
        (EULER | {"num_train_timesteps": 500}, "num_train_timesteps must be 1000, got 500"),
        (UNIPC | {"prediction_type": "epsilon"}, "is for flow matching, but its prediction_type is epsilon, not flow_prediction"),
        ({"_class_name": "FlowOtherScheduler"}, "'FlowOtherScheduler' is for flow matching, but its prediction_type is epsilon"),
    ],
)
def test_a_flow_that_no_prior_here_follows_is_refused(config, named):
    with pytest.raises(ValueError, match=named):
        scheduler_of(config)


@pytest.mark.parametrize("shift", [0.0, -1.0, float("nan"), float("inf")])
def test_a_shift_that_is_none_is_refused(shift):
    with pytest.raises(ValueError, match="shift must be positive and finite"):
        flow_matching(shift)


def test_a_folder_says_that_it_is_of_flow_matching(sd, folder):
    assert hub.family(folder) == hub.family(sd) + ", flow matching, shift 3"
    assert "flow" not in hub.family(sd)


# --- a folder ---------------------------------------------------------------------------------------------------------------
def test_predictions_of_a_flow_folder_are_pytorchs(folder, torch_flow, arrays):
    """z_t, and the noise that follows from PyTorch's v = noise - z: z_t + (1 - sigma) v."""
    prior, a = stable_diffusion(folder), torch_flow
    weights, t = prior.init(jax.random.key(0)), a["t"]
    z_t = add_noise(prior.noise_schedule, arrays["latents"], arrays["noise"], t)
    np.testing.assert_allclose(z_t, a["z_t"], atol=1e-6)
    eps = jax.jit(prior.predict)(weights, {}, a["z_t"], t, Cond(arrays["emb_cond_vd"]))
    sigma = a["sigmas_shift_3"][t][:, None, None, None]
    np.testing.assert_allclose(eps, a["z_t"] + (1 - sigma) * a["v"], atol=1e-5)


def test_three_steps_of_the_sampler_are_three_of_diffusers_euler_steps(folder, torch_flow, arrays):
    """From noise alone on, where the clean latents are known from v, z_t - sigma v, and not from the noise."""
    prior = stable_diffusion(folder)
    weights = prior.init(jax.random.key(0))
    predict, predict_x0 = (partial(f, weights, {}) for f in (prior.predict, prior.predict_x0))
    rows = arrays["emb_cond_vd"], arrays["emb_uncond"], prior.noise_schedule
    sample = jax.jit(lambda z: ddim(predict, z, *rows, s=3.0, steps=3, predict_x0=predict_x0))(arrays["noise"])
    np.testing.assert_allclose(sample, torch_flow["sample_2"], atol=3e-5)
