"""The noise schedule and the kind of prediction that a `scheduler_config.json` of diffusers describes.

What a scheduler says of sampling (its class, its spacing of timesteps) is nothing to a prior; what the network was trained on is.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lods_jax.core.noise_schedule import NoiseSchedule, T, from_betas, linear_betas, scaled_linear_betas
from lods_jax.priors.diffusers_folder import is_number, read_config

PREDICTION_TYPES = ("epsilon", "v_prediction")
BETAS = {"linear": linear_betas, "scaled_linear": scaled_linear_betas}
# What the classes of diffusers 0.39 take where a config is silent: (beta_start, beta_end, beta_schedule).
USUAL = (0.0001, 0.02, "linear")
DEFAULTS = dict.fromkeys(
    (
        "DDIMInverseScheduler", "DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler",
        "DEISMultistepScheduler", "DPMSolverMultistepInverseScheduler", "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "LMSDiscreteScheduler",
        "PNDMScheduler", "SASolverScheduler", "UniPCMultistepScheduler",
    ),
    USUAL,
)  # fmt: skip
DEFAULTS |= dict.fromkeys(("LCMScheduler", "TCDScheduler"), (0.00085, 0.012, "scaled_linear"))
DEFAULTS |= dict.fromkeys(
    ("DPMSolverSDEScheduler", "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler"),
    (0.00085, 0.012, "linear"),
)


class Scheduler(NamedTuple):
    """What a U-Net was trained on.

    Attributes:
        noise_schedule: what z_t is mixed by.
        prediction_type: "epsilon" or "v_prediction", what the network predicts.
    """

    noise_schedule: NoiseSchedule
    prediction_type: str


def read_scheduler(folder: Path) -> Scheduler:
    """The noise schedule and the kind of prediction of a Stable Diffusion folder.

    Args:
        folder: in diffusers layout.

    Returns:
        What its scheduler/scheduler_config.json describes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is for flow matching, has no betas, or is malformed; the line names the file.
    """
    file = folder / "scheduler" / "scheduler_config.json"
    config = read_config(file)
    try:
        return scheduler_of(config)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def scheduler_of(config: Mapping[str, Any]) -> Scheduler:
    """The noise schedule and the kind of prediction that a config describes.

    Args:
        config: of any scheduler of diffusers. Keys that concern sampling alone are not looked at.

    Returns:
        What the network was trained on.

    Raises:
        ValueError: it is for flow matching, has no betas, or is malformed.
    """
    name, prediction = config.get("_class_name"), config.get("prediction_type", "epsilon")
    if "Flow" in str(name) or config.get("use_flow_sigmas") or prediction == "flow_prediction":
        raise ValueError(f"{name} is for flow matching, which is not supported: expected a network that predicts noise or v")
    if prediction not in PREDICTION_TYPES:
        raise ValueError(f"prediction_type must be {' or '.join(PREDICTION_TYPES)}, got {prediction!r:.100}")
    if config.get("num_train_timesteps", T) != T:
        raise ValueError(f"num_train_timesteps must be {T}, got {config['num_train_timesteps']!r:.100}")
    zero_snr = config.get("rescale_betas_zero_snr", False)
    if not isinstance(zero_snr, bool):
        raise ValueError(f"rescale_betas_zero_snr must be true or false, got {zero_snr!r:.100}")
    if zero_snr and prediction == "epsilon":
        raise ValueError("rescale_betas_zero_snr needs the prediction_type v_prediction: without signal, noise says nothing")
    return Scheduler(from_betas(betas_of(config), zero_snr), prediction)


def betas_of(config: Mapping[str, Any]) -> np.ndarray:
    """The betas of a config.

    Args:
        config: as for `scheduler_of`.

    Returns:
        [T]: `trained_betas`, or else those of the schedule that it names; what it does not say is the default of its class.

    Raises:
        ValueError: they cannot be told, or are malformed.
    """
    name, trained = config.get("_class_name", "DDPMScheduler"), config.get("trained_betas")
    if trained is not None:
        if not isinstance(trained, list) or not all(map(is_number, trained)):
            raise ValueError(f"trained_betas must be a list of {T} numbers")
        return np.asarray(trained, np.float64)
    keys = ("beta_start", "beta_end", "beta_schedule")
    defaults = DEFAULTS.get(name) if isinstance(name, str) else None
    if defaults is None and (silent := [key for key in keys if key not in config]):
        raise ValueError(f"the scheduler {name!r:.100} is not known, and without {silent[0]} neither is its noise")
    start, end, kind = (config.get(key, default) for key, default in zip(keys, defaults or USUAL, strict=True))
    if not isinstance(kind, str) or kind not in BETAS:
        raise ValueError(f"beta_schedule must be {' or '.join(BETAS)}, got {kind!r:.100}")
    if not (is_number(start) and is_number(end) and 0 < start < 1 and 0 < end < 1):
        raise ValueError(f"beta_start and beta_end must be between 0 and 1, got {start!r:.100} and {end!r:.100}")
    return BETAS[kind](start, end)
