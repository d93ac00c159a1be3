"""Checks of a configuration: numbers in range, settings that fit each other."""

import importlib.util
import math
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

from lods_jax.config.aliases import PRIORS
from lods_jax.config.loading import leaves
from lods_jax.config.milestones import Schedule, ever_on, has_milestones, milestone_step
from lods_jax.config.schema import Config, PriorConfig
from lods_jax.core.errors import UserError


def check(config: Config) -> Config:
    """Checks that the settings of a configuration are in range and fit each other.

    Args:
        config: any.

    Returns:
        The configuration, its prior named in full: `tabletop` stands for the newest that is shipped.

    Raises:
        UserError: it names the key, what came and what is allowed.
    """
    check_ranges(config)
    check_prior(config.prior)
    for name, item, value in leaves(config):
        if item.type == Schedule and has_milestones(value):
            check_milestones(name, value, config.steps)
    check_sizes(config)
    check_exclusions(config)
    check_cameras(config)
    check_windows(config)
    check_image(config)
    if config.output.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise UserError("output.tensorboard needs tensorboardX: pip install 'lods_jax[log]'")
    return replace(config, prior=replace(config.prior, name=PRIORS.get(config.prior.name, config.prior.name)))


def check_sizes(config: Config) -> None:
    """Checks that numbers of things fit each other: Gaussians, views, particles, steps.

    Args:
        config: any.

    Raises:
        UserError: it names the key, what came and what is allowed.
    """
    g = config.gaussians
    if g.init_count > g.capacity:
        raise UserError(f"gaussians.init_count must be at most gaussians.capacity = {g.capacity}, got {g.init_count}")
    if config.batch % config.particles:
        raise UserError(f"batch must be a multiple of particles = {config.particles}, got {config.batch}: pass --batch")
    if config.reduce == "ordered" and config.particles > 1:
        raise UserError(
            f"reduce ordered takes one view at a time, and {config.particles} particles need as many: pass --reduce sum"
        )
    if config.edit.fit_first >= config.steps:
        raise UserError(f"edit.fit_first must leave steps of the {config.steps} to the object, got {config.edit.fit_first}")


def check_exclusions(config: Config) -> None:
    """Checks that no two settings exclude each other.

    Args:
        config: any.

    Raises:
        UserError: it names the key, what came and what is allowed.
    """
    if config.objective.fit_shares_noise and config.objective.reward != "none":
        raise UserError("objective.fit_shares_noise needs one noise a view, and a reward several: pass one of them alone")
    if config.debug_nans and (config.objective.schedule or config.edit.fit_first):
        raise UserError("debug_nans stops at every NaN, and steps of one half alone log one on purpose: pass one of them alone")
    if config.edit.run and (config.image.file or config.particles > 1):
        raise UserError("an edit starts from the one object of a run: leave image.file and particles out")
    for name in ("z_variance", "distortion", "orientation"):
        if config.scene != "nerf" and ever_on(getattr(config.regularizers, name)):
            raise UserError(f"regularizers.{name} is of rays through a NeRF: pass --scene nerf, or leave it at 0")


def check_cameras(config: Config) -> None:
    """Checks the distances and ranges of the cameras.

    Args:
        config: any.

    Raises:
        UserError: it names the key, what came and what is allowed.
    """
    if (config.camera.radius is None) == (config.camera.extent is None):
        raise UserError(f"give either camera.radius or camera.extent, got {config.camera.radius} and {config.camera.extent}")
    for name in ("elevation", "fov_y", "radius", "extent", "overhead_elevation"):
        pair = getattr(config.camera, name)
        if pair and pair[0] > pair[1]:
            raise UserError(f"camera.{name} must be a lower and an upper limit, got {pair[0]:g} and {pair[1]:g}")


def check_windows(config: Config) -> None:
    """Checks that no window of timesteps is empty at any of its milestones.

    Args:
        config: any.

    Raises:
        UserError: it names the key, what came and what is allowed.
    """
    for name, window in (("timesteps", config.timesteps), ("zero123", config.zero123)):
        knots = sorted({at for schedule in (window.min, window.max) for at, _ in milestones(schedule, config)})
        if any(held_at(milestones(window.min, config), at) > held_at(milestones(window.max, config), at) for at in knots):
            raise UserError(f"{name}.min must not exceed {name}.max, got {window.min} and {window.max}")


def check_image(config: Config) -> None:
    """Checks that an image is asked for where one is needed, and looked at where one is given.

    Args:
        config: any.

    Raises:
        UserError: it names the key, what came and what is allowed.
    """
    p = config.image
    if not p.file and (config.zero123.name != "none" or p.invert):
        raise UserError("zero123 and image.invert need an image: use image-to-3d")
    if p.file and config.particles > 1:
        raise UserError(f"an image is of one object: leave particles at 1, got {config.particles}")
    looks = (*p.rgb, *p.mask, *p.depth, *p.normal, config.zero123.name != "none", p.invert)
    if p.file and config.prompt and not any(looks):
        raise UserError("nothing of this run looks at the image: pass --config image-..., --image.rgb or --pose-prior")
    for name in ("depth", "normal"):
        if any(getattr(p, name)) and not getattr(p, f"{name}_file"):
            raise UserError(f"image.{name} needs image.{name}_file: an image of it")


def check_prior(prior: PriorConfig) -> None:
    """Checks that there is a scale for each LoRA file, or for none.

    Args:
        prior: settings of the prior.

    Raises:
        UserError: there are more or fewer.
    """
    if prior.lora_scale and not prior.lora:
        raise UserError("prior.lora_scale is the scale of a LoRA file, and there is none: pass --prior.lora FILE too")
    if prior.lora_scale and len(prior.lora_scale) != len(prior.lora):
        files = f"{len(prior.lora)} file{'' if len(prior.lora) == 1 else 's'} of prior.lora"
        raise UserError(f"prior.lora_scale must be one number for each of the {files}, got {len(prior.lora_scale)}")


def check_ranges(settings: Any, called: Callable[[str], str] = str) -> None:
    """Checks that the numbers of a dataclass are in range (`schema.bounded`), and that its texts hold no control characters.

    Args:
        settings: a dataclass, perhaps of others.
        called: from a field's dotted name to the user's name for it.

    Raises:
        UserError: it names the key, what came and what is allowed.
    """
    for name, item, value in leaves(settings):
        low, high = item.metadata.get("range", (None, None))
        held = [x for _, x in value] if has_milestones(value) else value if isinstance(value, tuple) else [value]
        for x in held if low is not None and value is not None else ():
            if not low <= x <= high:  # also refuses NaN
                raise UserError(f"{called(name)} must lie in {number(low)}..{number(high)}, got {number(x)}")
        for text in texts(value):
            if bad := next((char for char in text if unicodedata.category(char) in ("Cc", "Cs") and char not in "\t\n"), None):
                raise UserError(f"{called(name)} holds the control character {bad!r}: take it out")


def number(x: float | int) -> str:
    """A number x as an error message shows it; a whole number of 400 digits by their count.

    Examples:
        >>> number(0.5), number(10**400)
        ('0.5', 'a number of 400 digits')
    """
    if isinstance(x, int) and abs(x) < 10**15:
        return str(x)
    try:
        return f"{x:g}"
    except OverflowError:
        return f"a number of {round(math.log10(2) * int(x).bit_length())} digits"


def texts(value: Any) -> list[str]:
    """The texts in the value of a key: itself, or keys and values of a dict.

    Examples:
        >>> texts({"face": "back"})
        ['face', 'back']
    """
    held = [x for pair in value.items() for x in pair] if isinstance(value, dict) else [value]
    return [x for x in held if isinstance(x, str)]


def milestones(schedule: Schedule, config: Config) -> list[tuple[float, float]]:
    """The milestones (step, value) of a schedule, those of a pair too.

    Args:
        schedule: a pair or milestones.
        config: of the run.

    Returns:
        In the order of the steps.
    """
    if has_milestones(schedule):
        return [(milestone_step(at, config.steps), value) for at, value in schedule]
    before, after = cast(tuple[float, float], schedule)
    return [(0.0, before), (config.milestone * config.steps, after)]


def held_at(milestones: list[tuple[float, float]], step: float) -> float:
    """The value at a step of `milestones` (step, value) that each hold from their step on.

    Examples:
        >>> held_at([(0.0, 1.0), (200.0, 2.0)], 250.0)
        2.0
    """
    return next(value for at, value in reversed(milestones) if at <= step)


def check_milestones(name: str, milestones: tuple[tuple[float, float], ...], steps: int) -> None:
    """Checks that milestones start at step 0 and increase.

    Args:
        name: of the key.
        milestones: (step, value) pairs.
        steps: of the run.

    Raises:
        UserError: they do not.
    """
    at = [milestone_step(step, steps) for step, _ in milestones]
    if at[:1] != [0] or not all(a < b < math.inf for a, b in pairwise(at)):
        got = [list(pair) for pair in milestones]
        raise UserError(f"{name} must be milestones [step, value] whose steps go up from 0, got {got}")
