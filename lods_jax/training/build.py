"""Where names meet code: a configuration turned into the components of a run."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from lods_jax.config import CameraConfig, Config, OptimizerConfig, ever_on
from lods_jax.core.cameras import Orbit, sample_orbit
from lods_jax.core.errors import UserError, tell
from lods_jax.core.random import run_key
from lods_jax.core.types import Objective, Prior, Reference
from lods_jax.distillation import prompts
from lods_jax.distillation.known_views import ReferenceView
from lods_jax.distillation.perp_neg import interpolate_view_prompts, with_negatives
from lods_jax.distillation.registry import make_objective
from lods_jax.distillation.regularizers import IMAGE_ERRORS, image_errors, weighted_regularizers
from lods_jax.distillation.rewards import Reward
from lods_jax.distillation.score_paths import ENCODER, ScorePath
from lods_jax.distillation.train_step import select_view_prompts
from lods_jax.priors.hub import local, unet_hash
from lods_jax.priors.registry import views_of
from lods_jax.priors.tokenizer import left_out
from lods_jax.priors.user_adapters import adapter_notes
from lods_jax.training.checks import check_groups, check_perp_neg, check_precision, check_queries, check_reward, check_tiles
from lods_jax.training.compilation import Once, memory
from lods_jax.training.gaussian_setup import gaussian_setup
from lods_jax.training.image_to_3d import ImageInputs, image_inputs
from lods_jax.training.memory_plan import MemoryPlan
from lods_jax.training.nerf_setup import nerf_setup
from lods_jax.training.prior_settings import loras_of, prior_of, text_on_host, untrained_prior, without_text
from lods_jax.training.rewards import reward_of
from lods_jax.training.run_inputs import initial_psi, input_hashes, source_object
from lods_jax.training.run_prompts import has_front, names_views, prompt_table_of
from lods_jax.training.scene_setups import SceneSetup, StaticShapes, in_particles, state_of_scene
from lods_jax.training.schedules import Timeline, phase, score_path_of, window


class Plan(NamedTuple):
    """The numbers of the training loop.

    Attributes:
        seed: of all noise.
        steps: number of steps.
        batch: views per step, on all devices together.
        resolution: edge of the renders, pixels.
        later_resolution: the same from the step `later_from` on.
        later_from: the step of the milestone.
        parallel: "auto", "jit", "pmap" or "shard_map".
        reduce: "sum" or "ordered".
        fit_shares_noise: see `train_step.make_train_step`.
        schedule: see `train_step.make_train_step`.
        memory: what the step gives up for memory.
        fit_first: see `train_step.make_train_step`.
    """

    seed: int
    steps: int
    batch: int
    resolution: int
    later_resolution: int
    later_from: float
    parallel: str
    reduce: str
    fit_shares_noise: bool
    schedule: tuple[int, int] | None
    memory: MemoryPlan
    fit_first: int = 0


class Components(NamedTuple):
    """A run, ready to be trained: scene, prior, objective, optimizers, and the numbers of the loop.

    Attributes:
        setup: kind of scene with its settings.
        prior: predicts noise.
        prior_sha256: of the U-Net's weights; None for closed forms.
        weights: frozen parameters of the prior.
        objective: queries and residual.
        texts: {name: tokens [views n d]}.
        select_prompts: (texts, camera) -> ({name: tokens [b n d]}, the function that predicts with them).
        psi: the learnable part before the first step.
        tx_theta: optimizer of the scene.
        tx_psi: optimizer of the learnable part.
        cameras: (keys [b], views [b]) -> b cameras.
        orbit: the distribution of cameras.
        window: step -> lowest and highest timestep.
        regularizers: (render, step) -> {name: weighted cost [b]}.
        plan: numbers of the loop.
        reference_view: static shapes -> the view of the reference image, or None.
        score_path: from latents to pixels.
        image_inputs: of a run from an image.
        adapters: an entry for each file that the prior was changed with, see `user_adapters.adapter_notes`.
        reward: weighs several noises of a view.
        source: theta and aux of the object that the run edits.
    """

    setup: SceneSetup
    prior: Prior
    prior_sha256: str | None
    weights: Any
    objective: Objective
    texts: dict[str, Array]
    select_prompts: Callable
    psi: Any
    tx_theta: optax.GradientTransformation
    tx_psi: optax.GradientTransformation
    cameras: Callable
    orbit: Orbit
    window: Callable
    regularizers: Callable
    plan: Plan
    reference_view: Callable[[StaticShapes], ReferenceView | None]
    score_path: ScorePath = ENCODER
    image_inputs: ImageInputs | None = None
    adapters: Sequence[Mapping[str, Any]] = ()
    reward: Reward | None = None
    source: tuple[Any, Any] | None = None

    @property
    def inputs(self) -> dict[str, str]:
        """The SHA-256 of each file that the run depends on, by its name for the user."""
        zero123, judge = self.image_inputs and self.image_inputs.zero123_sha256, self.reward and self.reward.judge.sha256
        return input_hashes(self.prior_sha256, zero123, judge, self.adapters)

    @property
    def reference(self) -> Reference | None:
        """The optional inputs of the train step."""
        given = self.image_inputs and self.image_inputs.reference
        if self.source and any(query.latents == "reference" for query in self.objective.queries.values()):
            given = (given or Reference()).replace(source=self.source)
        return given if self.reward is None else (given or Reference()).replace(reward=self.reward.judge.params)


def build(config: Config, folder: Path | None = None, once: Once | None = None) -> Components:
    """The components of a configuration.

    Args:
        config: of the run.
        folder: of a run that goes on, with what was made from its image.
        once: holds the prior and its weights, see `compilation.memory`. Runs that differ only in the prompt may share it.

    Returns:
        The components, weights read and prompts embedded.

    Raises:
        UserError: settings do not fit each other.
        ValueError: the prior cannot be read, or does not know a text.
    """
    objective, _ = checked(config)
    once, name, orbit = memory() if once is None else once, config.prior.name, orbit_of(config.camera)
    prior = once("prior", lambda: prior_of(config.prior))
    table = prompt_table_of(config, prior.truncate)
    named = {"prompt": config.prompt, "negative prompt": config.negative_prompt, "source prompt": config.source_prompt}
    if cut := left_out(prior.truncate, named, prompts.view_endings(names_views(config))):
        tell(f"{'prompt':<10}{cut}")
    weights = once("weights", lambda: text_on_host(prior.init(jax.random.key(0))))
    texts = {name: prior.embed(weights, list(rows)) for name, rows in table.items()}
    psi, sha256 = first_psi(config, prior, objective, weights, texts["null"][0]), once("sha256", lambda: unet_hash(local(name)))
    if config.objective.init_psi:
        psi = initial_psi(config.objective.init_psi, folder, psi, sha256)
    found = image_inputs(config, orbit, timeline_of(config), folder, prior, weights) if config.image.file else None
    adapters = once("adapters", lambda: list(adapter_notes(loras_of(config.prior), config.prior.embedding)))
    reward = once("reward", lambda: reward_of(config.objective, name))
    if reward:
        asked = prompt_table_of(config, prior.truncate, has_front(config))["prompt"]  # also where the prior sees the cameras
        texts["reward"] = jnp.asarray(reward.judge.embed(asked))[:, None]
    made = assemble(config, prior, sha256, without_text(weights), objective, texts, psi)
    components = made._replace(image_inputs=found, adapters=adapters, reward=reward)
    if config.edit.run:
        like = state_of_scene(components.setup, config.resolution)
        components = components._replace(source=source_object(config.edit.run, folder, like))
    return components


def build_abstract(config: Config) -> Components:
    """The components with shapes in place of arrays, for a published architecture without its folder. They cannot be run.

    Args:
        config: of the run; its prior is a key of `architectures.CONFIGS`.

    Returns:
        The components.

    Raises:
        UserError: settings do not fit each other, or the run has an image or a reward, or edits an object.
    """
    others = {"an image": config.image.file, "an edit": config.edit.run, "a reward": config.objective.reward != "none"}
    if what := next((what for what, there in others.items() if there), None):
        raise UserError(f"a dry run of {what} needs the folder of the prior, and {config.prior.name} is a name alone")
    objective, table = checked(config)
    prior, shape = untrained_prior(config.prior)
    weights = jax.eval_shape(prior.init, jax.random.key(0))
    row = jax.ShapeDtypeStruct(shape, jnp.float32)
    texts = {name: jax.ShapeDtypeStruct((len(rows), *row.shape), row.dtype) for name, rows in table.items()}
    psi = jax.eval_shape(lambda weights, tokens: first_psi(config, prior, objective, weights, tokens), weights, row)
    return assemble(config, prior, None, without_text(weights), objective, texts, psi)


def checked(config: Config) -> tuple[Objective, dict[str, Sequence[str]]]:
    """Objective and prompt table of a config, after all checks that need no weights.

    Raises:
        UserError: settings do not fit each other.
    """
    objective, setup = objective_of(config), scene_setup(config)
    check_precision(config, objective)
    check_tiles(config)
    check_groups(config, views_of(config.prior.name))
    check_perp_neg(config)
    check_reward(config, objective)
    # Built here for its complaints alone, before weights are read.
    setup.scene(setup.choose_shapes(config.resolution, None))
    table = prompt_table_of(config)
    check_queries(config, objective, table)
    return objective, table


def objective_of(config: Config) -> Objective:
    """The objective of a config."""
    o = config.objective
    return make_objective(o.name, o.guidance_scale, o.options | ({} if o.adapter_text is None else {"adapter_text": "adapter"}))


def predictions_per_view(config: Config, objective: Objective) -> int:
    """Noise predictions per view and step: of the score, of its inversion, and of the denoising loss unless the score's serve it.

    Those that Perp-Neg adds to the score count too.

    Args:
        config: of the run.
        objective: of the run.

    Returns:
        Their number.
    """
    apart = objective.trained_query is not None and not config.objective.fit_shares_noise
    noises = 1 if config.objective.reward == "none" else config.objective.noises
    queries = with_negatives(objective.queries)[0] if config.perp_neg else objective.queries
    asked = noises * (len(queries) + objective.inversion_predictions) + apart
    return asked + 2 * (config.zero123.name != "none")


def first_psi(config: Config, prior: Prior, objective: Objective, weights: Any, tokens: Array) -> Any:
    """The learnable part of the prior before the first step.

    Args:
        config: of the run.
        prior: of the run.
        objective: names the trained query.
        weights: of the prior.
        tokens: of the null text [n d].

    Returns:
        psi.
    """
    return prior.init_psi(weights, run_key(config.seed, "psi"), tokens, objective.trained_queries)


def psi_optimizer(o: OptimizerConfig) -> optax.GradientTransformation:
    """Adam for the learnable part of the prior; o are the settings of the optimizers."""
    return optax.adam(o.psi_lr, o.b1, o.b2 if o.psi_b2 is None else o.psi_b2, o.eps)


def assemble(
    config: Config, prior: Prior, sha256: str | None, weights: Any, objective: Objective, texts: dict[str, Array], psi: Any
) -> Components:
    """The components from a configuration and what was made with its prior.

    Args:
        config: of the run.
        prior: of the run.
        sha256: of the U-Net's weights, or None.
        weights: of the prior.
        objective: of the run.
        texts: {name: tokens [views n d]}.
        psi: the learnable part.

    Returns:
        The components, without an image.
    """
    setup, orbit, timeline = scene_setup(config), orbit_of(config.camera), timeline_of(config)
    return Components(
        setup,
        prior,
        sha256,
        weights,
        objective,
        texts,
        interpolate_view_prompts if config.perp_neg else select_view_prompts,
        psi,
        tx_theta=setup.tx,
        tx_psi=psi_optimizer(config.optimizer),
        cameras=lambda keys, views: sample_orbit(keys, views, config.batch, orbit, prior.views),
        orbit=orbit,
        window=window(timeline, config.timesteps.min, config.timesteps.max, config.timesteps.anneal),
        regularizers=weighted_regularizers(
            {k: partial(phase, timeline, v) for k, v in vars(config.regularizers).items() if ever_on(v)}
        ),
        plan=plan_of(config),
        reference_view=reference_view_of(config, setup),
        score_path=score_path_of(config.score_path, timeline_of(config)),
    )


def reference_view_of(config: Config, setup: SceneSetup) -> Callable[[StaticShapes], ReferenceView | None]:
    """The reference view of a run, for any static shapes.

    Args:
        config: of the run.
        setup: of the scene.

    Returns:
        static shapes -> the view of its image, or None.
    """
    if not config.image.file:
        return lambda shapes: None
    weights = {name: getattr(config.image, name) for name in IMAGE_ERRORS}
    errors = image_errors({name: partial(phase, timeline_of(config), pair) for name, pair in weights.items() if any(pair)})
    orbit = orbit_of(config.camera)
    return lambda shapes: ReferenceView(setup.eval_scene(shapes), errors, config.image.joins, orbit)


def timeline_of(config: Config) -> Timeline:
    """The timeline that schedules of a config are fractions of."""
    return Timeline(config.steps, config.milestone)


def orbit_of(camera: CameraConfig) -> Orbit:
    """The distribution of training cameras, from the settings of the camera."""
    return Orbit(**vars(camera))


def scene_setup(config: Config) -> SceneSetup:
    """The setup of the scene that a config names, with its particles."""
    c, o, steps = config.camera, config.optimizer, config.steps
    if config.scene == "nerf":
        one = nerf_setup(config.nerf, o, steps, normals=ever_on(config.regularizers.orientation))
    else:
        view = max(c.extent) if c.extent else max(c.radius) * math.tan(math.radians(sum(c.fov_y) / 4))
        closest = min(c.extent) if c.extent else min(c.radius) * math.tan(math.radians(min(c.fov_y) / 2))
        pixel = 2 * closest / max(config.resolution, config.resolution_after or 0)
        one = gaussian_setup(config.gaussians, o, steps, view, config.seed, pixel)
    return in_particles(one, config.particles, views_of(config.prior.name))


def plan_of(config: Config) -> Plan:
    """The numbers of the training loop, from a config."""
    return Plan(
        seed=config.seed,
        steps=config.steps,
        batch=config.batch,
        resolution=config.resolution,
        later_resolution=config.resolution_after or config.resolution,
        later_from=timeline_of(config).later_from,
        parallel=config.parallel,
        reduce=config.reduce,
        fit_shares_noise=config.objective.fit_shares_noise,
        schedule=config.objective.schedule,
        memory=MemoryPlan(*(getattr(config.prior, name) for name in MemoryPlan._fields)),
        fit_first=config.edit.fit_first,
    )
