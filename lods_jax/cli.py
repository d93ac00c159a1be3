"""The command line: `lods COMMAND ...`, the same as `python -m lods_jax COMMAND ...`.

Loads no jax before a command has checked its arguments, so that help and refusals come at once.
"""

import difflib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

TABLETOP = Path(__file__).parent / "tabletop" / "weights"


class UserError(Exception):
    """Bad input: one line for the console, exit code 2."""


@dataclass(frozen=True)
class TextToImage:
    """Samples images of a prompt from a diffusion prior (DDIM, classifier-free guidance) into a PNG."""

    prompt: tyro.conf.Positional[str]
    prior: str = "tabletop"
    """`tabletop`, or a Stable Diffusion folder in diffusers layout."""
    out: Path = Path("outputs/text-to-image.png")
    n: int = 8
    """Number of samples, with seeds seed, seed + 1, ..."""
    seed: int = 0
    guidance_scale: float = 4.0
    steps: int = 30
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
    part: Literal["all", "vae", "unet", "judge"] = "all"
    optimizer: Literal["muon", "adamw"] = "muon"
    seed: int = 0
    evaluate: bool = False
    """Measure the gates, print them, and write gates.json, samples.png and renders.png into --out."""


Command = (
    Annotated[TextToImage, tyro.conf.subcommand("text-to-image")] | Annotated[TrainPrior, tyro.conf.subcommand("train-prior")]
)


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code: 2 after bad input, which is told in one line."""
    command = tyro.cli(Command, prog="lods", args=argv, description="Score-distillation 3D generation in JAX.")
    try:
        {TextToImage: text_to_image, TrainPrior: train_prior}[type(command)](command)
    except (UserError, ValueError, FileNotFoundError) as error:
        if os.environ.get("LODS_TRACEBACK"):
            raise
        print(f"lods: {error}", file=sys.stderr)
        return 2
    return 0


def text_to_image(args: TextToImage) -> None:
    folder = prior_folder(args.prior)
    check_prompt(args.prompt, folder, args.anyway)
    if not (1 <= args.n <= 1024 and 1 <= args.steps <= 1000):
        raise UserError(f"--n must be in 1..1024 and --steps in 1..1000, got {args.n} and {args.steps}")
    start_jax()
    from lods_jax import generate

    rgb = generate.text_to_image(
        folder, args.prompt, args.n, args.seed, args.guidance_scale, args.steps, args.negative_prompt, strict=not args.anyway
    )
    from lods_jax.io.image import grid, write_png

    # Small images are enlarged, so that a person sees them.
    path = write_png(args.out, grid(rgb, columns=min(args.n, 8)), scale=max(1, 192 // rgb.shape[1]))
    print(f"{path}: {args.n} samples of {args.prompt!r}, seeds {args.seed} to {args.seed + args.n - 1}")


def train_prior(args: TrainPrior) -> None:
    start_jax()
    from lods_jax.tabletop import evaluate, judge, train_prior

    minutes = (0 if args.evaluate else 60) if args.minutes is None else args.minutes
    out = args.out or (Path("outputs/prior") if minutes else TABLETOP)
    if minutes:
        if args.part == "judge":
            judge.train_judge(out / "judge.safetensors", minutes, resume=args.resume, seed=args.seed)
        else:
            train_prior.train(out, minutes, resume=args.resume, part=args.part, name=args.optimizer, seed=args.seed)
    if args.evaluate:
        evaluate.report(out, Path("outputs/prior") if out == TABLETOP else out)


def prior_folder(name: str) -> Path:
    """The folder of --prior; refuses what is not there."""
    folder = TABLETOP if name == "tabletop" else Path(name)
    if not (folder / "model_index.json").is_file():
        raise UserError(f"no prior at {folder}: --prior takes tabletop or a Stable Diffusion folder in diffusers layout")
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


def start_jax() -> None:
    """The persistent compilation cache, so that a second call of a command does not compile again."""
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "lods_jax" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
