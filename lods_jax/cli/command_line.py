"""From a line of words to one of the commands of `cli.flags`."""

import difflib
import io
import re
from contextlib import redirect_stderr
from dataclasses import fields, replace
from functools import reduce
from operator import or_
from typing import Annotated, Any

import tyro

from lods_jax import config as configs
from lods_jax.cli.flags import COMMANDS, ImageTo3D, PictureRun, TextTo3D, TextToImage
from lods_jax.config import Config, ObjectiveConfig, PriorConfig
from lods_jax.config.aliases import current_key
from lods_jax.core.errors import UserError, remark

DEFAULT_PRESETS = {  # by task and --scene: of the shipped prior of four views, and of another one
    "gaussians": ("views-gaussians-lods-lora", "gaussians-lods-lora"),
    "nerf": ("views-nerf-lods-lora", "nerf-lods-lora"),
    "image-gaussians": ("image-views-gaussians-lods-lora", "image-gaussians-lods-lora"),
    "image-nerf": ("image-nerf-lods-embedding", "image-nerf-lods-embedding"),
}


def parse(argv: list[str]) -> Any:
    """The command of a command line. Defaults < --config < flags.

    Args:
        argv: the words after `lods`.

    Returns:
        An instance of one of the classes of `cli.flags`.

    Raises:
        UserError: the words are no command.
    """
    check_command(argv)
    argv = current_flags(argv)
    check_flags(argv)
    defaults: dict[str, Any] = {}
    if argv[:1] == ["text-to-3d"]:
        defaults["text-to-3d"] = TextTo3D(preset(argv))
    elif argv[:1] == ["image-to-3d"]:
        defaults["image-to-3d"] = ImageTo3D(settings=PictureRun(**vars(preset(argv, "image-"))))
    elif argv[:1] == ["text-to-image"] and (file := given(argv, "--config")):
        defaults["text-to-image"] = configs.load(file, TextToImage)
    named = {name: {"name": name} | ({"default": defaults[name]} if name in defaults else {}) for name in COMMANDS}
    kinds = [Annotated[kind, tyro.conf.subcommand(**named[name])] for name, kind in COMMANDS.items()]
    box = io.StringIO()
    try:
        with redirect_stderr(box):
            # Unknown words come back: to look for their neighbours takes tyro a second.
            command, unknown = tyro.cli(
                reduce(or_, kinds),
                prog="lods",
                args=argv,
                description="Score-distillation 3D generation in JAX.",
                return_unknown_args=True,
            )
    except SystemExit as end:
        if not end.code:  # --help
            raise
        raise UserError(f"{unboxed(box.getvalue())}; see lods {' '.join([*argv[:1], '--help'])}") from None
    if unknown:
        raise UserError(f"{argv[0]} does not take {unknown[0]!r} there; see lods {argv[0]} --help")
    if not isinstance(command, TextTo3D | ImageTo3D):  # whose settings are a configuration, and are checked as one
        configs.check_ranges(command, called=lambda name: "the prompt" if name == "prompt" else f"--{name.replace('_', '-')}")
    return command


def unboxed(text: str) -> str:
    """The text that tyro prints in a box, as one line: what stands between the first two rules."""
    lines = [line.strip(" │") for line in text.splitlines()]
    rules = [i for i, line in enumerate(lines) if line and not line.strip("╭╮╰╯─-")]
    said = lines[rules[0] + 1 : rules[1]] if len(rules) > 1 else lines
    return " ".join(" ".join(said).split()).rstrip(".")


def preset(argv: list[str], task: str = "") -> Config:
    """The configuration that flags start from: the file of --config, or the preset of the scene and of the kind of prior.

    An objective that a flag names replaces the file's as a whole, and a resolution holds for the whole run. The little guidance
    of the shipped prior of four views is not what another prior starts from: it was tried there alone.

    Args:
        argv: the words after `lods`.
        task: prefix of the preset's name, "image-" for image-to-3d.

    Returns:
        The configuration.
    """
    of_views, other = DEFAULT_PRESETS.get(task + (given(argv, "--scene") or "gaussians"), DEFAULT_PRESETS[task + "gaussians"])
    prior = given(argv, "--prior") or given(argv, "--prior.name") or "tabletop-views"
    start = configs.load(given(argv, "--config") or (of_views if prior == "tabletop-views" else other))
    if given(argv, "--resolution") and not given(argv, "--resolution-after"):
        start = replace(start, resolution_after=None)
    name = given(argv, "--objective") or given(argv, "--objective.name") or start.objective.name
    return start if name == start.objective.name else replace(start, objective=ObjectiveConfig(name))


def given(argv: list[str], flag: str) -> str | None:
    """The value of a flag in argv, written `--flag VALUE` or `--flag=VALUE`; None without the flag. Of several the last counts.

    Examples:
        >>> given(["text-to-3d", "--seed", "2", "--seed=3"], "--seed")
        '3'
    """
    value = None
    for word, following in zip(argv, [*argv[1:], None], strict=True):
        if word == flag:
            value = following
        elif word.startswith(f"{flag}="):
            value = word.removeprefix(f"{flag}=")
    return value


def check_command(argv: list[str]) -> None:
    """Checks that the first word is a command.

    Args:
        argv: the words after `lods`.

    Raises:
        UserError: it is none; the message names the nearest.
    """
    if not argv:
        raise UserError(f"name a command: {', '.join(COMMANDS)}; see lods --help")
    if argv[0] not in COMMANDS and argv[0] not in ("-h", "--help"):
        nearest = difflib.get_close_matches(argv[0], COMMANDS, n=1, cutoff=0.0)[0]
        raise UserError(f"there is no command {argv[0]}; the nearest is {nearest}; see lods --help")


def current_flags(argv: list[str]) -> list[str]:
    """The words of argv with old names of settings under their current ones; a line on stderr says which."""
    words, changed = [], []
    for word in argv:
        flag, equals, value = word.partition("=")
        new = current_key(flag[2:].replace("-", "_")).replace("_", "-") if re.match(r"--[a-z]", flag) else ""
        if not new or new == flag[2:].replace("_", "-"):
            words.append(word)
            continue
        changed.append(f"{flag} is --{new}")
        words.append(f"--{new}{equals}{value}")
    if changed:
        remark(f"lods: read under new names: {', '.join(changed)}")
    return words


def check_flags(argv: list[str]) -> None:
    """Checks that the command has all flags.

    Args:
        argv: the words after `lods`.

    Raises:
        UserError: it lacks one; the message names the nearest.
    """
    command = COMMANDS.get(argv[0])
    if command is None:
        return
    known = [f"--{item.name}" for item in fields(command) if item.name != "settings"] + ["--help"]
    known += [f"--prior.{item.name}" for item in fields(PriorConfig) if "--prior" in known]
    if command in (TextTo3D, ImageTo3D):
        known += [f"--{name}" for name in configs.keys(Config) if name != "prompt"]
        known += ["--prior", "--objective", "--guidance-scale", "--init-psi", "--score-path"]
    if command is ImageTo3D:
        known += ["--prompt", "--azimuth", "--elevation", "--fov", "--radius", "--pose-prior"]
    flags = [name.replace("_", "-") for name in known]
    for word in argv[1:]:
        flag = word.partition("=")[0].replace("_", "-")
        turned_on = re.sub(r"(^--|\.)no-", r"\1", flag)  # of --no-perp-neg and --prior.no-remat
        if re.match(r"--[a-z]", flag) and flag not in flags and turned_on not in flags:
            nearest = difflib.get_close_matches(flag, flags, n=1, cutoff=0.0)[0]
            raise UserError(f"{argv[0]} has no {word.partition('=')[0]}; the nearest is {nearest}")
