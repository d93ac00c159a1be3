"""Score-distillation 3D generation in JAX: LODS, SDS, VSD, DDS and their relatives over one interface.

The names below are the public API. Each is imported when it is first used: `import lods_jax` alone loads no jax, so that
`lods --help` answers at once.

Examples:
    >>> import lods_jax
    >>> config = lods_jax.load_config("gaussians-sds")
    >>> config.objective.name
    'sds'
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lods_jax.config import Config as Config
    from lods_jax.config import dump as dump_config
    from lods_jax.config import load as load_config
    from lods_jax.core.cameras import Orbit as Orbit
    from lods_jax.core.cameras import orbit_camera as orbit_camera
    from lods_jax.core.cameras import sample_orbit as sample_orbit
    from lods_jax.core.cameras import turntable as turntable_cameras
    from lods_jax.core.images import write_png as write_png
    from lods_jax.core.types import Camera as Camera
    from lods_jax.core.types import Cond as Cond
    from lods_jax.core.types import Objective as Objective
    from lods_jax.core.types import Prior as Prior
    from lods_jax.core.types import Query as Query
    from lods_jax.core.types import Reference as Reference
    from lods_jax.core.types import Render as Render
    from lods_jax.core.types import Scene as Scene
    from lods_jax.core.types import TrainState as TrainState
    from lods_jax.core.videos import write_video as write_video
    from lods_jax.distillation import objectives as objectives
    from lods_jax.distillation.parallel import compile_train_step as compile_train_step
    from lods_jax.distillation.perp_neg import interpolate_view_prompts as interpolate_view_prompts
    from lods_jax.distillation.prompts import prompt_table as prompt_table
    from lods_jax.distillation.registry import make_objective as make_objective
    from lods_jax.distillation.regularizers import weighted_regularizers as weighted_regularizers
    from lods_jax.distillation.train_step import TrainStep as TrainStep
    from lods_jax.distillation.train_step import init_state as init_state
    from lods_jax.distillation.train_step import make_train_step as make_train_step
    from lods_jax.priors.adapter_files import load_embedding as load_embedding
    from lods_jax.priors.adapter_files import load_lora as load_lora
    from lods_jax.priors.adapter_files import save_embedding as save_embedding
    from lods_jax.priors.adapter_files import save_lora as save_lora
    from lods_jax.priors.gaussian import gaussian as gaussian_prior
    from lods_jax.priors.loading import load_prior as load_prior
    from lods_jax.priors.registry import RegisteredPrior as RegisteredPrior
    from lods_jax.priors.registry import register_prior as register_prior
    from lods_jax.runs.artifacts import scene_renderer as scene_renderer
    from lods_jax.runs.export import export as export
    from lods_jax.runs.run_directory import read_run as read_run
    from lods_jax.scenes.gaussians import gaussians as gaussians
    from lods_jax.scenes.images import image_batch as image_batch
    from lods_jax.scenes.images import pixels as pixels
    from lods_jax.scenes.nerf import nerf as nerf
    from lods_jax.scenes.ply import read_ply as read_ply
    from lods_jax.scenes.ply import write_ply as write_ply
    from lods_jax.scenes.ply import write_splat as write_splat
    from lods_jax.training.build import Components as Components
    from lods_jax.training.build import build as build
    from lods_jax.training.distill_2d import distill as distill
    from lods_jax.training.distill_scene import distill_scene as distill_scene
    from lods_jax.training.loop import first_state as first_state
    from lods_jax.training.loop import train as train

__version__ = "0.1.0"

# Name -> (module below lods_jax, name there; None for the module itself).
_API: dict[str, tuple[str, str | None]] = {
    "Camera": ("core.types", "Camera"),
    "Components": ("training.build", "Components"),
    "Cond": ("core.types", "Cond"),
    "Config": ("config", "Config"),
    "Objective": ("core.types", "Objective"),
    "Orbit": ("core.cameras", "Orbit"),
    "Prior": ("core.types", "Prior"),
    "Query": ("core.types", "Query"),
    "Reference": ("core.types", "Reference"),
    "RegisteredPrior": ("priors.registry", "RegisteredPrior"),
    "Render": ("core.types", "Render"),
    "Scene": ("core.types", "Scene"),
    "TrainState": ("core.types", "TrainState"),
    "TrainStep": ("distillation.train_step", "TrainStep"),
    "build": ("training.build", "build"),
    "compile_train_step": ("distillation.parallel", "compile_train_step"),
    "distill": ("training.distill_2d", "distill"),
    "distill_scene": ("training.distill_scene", "distill_scene"),
    "dump_config": ("config", "dump"),
    "export": ("runs.export", "export"),
    "first_state": ("training.loop", "first_state"),
    "gaussian_prior": ("priors.gaussian", "gaussian"),
    "gaussians": ("scenes.gaussians", "gaussians"),
    "image_batch": ("scenes.images", "image_batch"),
    "init_state": ("distillation.train_step", "init_state"),
    "interpolate_view_prompts": ("distillation.perp_neg", "interpolate_view_prompts"),
    "load_config": ("config", "load"),
    "load_embedding": ("priors.adapter_files", "load_embedding"),
    "load_lora": ("priors.adapter_files", "load_lora"),
    "load_prior": ("priors.loading", "load_prior"),
    "make_objective": ("distillation.registry", "make_objective"),
    "make_train_step": ("distillation.train_step", "make_train_step"),
    "nerf": ("scenes.nerf", "nerf"),
    "objectives": ("distillation.objectives", None),
    "orbit_camera": ("core.cameras", "orbit_camera"),
    "pixels": ("scenes.images", "pixels"),
    "prompt_table": ("distillation.prompts", "prompt_table"),
    "read_ply": ("scenes.ply", "read_ply"),
    "read_run": ("runs.run_directory", "read_run"),
    "register_prior": ("priors.registry", "register_prior"),
    "sample_orbit": ("core.cameras", "sample_orbit"),
    "save_embedding": ("priors.adapter_files", "save_embedding"),
    "save_lora": ("priors.adapter_files", "save_lora"),
    "scene_renderer": ("runs.artifacts", "scene_renderer"),
    "train": ("training.loop", "train"),
    "turntable_cameras": ("core.cameras", "turntable"),
    "weighted_regularizers": ("distillation.regularizers", "weighted_regularizers"),
    "write_ply": ("scenes.ply", "write_ply"),
    "write_png": ("core.images", "write_png"),
    "write_splat": ("scenes.ply", "write_splat"),
    "write_video": ("core.videos", "write_video"),
}
__all__ = [
    "Camera", "Components", "Cond", "Config", "Objective", "Orbit", "Prior", "Query", "Reference", "RegisteredPrior", "Render",
    "Scene", "TrainState", "TrainStep", "build", "compile_train_step", "distill", "distill_scene", "dump_config", "export",
    "first_state", "gaussian_prior", "gaussians", "image_batch", "init_state", "interpolate_view_prompts", "load_config",
    "load_embedding", "load_lora", "load_prior", "make_objective", "make_train_step", "nerf", "objectives", "orbit_camera",
    "pixels", "prompt_table", "read_ply", "read_run", "register_prior", "sample_orbit", "save_embedding", "save_lora",
    "scene_renderer", "train", "turntable_cameras", "weighted_regularizers", "write_ply", "write_png", "write_splat",
    "write_video",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _API:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _API[name]
    found = importlib.import_module(f"{__name__}.{module}")
    value = found if attribute is None else getattr(found, attribute)
    globals()[name] = value  # the next use is no lookup here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
