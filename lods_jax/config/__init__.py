"""The configuration of a run: `schema` says what there is, `loading` reads and writes it, `validation` refuses what cannot be.

Defaults < YAML < flags. No file here loads jax: `lods --help` answers at once.
"""

from lods_jax.config.loading import RESUME_SAFE_KEYS, differences, dump, find, from_mapping, keys, leaves, load, parse_yaml
from lods_jax.config.schema import (
    CameraConfig,
    CheckpointConfig,
    Config,
    GaussianConfig,
    GaussianRates,
    ImageConfig,
    NerfConfig,
    NerfRates,
    ObjectiveConfig,
    OptimizerConfig,
    OutputConfig,
    PriorConfig,
    RefineConfig,
    RegularizersConfig,
    Schedule,
    TimestepConfig,
    Zero123Config,
    ever_on,
    has_milestones,
    milestone_step,
)
from lods_jax.config.validation import check

__all__ = [
    "RESUME_SAFE_KEYS",
    "CameraConfig",
    "CheckpointConfig",
    "Config",
    "GaussianConfig",
    "GaussianRates",
    "ImageConfig",
    "NerfConfig",
    "NerfRates",
    "ObjectiveConfig",
    "OptimizerConfig",
    "OutputConfig",
    "PriorConfig",
    "RefineConfig",
    "RegularizersConfig",
    "Schedule",
    "TimestepConfig",
    "Zero123Config",
    "check",
    "differences",
    "dump",
    "ever_on",
    "find",
    "from_mapping",
    "has_milestones",
    "keys",
    "leaves",
    "load",
    "milestone_step",
    "parse_yaml",
]  # fmt: skip
