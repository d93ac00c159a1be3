"""The command line: `lods COMMAND ...`, the same as `python -m lods_jax COMMAND ...`.

Loads no jax before a command has checked its arguments, so that help and refusals come at once.
"""

import difflib
import os
import re
import sys
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from lods_jax import batch
from lods_jax import config as configs
from lods_jax.config import TABLETOP, Config, ObjectiveConfig, UserError

CLOSED_FORM = ("exact", "exact-gaussians")  # priors of the tabletop world without a folder


@dataclass(frozen=True)
class TextTo3D:
    """Distils a prompt into a 3D object: a turning video, stills, and a PLY of Gaussian splats."""

    settings: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    config: str | None = None
    """A YAML file, or a shipped preset: `gaussians-lods-embedding` (also what runs without it), `gaussians-sds`, ..."""
    out: Path | None = None
    """Folder of the run; by default outputs/text-to-3d/PROMPT/TIME, with a link outputs/latest."""
    prompts: str | None = None
    """A file of prompts, one a line or JSON, or the shipped set `tabletop`: a run folder for each below --out. With the PROMPT
    lib:WORDS, the one prompt of the file that has these words."""
    shard: str | None = None
    """With --prompts: I/N runs every N-th prompt from the I-th on, for arrays of jobs."""
    print_config: bool = False
    """Print the resolved configuration as YAML, and run nothing."""
    dry_run: bool = False
    """Compile the step and tell parameters, memory and operations, and run nothing."""
    topology: str | None = None
    """With --dry-run: a TPU slice that need not be there, v5e:2x4 (extra `tpu`)."""
    distributed: bool = False
    """This process is one of several with the same command line, which split the views of each step: see the README."""
    anyway: bool = False
    """Go on with words that the prior has never seen."""


@dataclass(frozen=True)
class PictureRun(Config):
    prompt: str = ""  # type: ignore[assignment]
    """What the picture shows. Without it the tabletop judge reads it, and the prompt's embedding is fitted to it."""


@dataclass(frozen=True)
class ImageTo3D:
    """Distils the object of a picture into 3D: a PNG with alpha, or a picture on a plain background, which is removed."""

    image: tyro.conf.Positional[Path] = Path()
    settings: Annotated[PictureRun, tyro.conf.arg(name="")] = field(default_factory=PictureRun)
    config: str | None = None
    """A YAML file, or a shipped preset: `image-gaussians-lods-embedding` (also what runs without it), ..."""
    out: Path | None = None
    """Folder of the run; by default outputs/image-to-3d/PICTURE/TIME, with a link outputs/latest."""
    print_config: bool = False
    """Print the resolved configuration as YAML, and run nothing."""
    dry_run: bool = False
    """Compile the step and tell parameters, memory and operations, and run nothing."""
    distributed: bool = False
    """This process is one of several with the same command line, as for text-to-3d."""
    anyway: bool = False
    """Go on with words that the prior has never seen."""


@dataclass(frozen=True)
class Resume:
    """Continues a run that was stopped or killed, bit for bit, from its newest checkpoint."""

    run: tyro.conf.Positional[Path]
    changed: bool = False
    """Go on although config.yaml has changed since the checkpoint."""
    distributed: bool = False
    """This process is one of several; a run may go on with another number of them."""


@dataclass(frozen=True)
class View:
    """Shows the splats of a run in a browser on this machine, also while it trains (extra `viewer`)."""

    run: tyro.conf.Positional[Path]
    port: int = 8080


@dataclass(frozen=True)
class Compare:
    """Writes one page with runs side by side, and the true object beside them where the world is tabletop."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    out: Path = Path("outputs/compare.html")


@dataclass(frozen=True)
class Evaluate:
    """Measures runs against the true objects of the tabletop world: a table, and JSON."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    json: Path | None = None
    """Where the figures go as JSON, a row for each run."""


@dataclass(frozen=True)
class Export:
    """Writes the scene of a run for other programs: a mesh (extra `mesh`), splats, or videos."""

    run: tyro.conf.Positional[Path]
    to: Literal["glb", "obj", "ply", "splat", "mp4"] = "glb"
    """glb, obj: a mesh with a baked texture, y up. ply: a mesh with colours at its vertices. splat: scene.splat, and scene.ply of
    splats. mp4: turntables of colour, depth and normals."""
    out: Path | None = None
    """A folder; by default that of the run."""
    faces: int = 10_000
    """Of the mesh at most."""
    texture: int = 512
    """Edge of the texture, pixels."""
    particle: int = 0
    """Which of several particles."""


@dataclass(frozen=True)
class Info:
    """Tells devices, ffmpeg, priors and versions."""


@dataclass(frozen=True)
class TextToImage:
    """Images of a prompt: samples of a diffusion prior, or distilled from it under an objective."""

    prompt: tyro.conf.Positional[str]
    prior: str = "tabletop"
    """`tabletop`, or a Stable Diffusion folder in diffusers layout."""
    out: Path = Path("outputs/text-to-image.png")
    n: int = 8
    """Number of samples, with seeds seed, seed + 1, ..."""
    seed: int = 0
    objective: str | None = None
    """Distil under this objective, and write a video of it beside the PNG. Without it: DDIM samples."""
    guidance_scale: float | None = None
    """By default 4 for samples, and the objective's own."""
    steps: int | None = None
    """By default 30 for samples and 500 for an objective."""
    negative_prompt: str = ""
    space: Literal["latents", "pixels"] = "latents"
    """What an objective moves."""
    lr: float = 0.05
    psi_lr: float | None = None
    """Learning rate of an objective's learned branch; by default 0.03 for an embedding and 0.003 for an adapter."""
    anyway: bool = False
    """Go on with words that the prior has never seen."""


@dataclass(frozen=True)
class EditImage:
    """Edits an image by distillation, from what it shows to what it is to show."""

    image: tyro.conf.Positional[Path]
    source: str
    """What the image shows: "a red mug"."""
    target: str
    """What it is to show: "a blue mug"."""
    prior: str = "tabletop"
    objective: str = "dds"
    """`dds`, or `lods-embedding`, whose unconditional branch is first fitted to the image (`--fit-first`)."""
    out: Path = Path("outputs/edit-image.png")
    n: int = 4
    """Number of edits, which differ in their noise alone."""
    seed: int = 0
    guidance_scale: float | None = None
    steps: int = 200
    fit_first: int = 200
    """Steps of the learned branch alone, before the image moves."""
    lr: float = 0.05
    psi_lr: float | None = None
    """Learning rate of an objective's learned branch; by default 0.03 for an embedding and 0.003 for an adapter."""
    negative_prompt: str = ""
    anyway: bool = False
    """Go on with words that the prior has never seen."""


@dataclass(frozen=True)
class TrainPrior:
    """Trains the tabletop prior and its judge from endless renders, or measures the gates of trained weights."""

    out: Path | None = None
    """Folder of the prior; by default outputs/prior, and the shipped weights for --evaluate alone."""
    minutes: float | None = None
    """Length of this sitting. Without it: 60, or none with --evaluate."""
    resume: bool = False
    """Go on with what --out holds: its checkpoint, or else the weights of the folder."""
    part: Literal["all", "vae", "unet", "pose", "judge"] = "all"
    """The prior's autoencoder, its U-Net, or both; the prior of poses for image-to-3d, which begins as the prior and lies in
    OUT/pose; or the judge."""
    optimizer: Literal["muon", "adamw"] = "muon"
    seed: int = 0
    evaluate: bool = False
    """Measure the gates, print them, and write gates.json, samples.png and renders.png into --out."""


COMMANDS = {
    "text-to-3d": TextTo3D,
    "image-to-3d": ImageTo3D,
    "resume": Resume,
    "view": View,
    "compare": Compare,
    "evaluate": Evaluate,
    "export": Export,
    "info": Info,
    "text-to-image": TextToImage,
    "edit-image": EditImage,
    "train-prior": TrainPrior,
}
DEFAULT_PRESETS = {"gaussians": "gaussians-lods-embedding", "nerf": "nerf-lods-embedding"}  # by --scene; of pictures image-...


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code: 2 after bad input, which is told in one line."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        command = parse(argv)
        return RUN[type(command)](command) or 0
    except (UserError, ValueError, FileNotFoundError) as error:
        if os.environ.get("LODS_TRACEBACK"):
            raise
        print(f"lods: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def parse(argv: list[str]) -> Any:
    """The command of a command line. Defaults < --config < flags."""
    check_flags(argv)
    defaults: dict[str, Any] = {}
    if argv[:1] == ["text-to-3d"]:
        defaults["text-to-3d"] = TextTo3D(preset(argv))
    elif argv[:1] == ["image-to-3d"]:
        defaults["image-to-3d"] = ImageTo3D(settings=PictureRun(**vars(preset(argv, "image-"))))
    named = {name: {"name": name} | ({"default": defaults[name]} if name in defaults else {}) for name in COMMANDS}
    kinds = [Annotated[kind, tyro.conf.subcommand(**named[name])] for name, kind in COMMANDS.items()]
    return tyro.cli(reduce(or_, kinds), prog="lods", args=argv, description="Score-distillation 3D generation in JAX.")


def preset(argv: list[str], task: str = "") -> Config:
    """What flags start from: the file of --config, with an objective that is named by a flag in place of the file's, whole."""
    by_scene = DEFAULT_PRESETS.get(given(argv, "--scene") or "gaussians", "gaussians-lods-embedding")
    start = configs.load(given(argv, "--config") or task + by_scene)
    name = given(argv, "--objective") or given(argv, "--objective.name") or start.objective.name
    return start if name == start.objective.name else replace(start, objective=ObjectiveConfig(name))


def given(argv: list[str], flag: str) -> str | None:
    """The value of a flag: `--flag VALUE` or `--flag=VALUE`."""
    for word, following in zip(argv, [*argv[1:], None], strict=True):
        if word == flag:
            return following
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}=")
    return None


def check_flags(argv: list[str]) -> None:
    """Refuses a flag that the command does not have, and names the nearest that it has."""
    command = COMMANDS.get(argv[0]) if argv else None
    if command is None:
        return
    known = [f"--{item.name}" for item in fields(command) if item.name != "settings"] + ["--help"]
    if command in (TextTo3D, ImageTo3D):
        known += [f"--{name}" for name in configs.keys(Config) if name != "prompt"]
        known += ["--prior", "--objective", "--guidance-scale"]
    if command is ImageTo3D:
        known += ["--prompt", "--azimuth", "--elevation", "--fov", "--radius", "--pose-prior"]
    flags = [name.replace("_", "-") for name in known]
    for word in argv[1:]:
        flag = word.partition("=")[0].replace("_", "-")
        if re.match(r"--[a-z]", flag) and flag not in flags and flag.replace("--no-", "--") not in flags:
            nearest = difflib.get_close_matches(flag, flags, n=1, cutoff=0.0)[0]
            raise UserError(f"{argv[0]} has no {word.partition('=')[0]}; the nearest is {nearest}")


def text_to_3d(args: TextTo3D) -> int:
    config, prompts = configs.check(args.settings), batch.read_prompts(args.prompts) if args.prompts else []
    if prompts and config.prompt.startswith("lib:"):
        config, prompts = replace(config, prompt=batch.pick(prompts, config.prompt)), []
    elif prompts and config.prompt:
        raise UserError("give a prompt or --prompts, not both; lib:WORDS picks one of the file")
    if args.print_config:
        print(configs.dump(config), end="")
        return 0
    if args.topology and not args.dry_run:
        raise UserError("--topology needs --dry-run: nothing can run on a slice that is not there")
    if args.shard and not args.prompts:
        raise UserError("--shard needs --prompts: it is a share of them")
    if args.dry_run:
        dry_run(config, args.topology)
        return 0
    closed = config.prior.name in CLOSED_FORM
    folder = TABLETOP if closed else prior_folder(config.prior.name, config.prior.download)
    for prompt in prompts or [config.prompt]:
        check_prompt(prompt, folder, args.anyway)
    out = args.out or Path("outputs/text-to-3d", Path(args.prompts).stem if prompts else batch.slug(config.prompt))
    if args.distributed and prompts:
        raise UserError("--distributed makes one run of several processes: with --prompts pass --shard, a process for each share")
    start_run(config, args.distributed)
    from lods_jax import run

    if prompts:
        jobs = batch.folders(prompts, out)
        return batch.run_all(config, batch.share(jobs, args.shard) if args.shard else jobs)
    return run.start(config, args.out or out / datetime.now().strftime("%Y%m%d-%H%M%S"))


def image_to_3d(args: ImageTo3D) -> int:
    config = Config(**vars(args.settings))
    files = {f"{name}_file": getattr(config.picture, f"{name}_file") for name in ("depth", "normal")}
    files = {name: str(Path(file).absolute()) for name, file in files.items() if file} | {"file": str(args.image.absolute())}
    config = configs.check(replace(config, picture=replace(config.picture, **files)))
    if not args.image.is_file():
        raise UserError(f"there is no picture {args.image}: lods image-to-3d PICTURE takes a PNG, say")
    if config.prior.name in CLOSED_FORM:
        raise UserError(f"image-to-3d needs a prior that encodes pictures, got {config.prior.name}: pass tabletop or a folder")
    folder = prior_folder(config.prior.name, config.prior.download)
    if config.prompt:
        check_prompt(config.prompt, folder, args.anyway)
    start_run(config, args.distributed)
    from lods_jax import build, cost, pictures, run

    config, said = pictures.settled(config)
    configs.check(config)
    p = config.picture
    if args.print_config:
        print(configs.dump(config), end="")
        return 0
    words = [said, f"camera at azimuth {p.azimuth:g}, elevation {p.elevation:g}", f"prompt {config.prompt!r}"]
    run.say("picture", ", ".join(word for word in words if word))
    if args.dry_run:
        found = cost.estimate(config, build.build(config))
        print(cost.describe(found))
        cost.check_fits(config, found)
        return 0
    out = args.out or Path("outputs/image-to-3d", batch.slug(args.image.stem), datetime.now().strftime("%Y%m%d-%H%M%S"))
    return run.start(config, out)


def dry_run(config: Config, topology: str | None) -> None:
    """What a step would take, for a folder, the tabletop prior, or a published architecture by its name."""
    from lods_jax.priors.published import CONFIGS

    sketched = config.prior.name in CONFIGS and not Path(config.prior.name).is_dir()
    if not sketched and config.prior.name not in CLOSED_FORM:
        prior_folder(config.prior.name)
    start_jax(None if config.parallel == "jit" or topology else config.batch)
    from lods_jax import build, cost

    devices = cost.slice_of(topology) if topology else None
    found = cost.estimate(config, build.sketch(config) if sketched else build.build(config), devices)
    print(cost.describe(found))
    cost.check_fits(config, found)


def resume(args: Resume) -> int:
    file = args.run / "config.yaml"
    if not file.is_file():
        raise UserError(f"{args.run} holds no run: {file} is missing")
    config = configs.check(configs.load(file))
    start_run(config, args.distributed)
    from lods_jax import run

    return run.resume(config, args.run, changed=args.changed)


def start_run(config: Config, distributed: bool) -> None:
    """`start_jax` for a run; refuses what only one process can do where there are several."""
    if distributed and config.parallel in ("jit", "pmap"):
        raise UserError(f"--distributed needs --parallel shard_map or auto, got {config.parallel}")
    if distributed and config.reduce == "ordered":
        raise UserError("--reduce ordered is for the devices of one process: pass --reduce sum, or leave --distributed out")
    start_jax(None if config.parallel == "jit" else config.batch, distributed)


def view(args: View) -> None:
    from lods_jax import view

    view.view(args.run, args.port)


def compare(args: Compare) -> None:
    start_jax()
    from lods_jax import compare

    for line in compare.compare(some(args.runs), args.out):
        print(f"missing: {line}")
    print(f"{args.out}: {len(args.runs)} runs side by side")


def evaluate(args: Evaluate) -> None:
    start_jax()
    from lods_jax import evaluate

    evaluate.report(some(args.runs), args.json)


def export(args: Export) -> None:
    start_jax()
    from lods_jax import export
    from lods_jax.folder import read_run

    print(export.export(read_run(args.run), args.to, args.out, args.faces, args.texture, args.particle))


def some(runs: tuple[Path, ...]) -> tuple[Path, ...]:
    """The runs of a command, if there are any."""
    if not runs:
        raise UserError("name at least one run folder: outputs/latest, say")
    return runs


def info(args: Info) -> None:
    import jax

    from lods_jax import provenance
    from lods_jax.io.video import ffmpeg_path

    for name, value in provenance.describe()["versions"].items():
        print(f"{name:<17}{value}")
    for device in jax.devices():
        print(f"{'device':<17}{device.platform}: {device.device_kind}")
    if hidden := provenance.hidden_gpu():
        print(f"{'GPU':<17}{hidden}")
    print(f"{'ffmpeg':<17}{ffmpeg_path()}")
    print(f"{'prior':<17}tabletop: {provenance.family(TABLETOP)}, SHA-256 of the U-Net {provenance.unet_hash(TABLETOP)[:16]}")
    print(f"{'prior':<17}{', '.join(CLOSED_FORM)}: closed forms over renders of the tabletop world")


def text_to_image(args: TextToImage) -> None:
    folder = prior_folder(args.prior)
    check_prompt(args.prompt, folder, args.anyway)
    steps = args.steps if args.steps is not None else 500 if args.objective else 30
    check_sizes(args.n, steps, most=10**6 if args.objective else 1000)
    start_jax()
    from lods_jax import generate

    if args.objective:
        recipe = generate.Recipe(steps, args.lr, args.psi_lr)
        objective = objective_of(args.objective, args.guidance_scale)
        frames = generate.distilled(
            folder, objective, args.prompt, args.n, recipe, args.seed, args.negative_prompt, args.space, not args.anyway
        )
        generate.write_film(args.out, frames)
        print(f"{args.out}: {args.n} images of {args.prompt!r} under {args.objective}, seed {args.seed}")
        return
    s = 4.0 if args.guidance_scale is None else args.guidance_scale
    rgb = generate.text_to_image(folder, args.prompt, args.n, args.seed, s, steps, args.negative_prompt, strict=not args.anyway)
    generate.write_images(args.out, rgb)
    print(f"{args.out}: {args.n} samples of {args.prompt!r}, seeds {args.seed} to {args.seed + args.n - 1}")


def edit_image(args: EditImage) -> None:
    folder = prior_folder(args.prior)
    for prompt in (args.source, args.target):
        check_prompt(prompt, folder, args.anyway)
    check_sizes(args.n, args.steps, most=10**6)
    if not args.image.is_file():
        raise UserError(f"there is no image {args.image}")
    start_jax()
    from lods_jax import generate
    from lods_jax.priors.exact import read_image

    image = read_image(args.image, generate.image_size(folder))
    recipe = generate.Recipe(args.steps, args.lr, args.psi_lr, fit_first=args.fit_first)
    frames = generate.edited(
        folder,
        objective_of(args.objective, args.guidance_scale),
        image,
        args.source,
        args.target,
        args.n,
        recipe,
        args.seed,
        args.negative_prompt,
        not args.anyway,
    )
    generate.write_film(args.out, frames, image)
    print(f"{args.out}: {args.image}, then {args.n} edits to {args.target!r} under {args.objective}, seed {args.seed}")


def objective_of(name: str, s: float | None) -> Any:
    """The named objective at a guidance scale, or at its own."""
    from lods_jax.build import make_objective

    return make_objective(Config(objective=ObjectiveConfig(name, s)))


def check_sizes(n: int, steps: int, most: int) -> None:
    if not (1 <= n <= 1024 and 1 <= steps <= most):
        raise UserError(f"--n must be in 1..1024 and --steps in 1..{most}, got {n} and {steps}")


def train_prior(args: TrainPrior) -> None:
    start_jax()
    from lods_jax.tabletop import evaluate, judge, train_pose, train_prior

    minutes = (0 if args.evaluate else 60) if args.minutes is None else args.minutes
    out = args.out or (Path("outputs/prior") if minutes else TABLETOP)
    if minutes:
        if args.part == "judge":
            judge.train_judge(out / "judge.safetensors", minutes, resume=args.resume, seed=args.seed)
        elif args.part == "pose":
            prior = out if (out / "model_index.json").is_file() else TABLETOP
            train_pose.train(out / "pose", minutes, prior, resume=args.resume, name=args.optimizer, seed=args.seed)
        else:
            train_prior.train(out, minutes, resume=args.resume, part=args.part, name=args.optimizer, seed=args.seed)
    if args.evaluate and args.part == "pose":
        train_pose.report(out / "pose")
    elif args.evaluate:
        evaluate.report(out, Path("outputs/prior") if out == TABLETOP else out)


def prior_folder(name: str, download: bool = False) -> Path:
    """The folder of --prior; refuses what is not there."""
    from lods_jax.io.hub import local

    folder = local(name, download)
    if not (folder / "model_index.json").is_file():
        raise UserError(
            f"no prior at {folder}: --prior takes tabletop, {', '.join(CLOSED_FORM)}, a Stable Diffusion folder in diffusers "
            "layout with safetensors, or the id of a repository in the local Hugging Face cache (text-to-3d fetches it with "
            "--prior.download)"
        )
    return folder


def check_prompt(prompt: str, folder: Path, anyway: bool) -> None:
    """Refuses an empty prompt, and words that the prior has never seen; names the nearest prompts that it knows."""
    if not prompt.strip() or "\0" in prompt or len(prompt) > 2000:
        raise UserError(f"the prompt must be 1 to 2000 characters of text, got {len(prompt)}")
    import json

    from lods_jax.priors.tokenizer import unknown_words

    file = folder / "vocabulary.json"
    if anyway or not file.is_file():
        return
    known = json.loads(file.read_text())
    if unknown := unknown_words(prompt, known["words"]):
        nearest = difflib.get_close_matches(prompt.lower(), known["prompts"], n=3, cutoff=0.0)
        raise UserError(
            f"this prior has never seen the words {', '.join(unknown)}; the nearest prompts that it knows are "
            f"{'; '.join(map(repr, nearest))}. Pass --prior DIR with a Stable Diffusion folder for free text, or --anyway"
        )


def start_jax(batch: int | None = None, distributed: bool = False) -> None:
    """The persistent compilation cache, so that a second call of a command does not compile again; and the other processes.

    Args:
      batch: views of a step. Where the cores of a CPU divide it, each becomes a device of its own: on two cores a step takes
        0.65 of the time that one device with two threads takes, since threads meet in every operation and devices once a step.
      distributed: join the other processes; each has the devices that JAX gives it, since several may share the cores of one CPU.
    """
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "lods_jax" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if distributed:
        from lods_jax import processes

        processes.join()
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if batch and cores > 1 and batch % cores == 0 and not {"XLA_FLAGS", "JAX_NUM_CPU_DEVICES"} & os.environ.keys():
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        jax.config.update("jax_num_cpu_devices", cores)


RUN = {
    TextTo3D: text_to_3d,
    Resume: resume,
    View: view,
    Compare: compare,
    Evaluate: evaluate,
    Export: export,
    Info: info,
    TextToImage: text_to_image,
    EditImage: edit_image,
    TrainPrior: train_prior,
    ImageTo3D: image_to_3d,
}
