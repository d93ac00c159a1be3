"""The configuration of a run: frozen dataclasses are the schema, YAML files are presets, flags come last.

Defaults < YAML < flags. Lengths are fractions of a run, so that `--steps` scales every schedule. A pair (a, b) is a value of
the two phases of a run: a before `milestone`, b from there on. This file loads no jax: `lods --help` answers at once.
"""

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction, arg

from lods_jax.config.milestones import Schedule


def bounded(default: Any, low: float | int, high: float | int) -> Any:
    """A dataclass field whose numbers must lie in a range (`validation.check_ranges`).

    Args:
        default: of the field.
        low: smallest number.
        high: largest number.

    Returns:
        The field.
    """
    return field(default=default, metadata={"range": (low, high)})


MOST_GAUSSIANS = 2**20


@dataclass(frozen=True)
class PriorConfig:
    """The prior, and how its networks compute."""

    name: Annotated[str, arg(aliases=["--prior"])] = "tabletop"
    """`tabletop` (the shipped prior, `tabletop-128`), `tabletop-views` (the same for four views together), `tabletop-64` (the one
    before it), `exact` (posterior mean over renders of the tabletop world), `exact-flow` (the same under flow matching),
    `exact-gaussians` (one Gaussian per caption), a Stable Diffusion folder in diffusers layout, or the id of a repository in the
    local Hugging Face cache."""
    download: bool = False
    """Fetch what the cache lacks of the repository of that id."""
    variant: str | None = None
    """Which weight files to read where a folder has several kinds, such as `fp16`; one kind alone needs no choice."""
    image_size: int | None = bounded(None, 8, 4096)
    """Edge of the square images that the prior sees, pixels. None: as its U-Net was trained, 512 or 768, and 1024 for SDXL."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of U-Net and VAE; their results are float32. float16 is for objectives that learn nothing; a VAE then stays in float32."""
    attention: Literal["plain", "fused"] = "plain"
    """fused: for each layer the kernel that the device has, flash on a TPU or cuDNN on a GPU; else the formula, as plain."""
    memory: Literal["manual", "auto"] = "manual"
    """auto adds to the next four what a step needs to fit into the memory of the device, and says what. manual adds nothing."""
    view_chunk: int = bounded(0, 0, 4096)
    """Views of a step that a device computes at a time, at most; 0 is all of them. Fewer take less memory and more time."""
    remat: bool = False
    """Compute transformer blocks again in the backward pass: less memory, more time."""
    remat_resnets: bool = False
    """Compute the ResNet blocks of the U-Net again in the backward pass: less memory, more time."""
    vae_slicing: bool = False
    """Encode one view after the other: less memory, more time."""
    rank: int = bounded(4, 1, 1024)
    """Of the LoRA that `vsd` and `lods-lora` learn."""
    lora: Annotated[tuple[str, ...], UseAppendAction] = ()
    """LoRA files (diffusers, peft, kohya) that are merged into the weights; once for each file."""
    lora_scale: Annotated[tuple[float, ...], UseAppendAction] = bounded((), -100, 100)
    """The scale of each of these files; without it 1."""
    embedding: Annotated[tuple[str, ...], UseAppendAction] = ()
    """Textual inversions (diffusers, A1111), whose tokens are then words of prompts; once for each file."""
    few_steps: bool = False
    """Take a folder whose scheduler is that of networks distilled to a few steps, which are refused otherwise."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """The objective, and how its learned branch is trained."""

    name: Annotated[str, arg(aliases=["--objective"])] = "lods-embedding"
    """`sds`, `csd`, `lods-embedding`, or `package.module:factory` or `FILE.py:factory` of your own."""
    guidance_scale: Annotated[float | None, arg(aliases=["--guidance-scale"])] = bounded(None, 0.0, math.inf)
    """Guidance scale; None leaves the objective's own default. LODS takes inf."""
    options: dict[str, float] = field(default_factory=dict)
    """Whatever else the objective's factory takes, by name."""
    fit_shares_noise: bool = False
    """Score and fit share timestep and noise: a third fewer predictions, and no longer what the papers do."""
    adapter_text: str | None = None
    """What `lods-lora` says to its adapter, "<new1>" in the release of LODS. None: the negative prompt."""
    reward: str = "none"
    """Several noises a view, weighed by how well a judge finds the prompt in what each leads to (RewardSDS): `classifier`, which
    knows the tabletop world, or the folder of a CLIP as transformers saves it."""
    noises: int = bounded(4, 2, 64)
    noise_weights: Literal["softmax", "best", "best-worst", "preference"] = "softmax"
    """best-worst: 0.9 of the noise with the highest reward minus 0.1 of that with the lowest. preference: the highest, minus the
    lowest without its guidance (DreamDPO)."""
    reward_margin: float = bounded(0.0, 0, math.inf)
    """Of `preference`: the worst is subtracted where its reward is apart from the best by more than this."""
    schedule: tuple[int, int] | None = bounded(None, 1, 10**6)
    """Steps of the scene alone, then of the learned branch alone, in turn; both count as steps. None: both in every step."""
    init_psi: Annotated[str, arg(aliases=["--init-psi"])] = ""
    """Folder of a run whose learned branch (embedding, LoRA) this run starts from."""


@dataclass(frozen=True)
class ScorePathConfig:
    """How scores come from latents to the pixels of renders (`distillation.score_paths`)."""

    name: Annotated[Literal["encoder", "decoder", "blend", "split"], arg(aliases=["--score-path"])] = "encoder"
    """encoder: by the transpose of its Jacobian, as in the papers. decoder: by how the decoded picture changes. blend: by both.
    split: the encoder for geometry, the decoder for colours."""
    decoder_share: Schedule = bounded((0.5, 0.5), 0, 1)
    """Of the decoder in `blend`: a pair or milestones; 0 1 is the encoder first and the decoder later."""
    through_decoder: Literal["push-forward", "reconstruction"] = "push-forward"
    """push-forward: how the decoded picture changes along the score, to first order. reconstruction: the render minus the decoded
    picture that it is on the way to (HiFA, MVDream), which takes a third of the time and clears away grain."""
    pixel_clip: float = bounded(0.0, 0, 1e6)
    """What comes through the encoder is cut, pixel by pixel, to this many times its root mean square (PGC); 0 cuts nothing."""


@dataclass(frozen=True)
class CameraConfig:
    """The distribution of training cameras (`cameras.Orbit`), degrees. The default is what the tabletop prior was trained on."""

    elevation: tuple[float, float] = bounded((-5.0, 45.0), -90, 90)
    fov_y: tuple[float, float] = bounded((40.0, 50.0), 1, 170)
    radius: tuple[float, float] | None = bounded(None, 1e-3, 1e3)
    """Distance to the origin; either this or `extent`."""
    extent: tuple[float, float] | None = bounded((0.76, 0.88), 1e-3, 1e3)
    """Half-height of the visible plane through the origin."""
    overhead: float = bounded(0.12, 0, 1)
    """Share of cameras drawn from `overhead_elevation` instead."""
    overhead_elevation: tuple[float, float] = bounded((62.0, 88.0), -90, 90)
    front: float = bounded(45.0, 0, 90)
    above: float = bounded(60.0, 0, 90)
    elevation_draw: Literal["sphere", "threestudio"] = "sphere"
    """Uniform over the sphere, or as threestudio and the official LODS draw it (`cameras.threestudio_elevation`)."""


@dataclass(frozen=True)
class TimestepConfig:
    """The window of diffusion timesteps of the score, as fractions of 1000: pairs, or milestones of [step, value]."""

    min: Schedule = bounded((0.02, 0.02), 0, 0.999)
    max: Schedule = bounded((0.98, 0.55), 0, 0.999)
    anneal: Literal["steps", "linear", "sqrt"] = "steps"
    """To the next value: at once, straight, or with the square root of the way (HiFA). A pair takes the whole run for it."""


@dataclass(frozen=True)
class RegularizersConfig:
    """Weights of the regularizers, on the scale of LODS: a pair, or milestones [[0, 0], [0.6, 100]] of [step, value]."""

    sparsity: Schedule = bounded((0.0, 0.0), 0, 1e6)
    opaque: Schedule = bounded((0.0, 0.0), 0, 1e6)
    z_variance: Schedule = bounded((0.0, 0.0), 0, 1e6)
    """This and the next two: of a NeRF alone."""
    distortion: Schedule = bounded((0.0, 0.0), 0, 1e6)
    orientation: Schedule = bounded((0.0, 0.0), 0, 1e6)


@dataclass(frozen=True)
class ImageConfig:
    """The image of an `image-to-3d` run, the camera that took it, and what it counts; a run without a file has none."""

    file: str = ""
    azimuth: Annotated[float | None, arg(aliases=["--azimuth"])] = bounded(None, -360, 360)
    """Of the camera, degrees: 0 sees the front, 90 the object's left. None: what the tabletop classifier reads, else 0."""
    elevation: Annotated[float | None, arg(aliases=["--elevation"])] = bounded(None, -90, 90)
    """Degrees above the horizon. None: 15, or 75 where the classifier reads a view from above."""
    fov_y: Annotated[float, arg(aliases=["--fov"])] = bounded(45.0, 1, 170)
    radius: Annotated[float | None, arg(aliases=["--radius"])] = bounded(None, 1e-3, 1e3)
    """Distance of the camera. None: the middle of what training cameras have."""
    frame: Literal["fit", "as-is"] = "fit"
    """fit: crop to the object, which then fills 0.7 of the image's edge. as-is: the image is framed as its camera says."""
    rgb: tuple[float, float] = bounded((0.0, 0.0), 0, 1e6)
    """Weight of the squared error of the colours in the image's view, on the scale of LODS; so are the next two."""
    mask: tuple[float, float] = bounded((0.0, 0.0), 0, 1e6)
    depth: tuple[float, float] = bounded((0.0, 0.0), 0, 1e6)
    """Of 1 minus the correlation with `depth_file`."""
    normal: tuple[float, float] = bounded((0.0, 0.0), 0, 1e6)
    """Of 1 minus the cosine to the normals of `normal_file`."""
    joins: bool = True
    """With a prior of several views, the image is one view of every second group that it denoises."""
    depth_file: str = ""
    """A grey image of the image's size, far is bright: a depth camera's, or an estimate. Floats and integers of 16 or 32 bits
    keep their precision; the loss sees them from the nearest to the farthest point of the object, whatever their unit."""
    normal_file: str = ""
    """An image of the image's size, red to the right, green up, blue towards the camera, 1/2 is 0."""
    invert: int | None = bounded(None, 0, 10**6)
    """Steps that fit the prompt's embedding to the image before the run. None: 200 without a prompt, of single images; else 0."""
    invert_lr: float = bounded(5e-3, 0, 10)
    invert_batch: int = bounded(8, 1, 1024)
    """Backgrounds of the image in a step of it."""


@dataclass(frozen=True)
class Zero123Config:
    """The Zero-1-to-3 prior (`priors.zero123`) that an `image-to-3d` run asks beside the prior of texts."""

    name: Annotated[str, arg(aliases=["--pose-prior"])] = "none"
    """`tabletop`, a Zero-1-to-3 folder in diffusers layout, or `none`."""
    guidance_scale: float = bounded(3.0, 1, 1e6)
    weight: tuple[float, float] = bounded((1.0, 1.0), 0, 1e6)
    """What its score counts, on the scale of LODS."""
    min: tuple[float, float] = bounded((0.02, 0.02), 0, 0.999)
    max: tuple[float, float] = bounded((0.98, 0.55), 0, 0.999)
    """Its window of timesteps."""


@dataclass(frozen=True)
class GaussianRates:
    """Adam's learning rates of the Gaussians' parameters."""

    means: float = bounded(3e-3, 0, 1)
    quats: float = bounded(2e-3, 0, 1)
    log_scales: float = bounded(5e-3, 0, 1)
    opacity_logits: float = bounded(2e-2, 0, 1)
    sh: float = bounded(2e-2, 0, 1)


@dataclass(frozen=True)
class RefineConfig:
    """Refinement of Gaussians; `start` and `stop` are fractions of the run, and `every` counts steps."""

    kind: Literal["densify", "relocate"] = "densify"
    """Clone, split and prune (`densification.densify`), or relocate dead Gaussians as MCMC does (`densification.relocate`)."""
    every: int = bounded(100, 0, 10**7)
    """0 never refines."""
    start: float = bounded(0.2, 0, 1)
    stop: float = bounded(0.8, 0, 1)
    fraction: float = bounded(0.1, 0, 1)
    grow_grad2d: float = bounded(0.0, 0, 1e6)
    statistic: Literal["mean-of-norms", "norm-of-sum", "mean-of-absolute"] = "mean-of-norms"
    """What `grow_grad2d` and `fraction` compare: the mean length of a view's screen-space gradient; the length of the sum over a
    step's views, as in GaussianDreamer and the release of LODS; or the first of absolute values of pixels (AbsGS)."""
    grow_scale3d: float = bounded(0.02, 0, 1e3)
    prune_opacity: float = bounded(0.005, 0, 1)
    """Below it a Gaussian is pruned, or is dead and relocated."""
    growth: float = bounded(0.05, 0, 10)
    """Of `relocate`: the number of Gaussians grows by this share each time, up to `capacity`."""
    prune_scale3d: float = bounded(0.35, 0, 1e3)
    prune_pieces: float = bounded(0.0, 0, 1)
    """Pieces in the air with less than this share of the largest piece's opacity are pruned or relocated; 0 keeps them."""


@dataclass(frozen=True)
class GaussianConfig:
    """The scene of 3D Gaussians (`scenes.gaussians`)."""

    capacity: int = bounded(4096, 1, MOST_GAUSSIANS)
    init_count: int = bounded(2048, 1, MOST_GAUSSIANS)
    """How many of the slots are alive at first."""
    init_type: str = "ball"
    """`ball`, `shell`, or a file: Gaussian splats (PLY, SuperSplat's compressed PLY, .splat) or a point cloud (PLY)."""
    fit: Literal["auto", "always", "never"] = "auto"
    """Whether the points of a file are centred, and scaled until nearly all lie within `radius`. auto: where fewer than three
    quarters of them lie where cameras look, or where they are a speck."""
    init_extent: float = bounded(0.5, 1e-3, 1e3)
    """Of the ball, the shell or the fitted points."""
    init_scale: float = bounded(0.035, 1e-6, 1e3)
    init_opacity: float = bounded(0.1, 1e-6, 1 - 1e-6)
    filter_3d: float = bounded(0.0, 0, 100)
    """Variance of Mip-Splatting's 3D filter in squared pixels of the finest training renders, 0.2 in its paper; 0 is off. Nothing
    gets thinner than what these can show, and close-ups have no needles."""
    sh_degree: int = bounded(0, 0, 3)
    """Of the spherical harmonics of colour."""
    background: Literal["white-or-grey", "white", "black", "random"] = "white-or-grey"
    lr: GaussianRates = field(default_factory=GaussianRates)
    means_decay: float = bounded(1.0, 1e-6, 1)
    """The learning rate of means falls exponentially to this share at the end, beside `optimizer.decay` of all rates."""
    refine: RefineConfig = field(default_factory=RefineConfig)


@dataclass(frozen=True)
class NerfRates:
    """Learning rates of AdamW of the field's parameters."""

    tables: float = bounded(2e-2, 0, 1)
    density: float = bounded(5e-3, 0, 1)
    color: float = bounded(5e-3, 0, 1)
    environment: float = bounded(1e-3, 0, 1)


@dataclass(frozen=True)
class NerfConfig:
    """The scene of a radiance field on a hash grid (`scenes.nerf`)."""

    size: Literal["tiny", "tiny-64", "official"] = "tiny"
    """`radiance_field.TINY`, for CPUs; the same with 64 cells an edge, for renders of 64 pixels; that of LODS and threestudio."""
    samples: int = bounded(64, 1, 4096)
    """Per ray through the whole field."""
    background: Literal["white-or-grey", "white", "black", "random", "learned", "learned-or-random"] = "white-or-grey"
    """random: a colour for each view. learned: of the ray's direction, in half of the views; others: white or grey, or random."""
    update_grid_every: int = bounded(16, 1, 10**6)
    """Steps between refreshes of the occupancy grid."""
    weight_decay: float = bounded(0.0, 0, 1)
    lr: NerfRates = field(default_factory=NerfRates)


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam for the scene and Adam for the learnable part of the prior, each with its own learning rate."""

    b1: float = bounded(0.9, 0, 0.999999)
    b2: float = bounded(0.99, 0, 0.999999)
    psi_b2: float | None = bounded(None, 0, 0.999999)
    """Of the learnable part alone. None: b2."""
    eps: float = bounded(1e-15, 1e-30, 1)
    decay: float = bounded(0.1, 1e-6, 1)
    """The scene's learning rates fall exponentially to this share at the end."""
    psi_lr: float = bounded(3e-3, 0, 10)


@dataclass(frozen=True)
class EditConfig:
    """The object that a run edits, for `edit-3d`; `source_prompt` says what it is."""

    run: str = ""
    """Folder of the run whose object this one starts from, and that `dds` compares with. The run keeps a copy of it."""
    fit_first: int = bounded(0, 0, 10**6)
    """Steps that train the objective's learned branch alone, on the object as it is, before it moves."""


@dataclass(frozen=True)
class OutputConfig:
    """Video, stills, previews and log."""

    size: int = bounded(256, 16, 2048)
    """Edge of the video and of the stills in pixels, whatever was trained at."""
    elevation: float = bounded(20.0, -90, 90)
    """Of the camera of video, stills and previews, degrees."""
    radius: float | None = bounded(None, 1e-3, 1e3)
    """Its distance. None: the largest of training."""
    fov_y: float | None = bounded(None, 1, 170)
    """Its field of view. None: the middle of training's."""
    frames: int = bounded(96, 1, 10_000)
    fps: int = bounded(24, 1, 240)
    preview_every: int = bounded(100, 0, 10**7)
    """Steps between previews; 0 writes none."""
    log_every: int = bounded(10, 1, 10**7)
    tensorboard: bool = False
    """Write TensorBoard event files into events/ too; needs the extra `log`."""


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are saved, and how many are kept."""

    every: int = bounded(200, 0, 10**7)
    """Steps between checkpoints; 0 saves at the end alone."""
    keep: int = bounded(2, 1, 1000)
    on_error: Literal["continue", "stop"] = "continue"
    """After a checkpoint, a preview or a line of the log that could not be written, as on a full disk. The end stops anyway."""


@dataclass(frozen=True)
class Config:
    """One run, whole: `config.yaml` of a run repeats the run."""

    prompt: Positional[str] = ""
    negative_prompt: str = ""
    """The text of the unconditional branch; LODS's embedding starts from it."""
    source_prompt: str = ""
    """What the images show now, for objectives that lead away from it (`sds-bridge`); {prompt} in it stands for the prompt."""
    view_words: Literal["auto", "on", "off"] = "auto"
    """Whether prompts name the view; auto leaves it out for objects that this prior knows to have no front."""
    perp_neg: bool = False
    """Perp-Neg: prompts interpolated by azimuth, with the other views as negatives. Two to three predictions more."""
    debias: dict[str, str] = field(default_factory=dict)
    """Words that are left out of the prompts of some views: `--debias smiling "back side"`."""
    seed: int = bounded(0, 0, 2**32 - 1)
    steps: int = bounded(400, 1, 10**7)
    milestone: float = bounded(0.5, 0, 1)
    """Fraction of the run at which pairs of values go from the first to the second."""
    batch: int = bounded(4, 1, 4096)
    """Views of a step on all devices together."""
    particles: int = bounded(1, 1, 64)
    """Scenes that are distilled side by side under one prior: view i of a step shows the i-th of them, and round again."""
    resolution: int = bounded(64, 8, 2048)
    """Edge of the training renders in pixels."""
    resolution_after: int | None = bounded(None, 8, 2048)
    """From `milestone` on; by default the same, also where a preset names another and `--resolution` is passed alone."""
    prior: PriorConfig = field(default_factory=PriorConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    score_path: ScorePathConfig = field(default_factory=ScorePathConfig)
    camera: CameraConfig = field(default_factory=CameraConfig)
    timesteps: TimestepConfig = field(default_factory=TimestepConfig)
    regularizers: RegularizersConfig = field(default_factory=RegularizersConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    zero123: Zero123Config = field(default_factory=Zero123Config)
    edit: EditConfig = field(default_factory=EditConfig)
    scene: Literal["gaussians", "nerf"] = "gaussians"
    gaussians: GaussianConfig = field(default_factory=GaussianConfig)
    nerf: NerfConfig = field(default_factory=NerfConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    parallel: Literal["auto", "jit", "pmap", "shard_map"] = "auto"
    """auto is pmap over all devices where there are several that divide the batch, else jit."""
    reduce: Literal["sum", "ordered"] = "sum"
    """ordered: gradients of one view at a time, in the order of the views. The same bits on any number of devices, more time."""
    debug_nans: bool = False
    """Stop at the first operation that gives a NaN, and name it. Slow."""
