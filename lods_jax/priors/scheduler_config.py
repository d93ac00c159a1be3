"""The noise schedule and the kind of prediction that a `scheduler_config.json` of diffusers describes.

What a scheduler says of sampling (its class, its spacing of timesteps) is nothing to a prior; what the network was trained on is.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lods_jax.core.noise_schedule import NoiseSchedule, T, flow_matching, from_betas, linear_betas, scaled_linear_betas
from lods_jax.priors.diffusers_folder import is_number, read_config

FLOW = "flow_prediction"  # of the velocity noise - z
PREDICTION_TYPES = ("epsilon", "v_prediction", FLOW)
FLOW_CLASSES = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler")
# Of networks that were distilled to a few steps.
FEW_STEPS = ("LCMScheduler", "TCDScheduler", "FlowMatchLCMScheduler")
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

# What is written: Stable Diffusion's schedule, and flow matching.
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "_diffusers_version": "0.39.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
}
FLOW_SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "_diffusers_version": "0.39.0",
    "num_train_timesteps": 1000,
    "shift": 1.0,
}


class Scheduler(NamedTuple):
    """What a U-Net was trained on.

    Attributes:
        noise_schedule: what z_t is mixed by.
        prediction_type: one of `PREDICTION_TYPES`, what the network predicts.
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
        ValueError: it is of a kind that is not known, or malformed; the line names the file.
    """
    file = folder / "scheduler" / "scheduler_config.json"
    config = read_config(file)
    try:
        return scheduler_of(config)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def few_steps_sign(folder: Path) -> str | None:
    """What in the scheduler of a folder says that its U-Net was distilled to a few steps.

    Such networks say so nowhere else: by the class of the scheduler, or as sd-turbo by the prediction of noise with trailing
    timesteps, which a scheduler of any other network may have too. Networks of v-prediction without terminal signal are sampled
    by trailing timesteps as a rule.

    Args:
        folder: in diffusers layout.

    Returns:
        The setting, in words; None without a sign.

    Raises:
        FileNotFoundError: the config of the scheduler is missing.
        ValueError: it cannot be read.
    """
    config = read_config(folder / "scheduler" / "scheduler_config.json")
    name, of_noise = config.get("_class_name"), config.get("prediction_type", "epsilon") == "epsilon"
    if name in FEW_STEPS:
        return f"it is a {name}"
    trailing = config.get("timestep_spacing") == "trailing" and of_noise and name not in FLOW_CLASSES
    return "trailing timesteps with noise prediction" if trailing else None


def check_scores(folder: Path) -> None:
    """Checks that the predictions of a folder's U-Net are scores at all timesteps, going by its scheduler.

    Args:
        folder: in diffusers layout.

    Raises:
        FileNotFoundError: the config of the scheduler is missing.
        ValueError: they are not.
    """
    if sign := few_steps_sign(folder):
        raise ValueError(
            f"{folder} was distilled to a few steps, as sdxl-turbo or an LCM, going by its scheduler ({sign}): its predictions "
            "are no scores at most timesteps; pass the folder of the base model, or --prior.few-steps if it was not distilled"
        )


def scheduler_of(config: Mapping[str, Any]) -> Scheduler:
    """The noise schedule and the kind of prediction that a config describes.

    Args:
        config: of any scheduler of diffusers. Keys that concern sampling alone are not looked at.

    Returns:
        What the network was trained on.

    Raises:
        ValueError: it is of a kind that is not known, or malformed.
    """
    name, prediction = config.get("_class_name"), config.get("prediction_type", "epsilon")
    if name not in FLOW_CLASSES and prediction not in PREDICTION_TYPES:
        raise ValueError(f"prediction_type must be {', '.join(PREDICTION_TYPES[:-1])} or {FLOW}, got {prediction!r:.100}")
    if config.get("num_train_timesteps", T) != T:
        raise ValueError(f"num_train_timesteps must be {T}, got {config['num_train_timesteps']!r:.100}")
    if name in FLOW_CLASSES or prediction == FLOW:
        return Scheduler(flow_matching(shift_of(config)), FLOW)
    if "Flow" in str(name) or config.get("use_flow_sigmas"):
        raise ValueError(f"{name!r:.100} is for flow matching, but its prediction_type is {prediction}, not {FLOW}")
    zero_snr = config.get("rescale_betas_zero_snr", False)
    if not isinstance(zero_snr, bool):
        raise ValueError(f"rescale_betas_zero_snr must be true or false, got {zero_snr!r:.100}")
    if zero_snr and prediction == "epsilon":
        raise ValueError("rescale_betas_zero_snr needs the prediction_type v_prediction: without signal, noise says nothing")
    return Scheduler(from_betas(betas_of(config), zero_snr), prediction)


def config_of(prediction_type: str) -> dict[str, Any]:
    """The config of a network that was trained on Stable Diffusion's schedule, or by flow matching.

    Args:
        prediction_type: one of `PREDICTION_TYPES`.

    Returns:
        What `scheduler_of` reads.
    """
    return FLOW_SCHEDULER if prediction_type == FLOW else SCHEDULER | {"prediction_type": prediction_type}


def shift_of(config: Mapping[str, Any]) -> float:
    """The time shift of flow matching.

    Args:
        config: of a scheduler for flow matching. As in diffusers, a class of flow matching does not look at `prediction_type`.

    Returns:
        Its `shift`, or `flow_shift` of a class that diffusion has too; 1, as in diffusers, where sampling alone shifts the time,
            by the size of the image.

    Raises:
        ValueError: it is no positive number, or noise and data have changed places.
    """
    if config.get("invert_sigmas"):
        raise ValueError("invert_sigmas is not supported: expected a network that predicts noise minus data")
    key = "shift" if config.get("_class_name") in FLOW_CLASSES else "flow_shift"
    shift = config.get(key, 1.0)
    if not is_number(shift) or not shift > 0:
        raise ValueError(f"{key} must be a positive number, got {shift!r:.100}")
    return 1.0 if config.get("use_dynamic_shifting") else float(shift)


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
