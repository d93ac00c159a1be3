"""The command that makes images, `lods text-to-image`. It loads jax once its arguments are checked."""

from pathlib import Path

from lods_jax.cli import flags
from lods_jax.cli.checks import check_prompt, prior_folder
from lods_jax.config import PriorConfig, check_prior
from lods_jax.core.errors import UserError, tell
from lods_jax.core.files import check_place, check_suffix


def text_to_image(args: flags.TextToImage) -> None:
    """`lods text-to-image`: samples images of a prompt, or distils them under an objective.

    Args:
        args: its flags.

    Raises:
        UserError: an argument is out of range.
    """
    folder = images_folder(args.prior, args.out, args.seed + args.n - 1)
    check_prompt(args.prompt, folder, args.anyway, embeddings=args.prior.embedding)
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
    from lods_jax.training.prior_settings import prior_options

    options = {"strict": not args.anyway, "batch": args.batch} | prior_options(args.prior)
    tell_unused_words(args.prior, args.prompt, args.negative_prompt, args.adapter_text)
    if args.objective:
        recipe = distill_2d.DistillConfig(steps, args.lr, args.decay, args.b2, args.psi_lr)
        adapter = {} if args.adapter_text is None else {"adapter_text": "adapter"}
        objective = make_objective(args.objective, args.guidance_scale, adapter)
        table = generate.image_prompts(args.prompt, args.negative_prompt, args.view, args.adapter_text)
        frames = generate.distilled(folder, objective, table, args.n, recipe, args.seed, args.space, args.start, **options)
        written = generate.write_film(args.out, frames)
        tell(f"{written}: {args.n} images of {args.prompt!r} under {args.objective}, seed {args.seed}")
        return
    rgb = sampling.text_to_image(folder, args.prompt, args.n, args.seed, s, steps, args.negative_prompt, **options)
    written = generate.write_images(args.out, rgb)
    tell(f"{written}: {args.n} samples of {args.prompt!r}, seeds {args.seed} to {args.seed + args.n - 1}")


def tell_unused_words(prior: PriorConfig, *texts: str | None) -> None:
    """Prints a line for each textual inversion of the flags of a prior whose word is in none of the texts."""
    from lods_jax.priors.user_adapters import adapter_notes, unused_words

    for line in unused_words(adapter_notes((), prior.embedding), texts):
        tell(line)


def images_folder(prior: PriorConfig, out: Path, last_seed: int) -> Path:
    """The folder of the prior of a command that makes images, after a check of the file that they go to.

    Args:
        prior: its flags.
        out: the file.
        last_seed: the largest seed.

    Returns:
        The folder.

    Raises:
        UserError: the seed is too large, the suffix of the file is unknown, scales do not fit the LoRA files, or a setting is of
            steps in 3D.
    """
    from lods_jax.core.images import WRITTEN_FORMATS

    check_prior(prior)
    of_steps = {"memory auto": prior.memory == "auto", "view-chunk": prior.view_chunk, "vae-slicing": prior.vae_slicing}
    if given := next((name for name, on in of_steps.items() if on), None):
        raise UserError(f"--prior.{given} is of runs in 3D: for images pass --batch")
    if last_seed >= 2**32:
        raise UserError(f"the last of the seeds must lie below 2^32, got {last_seed}: pass a smaller --seed")
    check_suffix(out, tuple(WRITTEN_FORMATS))
    check_place(out)
    return prior_folder(prior.name, prior.download)
