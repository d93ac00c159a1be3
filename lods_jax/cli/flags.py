"""The commands of the command line and their flags."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lods_jax.config import Config, PriorConfig, bounded

BATCH = bounded(64, 1, 4096)


@dataclass(frozen=True)
class TextTo3D:
    """Distils a prompt into a 3D object: a turning video, stills, and a PLY of Gaussian splats."""

    settings: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    config: str | None = None
    """A YAML file, or a shipped preset: `gaussians-sds`, ... By default `views-gaussians-lods-lora`, or
    `views-nerf-lods-lora` with --scene nerf; without `views-` for another --prior."""
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
    """With --dry-run: a TPU slice that need not be there, v5e:2x4 (extra `tpu`). It is compiled with little effort: a run may
    need less memory, or more."""
    device_memory: str | None = None
    """With --dry-run: 24GiB, the memory of a GPU that need not be here. Without a GPU the step is compiled for a TPU chip in its
    place, with a margin (extra `tpu`), or for this CPU, which takes several times as much."""
    distributed: bool = False
    """This process is one of several with the same command line, which split the views of each step (guide Several machines)."""
    anyway: bool = False
    """Go on with words that the prior has never seen."""


@dataclass(frozen=True)
class PictureRun(Config):
    """The configuration of an `image-to-3d` run."""

    prompt: str = ""  # type: ignore[assignment]
    """What the image shows. Without it the tabletop classifier reads it, and the prompt's embedding is fitted to it."""


@dataclass(frozen=True)
class ImageTo3D:
    """Distils the object of an image into 3D: a PNG with alpha, or an image on a plain background, which is removed."""

    image: tyro.conf.Positional[Path] = Path()
    settings: Annotated[PictureRun, tyro.conf.arg(name="")] = field(default_factory=PictureRun)
    config: str | None = None
    """A YAML file, or a shipped preset: `image-views-gaussians-lods-lora` (what runs without it; with
    another --prior `image-gaussians-lods-lora`), ..."""
    out: Path | None = None
    """Folder of the run; by default outputs/image-to-3d/IMAGE/TIME, with a link outputs/latest."""
    print_config: bool = False
    """Print the resolved configuration as YAML, and run nothing."""
    dry_run: bool = False
    """Compile the step and tell parameters, memory and operations, and run nothing."""
    device_memory: str | None = None
    """As for text-to-3d."""
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
    objective: str | None = None
    """Of a run with an objective of its own, its `package.module:factory` once more: only what is named here is imported."""
    distributed: bool = False
    """This process is one of several; a run may go on with another number of them."""


@dataclass(frozen=True)
class View:
    """Shows the splats of a run in a browser on this machine, also while it trains (extra `viewer`)."""

    run: tyro.conf.Positional[Path]
    port: int = bounded(8080, 1, 64_535)
    """The next free one from here on."""


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
    clip: Path | None = None
    """Judge 120 views of each run by the CLIP of this folder, of any prompt: CLIP score, and R-precision."""
    prompts: str | None = None
    """With --clip: a file of prompts, which R-precision compares with beside those of the runs."""


@dataclass(frozen=True)
class Bench:
    """Runs the methods of a suite on the same prompts and seeds, and writes a table and one page of all runs."""

    suite: tyro.conf.Positional[str] = ""
    """A YAML file, or a shipped suite: `tabletop-quick`, `tabletop-tuned`, `tabletop`, `multi-view`, `presets`, `ablation`,
    `rewards`, `t3bench`."""
    out: Path | None = None
    """Folder of the bench; by default outputs/bench/SUITE. The same command goes on with what is there."""
    shard: str | None = None
    """I/N makes the I-th of N pieces of the runs, for arrays of jobs; shards with one --out make one table."""
    tune: bool = False
    """End after the trials of tuning; with --shard, after this shard's trials of one round."""
    report: bool = False
    """Write table and page of the runs that are there, as from other machines, and run nothing."""
    dry_run: bool = False
    """Print the runs and what they cost, and run nothing."""
    anyway: bool = False
    """Go on with words that the prior has never seen."""


@dataclass(frozen=True)
class Export:
    """Writes the scene of a run for other programs: a mesh (extra `mesh`), splats, or videos."""

    run: tyro.conf.Positional[Path]
    to: Literal["glb", "obj", "ply", "splat", "mp4"] = "glb"
    """glb, obj: a mesh with a baked texture, y up. ply: a mesh with colours at its vertices. splat: scene.splat, and scene.ply of
    splats. mp4: turntables of colour, depth and normals."""
    out: Path | None = None
    """A folder; by default that of the run."""
    faces: int = bounded(10_000, 4, 10**8)
    """Of the mesh at most."""
    texture: int = bounded(512, 16, 8192)
    """Edge of the texture, pixels."""
    particle: int = bounded(0, 0, 63)
    """Which of several particles."""


@dataclass(frozen=True)
class Render:
    """Writes runs in the layouts that the scorers of GPTEval3D and T3Bench open."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    layout: Literal["gpteval3d", "t3bench", "t3bench-views"] = "gpteval3d"
    """gpteval3d: views and normals, and prompts.json. t3bench: the mesh of each run, which T3Bench renders itself (extra `mesh`).
    t3bench-views: the pictures that it would take, of the scene itself (needs trimesh)."""
    out: Path = Path("outputs/views")
    """The folder of all runs; of t3bench it is what the scorers call outputs_mesh_t3."""
    method: str = ""
    """Name of the method in the layout; by default the objective."""
    group: Literal["single", "surr", "multi"] = "single"
    """Of t3bench: the set that the prompts are of, by the names of T3Bench."""
    views: int = bounded(120, 9, 10_000)
    """Around the object, of gpteval3d, whose published objects have 120."""
    size: int = bounded(512, 16, 2048)
    """Edge of the images, pixels. GPTEval3D's published objects and T3Bench have 512."""
    faces: int = bounded(50_000, 4, 10**8)
    """Of the mesh at most, of t3bench."""
    texture: int = bounded(1024, 16, 8192)
    """Edge of the texture, pixels, of t3bench."""


@dataclass(frozen=True)
class Info:
    """Tells devices, ffmpeg, priors and versions; of a run, what it was made with."""

    run: tyro.conf.Positional[Path | None] = None
    """Folder of a run."""
    prior: str = ""
    """Tell of this folder too, or of the repository of this id in the local Hugging Face cache."""


@dataclass(frozen=True)
class TextToImage:
    """Images of a prompt: samples of a diffusion prior, or distilled from it under an objective."""

    prompt: tyro.conf.Positional[str] = ""
    prior: PriorConfig = field(default_factory=PriorConfig)
    out: Path = Path("outputs/text-to-image.png")
    """A PNG, JPEG or WebP, as the name says."""
    n: int = bounded(8, 1, 1024)
    """Number of samples, with seeds seed, seed + 1, ..."""
    seed: int = bounded(0, 0, 2**32 - 1)
    objective: str | None = None
    """Distil under this objective, and write a video of it beside the PNG. Without it: DDIM samples."""
    guidance_scale: float | None = bounded(None, 0, math.inf)
    """By default 4 for samples, and the objective's own."""
    steps: int | None = bounded(None, 1, 10**6)
    """By default 30 for samples and 500 for an objective."""
    negative_prompt: str = ""
    batch: int = BATCH
    """How many noise predictions the U-Net makes at once; an image takes two or more. Fewer take less memory."""
    space: Literal["latents", "pixels"] = "latents"
    """What an objective moves."""
    start: Literal["quiet", "uniform"] = "quiet"
    """Of an objective. quiet: noise of a tenth of the latents' size, or almost grey. uniform: over [-1, 1], or all colours."""
    view: Literal["", "side", "front", "back", "overhead"] = ""
    """Name this view in the prompt of an objective, as runs in 3D do."""
    adapter_text: str | None = None
    """What `lods-lora` says to its adapter; by default the negative prompt."""
    lr: float = bounded(0.05, 0, 10)
    decay: float = bounded(0.1, 0, 1)
    """The share of `lr` at the end, along a cosine; 1 keeps it."""
    b2: float = bounded(0.99, 0, 0.999999)
    """Of Adam, on the images and on the learned branch."""
    psi_lr: float | None = bounded(None, 0, 10)
    """Learning rate of an objective's learned branch; by default 0.03 for an embedding and 0.003 for an adapter."""
    config: str | None = None
    """A YAML file of these flags, or a shipped preset: `sd21-image-lods-embedding-official`, `sd21-image-lods-lora-official`."""
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
    prior: PriorConfig = field(default_factory=PriorConfig)
    objective: str = "dds"
    """`dds`, or `lods-embedding`, whose unconditional branch is first fitted to the image (`--fit-first`)."""
    out: Path = Path("outputs/edit-image.png")
    n: int = bounded(4, 1, 1024)
    """Number of edits, which differ in their noise alone."""
    seed: int = bounded(0, 0, 2**32 - 1)
    guidance_scale: float | None = bounded(None, 0, math.inf)
    steps: int = bounded(200, 1, 10**6)
    fit_first: int = bounded(200, 0, 10**6)
    """Steps of the learned branch alone, before the image moves."""
    lr: float = bounded(0.05, 0, 10)
    psi_lr: float | None = bounded(None, 0, 10)
    """Learning rate of an objective's learned branch; by default 0.03 for an embedding and 0.003 for an adapter."""
    negative_prompt: str = ""
    batch: int = BATCH
    """As of text-to-image."""
    anyway: bool = False
    """Go on with words that the prior has never seen."""


@dataclass(frozen=True)
class Edit3D:
    """Edits the object of a run by distillation, from what it is to what it is to be, with the settings of the run."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    target: str
    """What the object is to be: "a blue mug"."""
    source: str = ""
    """What it is; by default the prompt of the run."""
    objective: str = "lods-lora"
    """`lods-lora` or `lods-embedding`, whose unconditional branch is first fitted to the object (`--fit-first`), or `dds`."""
    guidance_scale: float | None = bounded(None, 0, math.inf)
    """By default 7.5."""
    steps: int = bounded(400, 1, 10**6)
    """That move the object."""
    fit_first: int = bounded(100, 0, 10**6)
    """Steps of the learned branch alone before them; `dds` has none."""
    psi_lr: float | None = bounded(None, 0, 10)
    """Learning rate of the learned branch; by default 0.01 for an embedding and 0.003 for an adapter."""
    seed: int = bounded(0, 0, 2**32 - 1)
    out: Path | None = None
    """Folder of the edit, a run of its own; by default outputs/edit-3d/TARGET/TIME, with a link outputs/latest."""
    anyway: bool = False
    """Go on with words that the prior has never seen."""


@dataclass(frozen=True)
class TrainPrior:
    """Trains the tabletop prior and its classifier from endless renders, or measures the gates of trained weights."""

    out: Path | None = None
    """Folder of the prior; by default outputs/prior, and the shipped weights for --evaluate alone."""
    minutes: float | None = bounded(None, 0, 10**6)
    """Length of this sitting. Without it: 60, or none with --evaluate."""
    resume: bool = False
    """Go on with what --out holds: its checkpoint, or else the weights of the folder."""
    size: Literal[64, 128] | None = None
    """Edge of its images in pixels; by default 128, or what --out holds with --resume."""
    batch: int | None = bounded(None, 1, 4096)
    """Images of a step; by default 16 for the autoencoder and 64 else, which suits a CPU. 256 suits a GPU."""
    part: Literal["all", "vae", "unet", "multiview", "flow", "pose", "classifier"] = "all"
    """The prior's autoencoder, its U-Net, or both; the prior of four views, that of flow matching or the Zero-1-to-3 prior for
    image-to-3d, which begin as the prior (the shipped one if OUT holds none) and lie in OUT/multiview, OUT/flow and OUT/pose; or
    the classifier."""
    optimizer: Literal["muon", "adamw"] = "muon"
    seed: int = bounded(0, 0, 2**32 - 1)
    evaluate: bool = False
    """Measure the gates, print them, and write gates.json, samples.png and renders.png into --out, or into a folder of outputs/
    for shipped weights."""


COMMANDS = {
    "text-to-3d": TextTo3D,
    "image-to-3d": ImageTo3D,
    "resume": Resume,
    "view": View,
    "compare": Compare,
    "evaluate": Evaluate,
    "bench": Bench,
    "export": Export,
    "render": Render,
    "info": Info,
    "text-to-image": TextToImage,
    "edit-image": EditImage,
    "edit-3d": Edit3D,
    "train-prior": TrainPrior,
}
