"""The commands of `lods`; their flags are in `flags`.

Nothing here loads jax before a command has checked its arguments, so that help and refusals come at once.
"""

import math
import re
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path

from lods_jax import config as configs
from lods_jax.cli import flags
from lods_jax.cli.checks import check_prompt, prior_folder, some
from lods_jax.cli.dry_run import check_dry_run, device_memory, dry_run, tell_cost
from lods_jax.cli.edit_commands import edit_3d, edit_image
from lods_jax.cli.image_commands import text_to_image
from lods_jax.config import Config
from lods_jax.core.errors import UserError, one_line, tell
from lods_jax.core.files import check_place, check_suffix
from lods_jax.core.paths import TABLETOP, TABLETOP_64, figures_folder
from lods_jax.priors.registry import PRIORS, embedded_world, registered
from lods_jax.runs import batch, prompt_files


def text_to_3d(args: flags.TextTo3D) -> int:
    """`lods text-to-3d`: distils a prompt, or a file of prompts.

    Args:
        args: its flags.

    Returns:
        The exit code.

    Raises:
        UserError: flags contradict each other, or an argument is invalid.
    """
    config, prompts = configs.check(args.settings), prompt_files.read_prompts(args.prompts) if args.prompts else {}
    if prompts and config.prompt.startswith("lib:"):
        config, prompts = replace(config, prompt=prompt_files.pick(prompts, config.prompt)), {}
    elif prompts and config.prompt:
        raise UserError("give a prompt or --prompts, not both; lib:WORDS picks one of the file")
    if args.print_config:
        print(configs.dump(config), end="")
        return 0
    check_dry_run(args.dry_run, args.topology, args.device_memory)
    if args.shard and not args.prompts:
        raise UserError("--shard needs --prompts: it is a share of them")
    if args.dry_run:
        dry_run(config, args.topology, device_memory(args.device_memory))
        return 0
    entry = registered(config.prior.name)
    folder = entry.vocabulary if entry else prior_folder(config.prior.name, config.prior.download)
    if not prompts:
        check_prompt(config.prompt, folder, args.anyway, embeddings=config.prior.embedding)
    out = args.out or Path("outputs/text-to-3d", Path(args.prompts).stem if prompts else batch.slug(config.prompt))
    check_place(out, folder=True)
    if args.distributed and prompts:
        raise UserError("--distributed makes one run of several processes: with --prompts pass --shard, a process for each share")
    start_run(config, args.distributed)
    from lods_jax.runs import run

    if prompts:
        jobs = batch.folders(prompts, out)
        known = config.prior.embedding
        check = lambda prompt: check_prompt(prompt, folder, args.anyway, f"{prompts[prompt]}: ", known)  # noqa: E731
        return batch.run_all(config, batch.share(jobs, args.shard) if args.shard else jobs, check)
    return run.start(config, args.out or out / datetime.now().strftime("%Y%m%d-%H%M%S"))


def image_to_3d(args: flags.ImageTo3D) -> int:
    """`lods image-to-3d`: distils the object of an image.

    Args:
        args: its flags.

    Returns:
        The exit code.

    Raises:
        UserError: there is no image, or an argument is invalid.
    """
    check_dry_run(args.dry_run, None, args.device_memory)
    config = Config(**vars(args.settings))
    files = {f"{name}_file": getattr(config.image, f"{name}_file") for name in ("depth", "normal")}
    files = {name: str(Path(file).absolute()) for name, file in files.items() if file} | {"file": str(args.image.absolute())}
    config = configs.check(replace(config, image=replace(config.image, **files)))
    if not args.image.is_file():
        raise UserError(f"there is no image {args.image}: lods image-to-3d IMAGE takes a PNG, say")
    check_place(args.out or Path("outputs/image-to-3d"), folder=True)
    entry = registered(config.prior.name)
    if entry and entry.folder is None:
        raise UserError(f"image-to-3d needs a prior that encodes images, got {config.prior.name}: pass tabletop or a folder")
    folder = prior_folder(config.prior.name, config.prior.download)
    if config.prompt:
        check_prompt(config.prompt, folder, args.anyway, embeddings=config.prior.embedding)
    start_run(config, args.distributed)
    from lods_jax.runs import run
    from lods_jax.training import build, image_to_3d

    config, said = image_to_3d.resolve_image_config(config)
    configs.check(config)
    p = config.image
    if args.print_config:
        print(configs.dump(config), end="")
        return 0
    words = [said, f"camera at azimuth {p.azimuth:g}, elevation {p.elevation:g}", f"prompt {config.prompt!r}"]
    run.log("picture", ", ".join(word for word in words if word))
    for note in image_to_3d.notes_on_image(config):
        run.log("picture", note)
    if args.dry_run:
        tell_cost(config, build.build(config), device_memory(args.device_memory))
        return 0
    out = args.out or Path("outputs/image-to-3d", batch.slug(args.image.stem), datetime.now().strftime("%Y%m%d-%H%M%S"))
    return run.start(config, out)


def resume(args: flags.Resume) -> int:
    """`lods resume`: continues a run.

    Args:
        args: its flags.

    Returns:
        The exit code.

    Raises:
        UserError: the folder holds no run, or its objective is code that `--objective` does not name.
    """
    file = args.run / "config.yaml"
    if not file.is_file():
        raise UserError(f"{args.run} holds no run: {file} is missing")
    config = configs.check(configs.load(file))
    if (name := config.objective.name) != args.objective and ":" in name:
        raise UserError(f"the objective {name} of {args.run} is code: if you trust it, resume with --objective {name}")
    check_place(args.run, folder=True)
    if args.objective not in (name, None):
        raise UserError(f"{args.run} was begun with the objective {name}, got --objective {args.objective}")
    start_run(config, args.distributed)
    from lods_jax.runs import run

    return run.resume(config, args.run, changed=args.changed)


def start_run(config: Config, distributed: bool) -> None:
    """Starts JAX for a run.

    Args:
        config: of the run.
        distributed: whether this is one of several processes.

    Raises:
        UserError: the configuration needs a single process.
    """
    if distributed and config.parallel in ("jit", "pmap"):
        raise UserError(f"--distributed needs --parallel shard_map or auto, got {config.parallel}")
    if distributed and config.reduce == "ordered":
        raise UserError("--reduce ordered is for the devices of one process: pass --reduce sum, or leave --distributed out")
    from lods_jax.training.distributed import start_jax

    start_jax(None if config.parallel == "jit" else config.batch, distributed)


def view(args: flags.View) -> None:
    """`lods view` with the flags `args`: shows the splats of a run in a browser."""
    from lods_jax.runs import view

    view.view(args.run, args.port)


def compare(args: flags.Compare) -> None:
    """`lods compare` with the flags `args`: writes a page with runs side by side."""
    check_suffix(args.out, (".html", ".htm"))
    check_place(args.out)
    from lods_jax.training.distributed import start_jax

    start_jax()
    from lods_jax.runs import compare

    for line in compare.compare(some(args.runs), args.out):
        tell(f"missing: {line}")
    tell(f"{args.out}: {len(args.runs)} runs side by side")


def evaluate(args: flags.Evaluate) -> None:
    """`lods evaluate`: measures runs against the true objects, and by CLIP.

    Args:
        args: its flags.

    Raises:
        UserError: flags contradict each other, or an argument is invalid.
    """
    if args.json:
        check_place(args.json)
    if args.prompts and not args.clip:
        raise UserError("--prompts is what R-precision compares with: pass --clip too")
    prompts = list(prompt_files.read_prompts(args.prompts)) if args.prompts else []
    from lods_jax.training.distributed import start_jax

    start_jax()
    from lods_jax.priors.clip import load_clip
    from lods_jax.runs import evaluate

    evaluate.report(some(args.runs), args.json, load_clip(args.clip) if args.clip else None, prompts)


def bench(args: flags.Bench) -> int:
    """`lods bench`: makes the runs of a suite and the page of them.

    Args:
        args: its flags.

    Returns:
        The exit code.

    Raises:
        UserError: there is no such suite, a run of it could not begin, or it names a figure that there is not.
    """
    from lods_jax.runs.bench import suite as suites

    suite = suites.read_suite(args.suite)
    out = args.out or Path("outputs/bench", Path(args.suite).stem)
    check_place(out, folder=True)
    batch.place_of(args.shard or "1/1")
    if args.tune and not suite.tuning.prompts:
        raise UserError(f"--tune is for a suite with tuning.prompts, which {args.suite} has none of")
    if args.report and (args.shard or args.tune or args.dry_run):
        raise UserError("--report makes no runs: leave out --shard, --tune and --dry-run")
    from lods_jax.runs.bench import plan

    jobs = plan.jobs_of(suite)
    for prior in () if args.dry_run or args.report else dict.fromkeys(job.config.prior for job in jobs):
        entry = registered(prior.name)
        folder = entry.vocabulary if entry else prior_folder(prior.name, prior.download)
        for prompt in dict.fromkeys([*suite.tuning.prompts, *(job.config.prompt for job in jobs)]):
            check_prompt(prompt, folder, args.anyway, f"{args.suite}: ", prior.embedding)
    from lods_jax.training.distributed import start_jax

    start_jax(math.gcd(*(job.config.batch for job in jobs)))
    from lods_jax.priors.clip import clip_config
    from lods_jax.runs.bench import bench
    from lods_jax.runs.bench.figures import check_figures

    check_figures(suite)
    if not args.report:
        plan.check_methods(jobs)
        if suite.clip:
            clip_config(Path(suite.clip))
    if args.dry_run:
        bench.dry_run(suite, out)
        return 0
    if args.report:
        bench.report(suite, out)
        return 0
    return bench.bench(suite, out, args.shard or "1/1", args.tune)


def export(args: flags.Export) -> None:
    """`lods export` with the flags `args`: writes the scene of a run for other programs."""
    check_place(args.out or args.run, folder=True)
    from lods_jax.training.distributed import start_jax

    start_jax()
    from lods_jax.runs import export
    from lods_jax.runs.run_directory import read_run

    tell(export.export(read_run(args.run), args.to, args.out, args.faces, args.texture, args.particle))


def render(args: flags.Render) -> None:
    """`lods render`: writes runs for the scorers of other programs.

    A run that cannot be written does not keep the others from it.

    Args:
        args: its flags.

    Raises:
        UserError: the method is no name of a folder, two runs are one object, or a run cannot be written.
    """
    if args.method and not re.fullmatch(r"\w[\w.-]{0,99}", args.method):  # T3Bench hands it to a shell as it is
        raise UserError(f"--method must be a name of letters, digits, dots and hyphens, got {args.method!r:.200}")
    check_place(args.out, folder=True)
    from lods_jax.training.distributed import start_jax

    start_jax()
    from lods_jax.runs import render
    from lods_jax.runs.run_directory import read_run

    write = {
        "gpteval3d": partial(render.render_gpteval3d, views=args.views, size=args.size),
        "t3bench": partial(render.render_t3bench, group=args.group, faces=args.faces, texture=args.texture),
        "t3bench-views": partial(render.render_t3bench_views, group=args.group, size=args.size),
    }[args.layout]
    runs, failed = [read_run(path) for path in some(args.runs)], []
    render.check_distinct(runs, args.method)
    for run in runs:
        try:
            written = write(run, args.out, args.method)
        except (UserError, OSError, ValueError) as error:
            failed.append(f"{run.path}: {one_line(error)}")
        else:
            tell(written)  # an error of this is of the reader of our output
    if failed:
        raise UserError("; ".join(failed))


def info(args: flags.Info) -> None:
    """`lods info` with the flags `args`: prints versions, devices, ffmpeg and priors, or what a run was made with."""
    if args.run is not None:
        from lods_jax.runs.provenance import made_with
        from lods_jax.runs.run_directory import read_run

        for name, value in made_with(read_run(args.run)):
            tell(f"{name:<17}{value}")
        return
    import jax

    from lods_jax.core.videos import ffmpeg_path
    from lods_jax.runs import provenance

    for name, value in provenance.describe()["versions"].items():
        print(f"{name:<17}{value}")
    for device in jax.devices():
        print(f"{'device':<17}{device.platform}: {device.device_kind}")
    if hidden := provenance.hidden_gpu():
        print(f"{'GPU':<17}{hidden}")
    try:
        print(f"{'ffmpeg':<17}{ffmpeg_path()}")
    except RuntimeError as error:  # runs do without, and write no video
        print(f"{'ffmpeg':<17}{error}")
    for name in PRIORS:
        entry = registered(name)
        network = f", {describe_folder(entry.folder)}" if entry.folder else ""
        print(f"{'prior':<17}{name}: {entry.about}{network}")
    if args.prior and args.prior not in PRIORS:
        print(f"{'prior':<17}{args.prior}: {describe_folder(prior_folder(args.prior))}")


def describe_folder(folder: Path) -> str:
    """The family of a prior's folder and the hash of its U-Net, to print."""
    from lods_jax.priors.hub import family, unet_hash

    sha256 = unet_hash(folder)
    return family(folder) + (f", SHA-256 of the U-Net {sha256[:16]}" if sha256 else ", without weights of the U-Net")


def train_prior(args: flags.TrainPrior) -> None:
    """`lods train-prior` with the flags `args`: trains the tabletop prior or its classifier, or measures them."""
    minutes = (0.0 if args.evaluate else 60.0) if args.minutes is None else args.minutes
    out = args.out or (Path("outputs/prior") if minutes else TABLETOP_64 if args.part == "pose" else TABLETOP)
    check_place(out if minutes else figures_folder(out), folder=True)
    from lods_jax.training.distributed import start_jax

    start_jax()
    embedded_world().train(
        out,
        minutes,
        part=args.part,
        size=args.size,
        batch=args.batch,
        resume=args.resume,
        optimizer=args.optimizer,
        seed=args.seed,
        measure_gates=args.evaluate,
    )


RUN = {
    flags.TextTo3D: text_to_3d,
    flags.Resume: resume,
    flags.View: view,
    flags.Compare: compare,
    flags.Evaluate: evaluate,
    flags.Bench: bench,
    flags.Export: export,
    flags.Render: render,
    flags.Info: info,
    flags.TextToImage: text_to_image,
    flags.EditImage: edit_image,
    flags.Edit3D: edit_3d,
    flags.TrainPrior: train_prior,
    flags.ImageTo3D: image_to_3d,
}
