"""The commands that edit what there is: `lods edit-image` and `lods edit-3d`. They load jax once their arguments are checked."""

from datetime import datetime
from pathlib import Path

from lods_jax import config as configs
from lods_jax.cli import flags
from lods_jax.cli.checks import check_prompt, prior_folder
from lods_jax.cli.image_commands import images_folder, tell_unused_words
from lods_jax.config import ObjectiveConfig
from lods_jax.core.errors import UserError, tell
from lods_jax.core.files import check_place
from lods_jax.priors.registry import registered
from lods_jax.runs import batch


def edit_image(args: flags.EditImage) -> None:
    """`lods edit-image`: edits an image by distillation.

    Args:
        args: its flags.

    Raises:
        UserError: there is no image, or an argument is invalid.
    """
    folder = images_folder(args.prior, args.out, args.seed)
    for prompt in (args.source, args.target):
        check_prompt(prompt, folder, args.anyway, embeddings=args.prior.embedding)
    if not args.image.is_file():
        raise UserError(f"there is no image {args.image}")
    from lods_jax.training.distributed import start_jax

    start_jax()
    from lods_jax.distillation.registry import make_objective
    from lods_jax.priors import sampling
    from lods_jax.priors.captioned_images import read_image
    from lods_jax.runs import generate
    from lods_jax.training import distill_2d
    from lods_jax.training.prior_settings import prior_options

    image = read_image(args.image, sampling.image_size(folder, args.prior.image_size))
    recipe = distill_2d.DistillConfig(args.steps, args.lr, psi_lr=args.psi_lr, fit_first=args.fit_first)
    objective, texts = make_objective(args.objective, args.guidance_scale), (args.source, args.target)
    options = {"strict": not args.anyway, "batch": args.batch} | prior_options(args.prior)
    tell_unused_words(args.prior, *texts, args.negative_prompt)
    frames = generate.edited(folder, objective, image, *texts, args.n, recipe, args.seed, args.negative_prompt, **options)
    written = generate.write_film(args.out, frames, image)
    tell(f"{written}: {args.image}, then {args.n} edits to {args.target!r} under {args.objective}, seed {args.seed}")


def edit_3d(args: flags.Edit3D) -> int:
    """`lods edit-3d`: edits the object of a run by distillation.

    Args:
        args: its flags.

    Returns:
        The exit code.

    Raises:
        UserError: there is no run, or an argument is invalid.
    """
    file = args.run / "config.yaml"
    if not file.is_file():
        raise UserError(f"{args.run} holds no run: {file} is missing")
    of = configs.load(file)
    source = args.source or of.prompt
    from lods_jax.training.edit_3d import edit_config

    objective = ObjectiveConfig(args.objective, 7.5 if args.guidance_scale is None else args.guidance_scale)
    settings = args.steps, 0 if args.objective == "dds" else args.fit_first, args.seed, args.psi_lr
    config = configs.check(edit_config(of, args.run, args.target, source, objective, *settings))
    entry = registered(config.prior.name)
    folder = entry.vocabulary if entry else prior_folder(config.prior.name, config.prior.download)
    for prompt in (source, args.target):
        check_prompt(prompt, folder, args.anyway, embeddings=config.prior.embedding)
    out = args.out or Path("outputs/edit-3d", batch.slug(args.target), datetime.now().strftime("%Y%m%d-%H%M%S"))
    check_place(out, folder=True)
    from lods_jax.training.distributed import start_jax

    start_jax(None if config.parallel == "jit" else config.batch)
    from lods_jax.runs import run

    return run.start(config, out)
