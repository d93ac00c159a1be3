"""What each command does; their flags are in `flags`. Loads no jax before a command has checked its arguments, so that help and
refusals come at once.
"""

import difflib
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from lods_jax import config as configs
from lods_jax.cli import flags
from lods_jax.config import Config, PriorConfig
from lods_jax.core.errors import UserError, tell
from lods_jax.core.files import check_place, check_suffix
from lods_jax.core.paths import TABLETOP
from lods_jax.priors.registry import PRIORS, embedded_world, registered
from lods_jax.runs import batch, prompt_files


def text_to_3d(args: flags.TextTo3D) -> int:
    config, prompts = configs.check(args.settings), prompt_files.read_prompts(args.prompts) if args.prompts else {}
    if prompts and config.prompt.startswith("lib:"):
        config, prompts = replace(config, prompt=prompt_files.pick(prompts, config.prompt)), {}
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
    entry = registered(config.prior.name)
    folder = entry.vocabulary if entry else prior_folder(config.prior.name, config.prior.download)
    if not prompts:
        check_prompt(config.prompt, folder, args.anyway)
    out = args.out or Path("outputs/text-to-3d", Path(args.prompts).stem if prompts else batch.slug(config.prompt))
    check_place(out, folder=True)
    if args.distributed and prompts:
        raise UserError("--distributed makes one run of several processes: with --prompts pass --shard, a process for each share")
    start_run(config, args.distributed)
    from lods_jax.runs import run

    if prompts:
        jobs = batch.folders(prompts, out)
        check = lambda prompt: check_prompt(prompt, folder, args.anyway, f"{prompts[prompt]}: ")  # noqa: E731
        return batch.run_all(config, batch.share(jobs, args.shard) if args.shard else jobs, check)
    return run.start(config, args.out or out / datetime.now().strftime("%Y%m%d-%H%M%S"))


def image_to_3d(args: flags.ImageTo3D) -> int:
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
        check_prompt(config.prompt, folder, args.anyway)
    start_run(config, args.distributed)
    from lods_jax.runs import run
    from lods_jax.training import build, cost, image_to_3d

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
        found = cost.estimate(config, build.build(config))
        print(cost.describe(found))
        cost.check_fits(config, found)
        return 0
    out = args.out or Path("outputs/image-to-3d", batch.slug(args.image.stem), datetime.now().strftime("%Y%m%d-%H%M%S"))
    return run.start(config, out)


def dry_run(config: Config, topology: str | None) -> None:
    """What a step would take, for a folder, the tabletop prior, or a published architecture by its name."""
    from lods_jax.priors.architectures import CONFIGS

    sketched = config.prior.name in CONFIGS and not Path(config.prior.name).is_dir()
    if not sketched and not registered(config.prior.name):
        prior_folder(config.prior.name)
    from lods_jax.training.distributed import start_jax

    start_jax(None if config.parallel == "jit" or topology else config.batch)
    from lods_jax.training import build, cost

    devices = cost.slice_of(topology) if topology else None
    found = cost.estimate(config, build.build_abstract(config) if sketched else build.build(config), devices)
    print(cost.describe(found))
    cost.check_fits(config, found)


def resume(args: flags.Resume) -> int:
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
    """`start_jax` for a run; refuses what only one process can do where there are several."""
    if distributed and config.parallel in ("jit", "pmap"):
        raise UserError(f"--distributed needs --parallel shard_map or auto, got {config.parallel}")
    if distributed and config.reduce == "ordered":
        raise UserError("--reduce ordered is for the devices of one process: pass --reduce sum, or leave --distributed out")
    from lods_jax.training.distributed import start_jax

    start_jax(None if config.parallel == "jit" else config.batch, distributed)


def view(args: flags.View) -> None:
    from lods_jax.runs import view

    view.view(args.run, args.port)


def compare(args: flags.Compare) -> None:
    check_suffix(args.out, (".html", ".htm"))
    check_place(args.out)
    from lods_jax.training.distributed import start_jax

    start_jax()
    from lods_jax.runs import compare

    for line in compare.compare(some(args.runs), args.out):
        tell(f"missing: {line}")
    tell(f"{args.out}: {len(args.runs)} runs side by side")


def evaluate(args: flags.Evaluate) -> None:
    if args.json:
        check_place(args.json)
    from lods_jax.training.distributed import start_jax

    start_jax()
    from lods_jax.runs import evaluate

    evaluate.report(some(args.runs), args.json)


def export(args: flags.Export) -> None:
    check_place(args.out or args.run, folder=True)
    from lods_jax.training.distributed import start_jax

    start_jax()
    from lods_jax.runs import export
    from lods_jax.runs.run_directory import read_run

    tell(export.export(read_run(args.run), args.to, args.out, args.faces, args.texture, args.particle))


def some(runs: tuple[Path, ...]) -> tuple[Path, ...]:
    """The runs of a command, if there are any."""
    if not runs:
        raise UserError("name at least one run folder: outputs/latest, say")
    return runs


def info(args: flags.Info) -> None:
    import jax

    from lods_jax.core.videos import ffmpeg_path
    from lods_jax.priors import hub
    from lods_jax.runs import provenance

    for name, value in provenance.describe()["versions"].items():
        print(f"{name:<17}{value}")
    for device in jax.devices():
        print(f"{'device':<17}{device.platform}: {device.device_kind}")
    if hidden := provenance.hidden_gpu():
        print(f"{'GPU':<17}{hidden}")
    print(f"{'ffmpeg':<17}{ffmpeg_path()}")
    for name in PRIORS:
        entry = registered(name)
        network = f", {hub.family(entry.folder)}, SHA-256 of the U-Net {hub.unet_hash(entry.folder)[:16]}" if entry.folder else ""
        print(f"{'prior':<17}{name}: {entry.about}{network}")


def text_to_image(args: flags.TextToImage) -> None:
    folder = images_folder(args.prior, args.out, args.seed + args.n - 1)
    check_prompt(args.prompt, folder, args.anyway)
    steps = args.steps if args.steps is not None else 500 if args.objective else 30
    s = 4.0 if args.guidance_scale is None else args.guidance_scale
    if not args.objective and (steps > 1000 or s > 1e6):
        raise UserError(f"samples take --steps in 1..1000 and --guidance-scale in 0..1e6, got {steps} and {s:g}")
    from lods_jax.training.distributed import start_jax

    start_jax()
    from lods_jax.distillation.registry import make_objective
    from lods_jax.priors import sampling
    from lods_jax.runs import generate
    from lods_jax.training import distill_2d

    options = {"strict": not args.anyway, "batch": args.batch} | network(args.prior)
    if args.objective:
        recipe = distill_2d.DistillConfig(steps, args.lr, args.decay, args.b2, args.psi_lr)
        adapter = {} if args.adapter_text is None else {"adapter_text": "adapter"}
        objective = make_objective(args.objective, args.guidance_scale, adapter)
        table = generate.image_prompts(args.prompt, args.negative_prompt, args.view, args.adapter_text)
        frames = generate.distilled(folder, objective, table, args.n, recipe, args.seed, args.space, args.start, **options)
        generate.write_film(args.out, frames)
        tell(f"{args.out}: {args.n} images of {args.prompt!r} under {args.objective}, seed {args.seed}")
        return
    rgb = sampling.text_to_image(folder, args.prompt, args.n, args.seed, s, steps, args.negative_prompt, **options)
    generate.write_images(args.out, rgb)
    tell(f"{args.out}: {args.n} samples of {args.prompt!r}, seeds {args.seed} to {args.seed + args.n - 1}")


def edit_image(args: flags.EditImage) -> None:
    folder = images_folder(args.prior, args.out, args.seed)
    for prompt in (args.source, args.target):
        check_prompt(prompt, folder, args.anyway)
    if not args.image.is_file():
        raise UserError(f"there is no image {args.image}")
    from lods_jax.training.distributed import start_jax

    start_jax()
    from lods_jax.distillation.registry import make_objective
    from lods_jax.priors import sampling
    from lods_jax.priors.captioned_images import read_image
    from lods_jax.runs import generate
    from lods_jax.training import distill_2d

    image = read_image(args.image, sampling.image_size(folder))
    recipe = distill_2d.DistillConfig(args.steps, args.lr, psi_lr=args.psi_lr, fit_first=args.fit_first)
    objective, texts = make_objective(args.objective, args.guidance_scale), (args.source, args.target)
    options = {"strict": not args.anyway, "batch": args.batch} | network(args.prior)
    frames = generate.edited(folder, objective, image, *texts, args.n, recipe, args.seed, args.negative_prompt, **options)
    generate.write_film(args.out, frames, image)
    tell(f"{args.out}: {args.image}, then {args.n} edits to {args.target!r} under {args.objective}, seed {args.seed}")


def images_folder(prior: PriorConfig, out: Path, last_seed: int) -> Path:
    """The folder of the prior of a command that makes images, after a look at where they go."""
    from lods_jax.core.images import WRITTEN_FORMATS

    if last_seed >= 2**32:
        raise UserError(f"the last of the seeds must lie below 2^32, got {last_seed}: pass a smaller --seed")
    check_suffix(out, tuple(WRITTEN_FORMATS))
    check_place(out)
    return prior_folder(prior.name, prior.download)


def network(prior: PriorConfig) -> dict[str, Any]:
    """The options of `stable_diffusion` that a person may choose."""
    return {name: getattr(prior, name) for name in ("dtype", "variant", "attention", "remat", "rank")}


def train_prior(args: flags.TrainPrior) -> None:
    minutes = (0 if args.evaluate else 60) if args.minutes is None else args.minutes
    out = args.out or (Path("outputs/prior") if minutes else TABLETOP)
    check_place(out if minutes or args.out else Path("outputs/prior"), folder=True)
    from lods_jax.training.distributed import start_jax

    start_jax()
    embedded_world().train(
        out,
        minutes,
        part=args.part,
        resume=args.resume,
        optimizer=args.optimizer,
        seed=args.seed,
        measure_gates=args.evaluate,
    )


def prior_folder(name: str, download: bool = False) -> Path:
    """The folder of --prior; refuses what is not there."""
    from lods_jax.priors.hub import local

    folder = local(name, download)
    if not (folder / "model_index.json").is_file():
        raise UserError(
            f"no prior at {folder}: --prior takes {', '.join(PRIORS)}, a Stable Diffusion folder in diffusers "
            "layout with safetensors, or the id of a repository in the local Hugging Face cache (text-to-3d fetches it with "
            "--prior.download)"
        )
    return folder


def check_prompt(prompt: str, folder: Path | None, anyway: bool, place: str = "") -> None:
    """Refuses an empty prompt, and words that the prior has never seen; names the nearest prompts that it knows.

    Args:
      prompt: of a person.
      folder: of the prior; None for one without a vocabulary.
      anyway: let words pass that the prior has never seen.
      place: where the prompt stands, as an error begins: "prompts.txt, line 3: ".
    """
    if not prompt.strip() or "\0" in prompt or len(prompt) > 2000:
        raise UserError(f"{place}the prompt must be 1 to 2000 characters of text, got {len(prompt)}")
    from lods_jax.priors.diffusers_folder import read_vocabulary
    from lods_jax.priors.tokenizer import unknown_words

    known = None if anyway or folder is None else read_vocabulary(folder)
    if known is not None and (unknown := unknown_words(prompt, known.words)):
        nearest = difflib.get_close_matches(prompt.lower(), known.prompts, n=3, cutoff=0.0)
        knows = f"the nearest prompts that it knows are {'; '.join(map(repr, nearest))}"
        if not nearest:
            knows = f"it knows {', '.join(sorted(known.words)[:40])}"
        do = "Pass --prior DIR with a Stable Diffusion folder for free text, or --anyway"
        raise UserError(f"{place}this prior has never seen the words {', '.join(unknown)}; {knows}. {do}")


RUN = {
    flags.TextTo3D: text_to_3d,
    flags.Resume: resume,
    flags.View: view,
    flags.Compare: compare,
    flags.Evaluate: evaluate,
    flags.Export: export,
    flags.Info: info,
    flags.TextToImage: text_to_image,
    flags.EditImage: edit_image,
    flags.TrainPrior: train_prior,
    flags.ImageTo3D: image_to_3d,
}
