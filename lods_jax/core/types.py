"""The types of this library: a scene renders, a prior predicts noise, an objective turns predictions into a residual.

Notation, here and in every file:
  theta    trainable floats of the scene           psi    learnable part of the prior (embedding, LoRA)
  weights  frozen parameters of the prior          aux    what a scene carries along: masks, grids, statistics
  z, z_t   latents and noised latents [b h w c]    t      diffusion timestep, int in 0..999
  eps      predicted noise, like z_t               noise  true noise, like z_t
  tokens   text-encoder output [b n w]             s      guidance scale

Shapes of PyTreeNode fields stand in the docstrings: flax rebuilds nodes with other leaves under vmap, eval_shape and tree.map,
so checked annotations on fields would raise. Function signatures carry the checked shapes.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from lods_jax.core.noise_schedule import NoiseSchedule, score_weight


class Camera(struct.PyTreeNode):
    """b pinhole cameras. World: +z up, +x is the front of an object. Camera: x right, y down, z forward (OpenCV).

    Attributes:
        c2w: camera-to-world matrices [b 4 4].
        fov_y: vertical field of view [b], radians.
        azimuth: [b] radians in [-pi, pi); 0 looks at the front.
        elevation: [b] radians above the horizon.
        radius: distance to the origin [b], world units.
        view: row of the prompt table [b], an index into `cameras.VIEWS`.
    """

    c2w: Any
    fov_y: Any
    azimuth: Any
    elevation: Any
    radius: Any
    view: Any


class Render(struct.PyTreeNode):
    """What a scene shows to b cameras.

    Attributes:
        rgb: [b h w 3] in [0, 1], composited on the background.
        opacity: [b h w 1] in [0, 1].
        depth: [b h w 1] sum(w z) / opacity, world units; 0 where the opacity is 0.
        extras: {name: array} of what a scene can add: normal, z_var, orientation, distortion, total, radii.
    """

    rgb: Any
    opacity: Any
    depth: Any
    extras: Any


class Cond(struct.PyTreeNode):
    """Everything that a noise prediction may be conditioned on, per example.

    Attributes:
        tokens: text-encoder output [b n w], as the prior's `embed` gives it.
        lora: scale of the adapter [b]; 0 is the frozen network. NumPy where it is known while tracing. None for no adapter.
        pose: camera-to-world matrices [b 16], row-major.
        pose_on: 1 where the pose is used, else 0 [b].
        image: image condition [b h w c].
        camera: camera-to-world matrices [b 16], row-major, for a network that sees the cameras of its views.
    """

    tokens: Any
    lora: Any = None
    pose: Any = None
    pose_on: Any = None
    image: Any = None
    camera: Any = None


class ReferenceImage(struct.PyTreeNode):
    """The image of the object that a known camera sees, for image-to-3D.

    Attributes:
        rgb: [h w 3] in [0, 1], on white.
        mask: [h w 1] share of each pixel that the object covers.
        camera: one `Camera`.
        depth: [h w 1] up to scale and offset, larger is farther; None if unknown.
        normal: [h w 3] unit normals in the frame of the camera: x right, y up, z towards it; None if unknown.
    """

    rgb: Any
    mask: Any
    camera: Any
    depth: Any = None
    normal: Any = None


class Reference(struct.PyTreeNode):
    """Optional inputs of a train step: reference latents, reference image, inputs of auxiliary priors and of a reward.

    Attributes:
        latents: [b h w c] for the queries that name them (DDS).
        image: a `ReferenceImage`.
        auxiliary: (weights, prompt tables) of each auxiliary prior.
        reward: parameters of the judge that weighs noises.
        source: (theta, aux) of an object that stays as it is; its renders by the cameras of a step take the place of `latents`.
    """

    latents: Any = None
    image: Any = None
    auxiliary: tuple = ()
    reward: Any = None
    source: Any = None


class Scene(NamedTuple):
    """A differentiable renderer and its parameters, as functions. Built by a factory, such as `gaussians`.

    Attributes:
        init: key -> (theta, aux).
        render: (theta, aux, camera, keys [b], means2d_probe) -> `Render`.
        means2d_probe: (aux, b) -> zeros that are added to the projected means [b n 2]; their cotangent is the screen-space
            gradient that densification needs. An empty tree for a scene without it.
        update_stats: (aux, means2d_grad, render) -> aux, with the statistics of this step. A scene without a probe or statistics
            leaves these two out.
        colors: names of theta's leaves that change what is seen in colour alone.
        particles: number of objects; group i of the views shows object i % particles.
    """

    init: Callable[..., Any]
    render: Callable[..., Render]
    means2d_probe: Callable[..., Any] = lambda aux, b: {}
    update_stats: Callable[..., Any] = lambda aux, means2d_grad, render: aux
    colors: tuple[str, ...] = ()
    particles: int = 1


def _whole(text: str, ending: str = "") -> str:
    return text


class Prior(NamedTuple):
    """A frozen image prior, as functions. Built by a factory, such as `stable_diffusion`.

    Attributes:
        init: key -> weights.
        embed: (weights, texts) -> tokens [k n w]; called on the host, once.
        init_psi: (weights, key, tokens [n w], queries) -> psi, with only the leaves that the queries use.
        encode: (weights, rgb [b h w 3] in [0, 1], key) -> latents [b h w c], float32; it resizes the images itself.
        decode: (weights, latents) -> rgb [b h w 3] in [0, 1], with the slope of what is not clipped yet.
        predict: (weights, psi, z_t, t [b], `Cond`) -> eps like z_t, float32.
        noise_schedule: the one that the prior was trained on; z_t is mixed by it.
        predict_x0: (weights, psi, z_t, t [b], `Cond`) -> clean latents like z_t, float32, for a schedule that ends without
            signal: eps says nothing of them there. None: `noise_schedule.eps_to_x0` of what `predict` says.
        truncate: (text, ending) -> text, cut so that the ending fits behind it.
        views: number of views of one object that are denoised together. `predict` takes them in groups: every `views` examples in
            a row are one object under one timestep, and their `Cond.camera` says from where. 1 for a prior of single images.
        pooled: width of the pooled vector that lies behind the tokens of a text, as in SDXL (`priors.sdxl`); 0 without one.
    """

    init: Callable[..., Any]
    embed: Callable[..., jax.Array]
    init_psi: Callable[..., Any]
    encode: Callable[..., jax.Array]
    decode: Callable[..., jax.Array]
    predict: Callable[..., jax.Array]
    noise_schedule: NoiseSchedule
    predict_x0: Callable[..., jax.Array] | None = None
    truncate: Callable[[str, str], str] = _whole
    views: int = 1
    pooled: int = 0


class Query(NamedTuple):
    """One noise prediction: what the network is conditioned on.

    Attributes:
        text: a key of the prompt tables (prompt, plain, null, empty, source, adapter), or "learned" for the embedding in psi.
        lora: scale of the adapter; 0 is the frozen network.
        latents: "render", or "reference" (DDS).
        pose: whether the adapter is conditioned on the camera (VSD).
        image: whether a network with an image input sees the image; it sees zeros otherwise.
    """

    text: str
    lora: float = 0.0
    latents: str = "render"
    pose: bool = False
    image: bool = False


class Objective(NamedTuple):
    """A set of noise predictions and one formula.

    Attributes:
        queries: {name: query}.
        residual: ({name: eps}, noise, t) -> the array that w(t) multiplies, like eps.
        trained_query: name of the query that is trained to denoise the renders; None if nothing is learned.
        inversion: (noise_schedule, eps_of, z, t, noise) -> (z_t, noise), used in place of random noise (ISM, SDI);
            eps_of(text, z_t, t) is the frozen network. None for random noise.
        inversion_predictions: how many noise predictions per view the inversion asks for, beside those of the queries.
        later: (first step, residual) of a second stage, with the same queries; None for one stage.
        x0_residual: ({name: x0}, z, views of a group) -> the score itself, from the clean latents that the predictions mean; it
            takes the place of w(t) times `residual`. None for the latter.
        weight: (noise_schedule, t [b]) -> w(t) [b].
        noise: (keys [b], z, `Render`, `Camera`) -> noise like z, in place of a random one for each view and step, as
            `distillation.fixed_noise` has it; the key of a view stays over the run and is that of the particle that it shows.
            None for random noise.
        leaves_noise_aside: whether the inversion takes nothing of the random noise (ISM, SDI), so that z_t is the same for all.
    """

    queries: Mapping[str, Query]
    residual: Callable[..., jax.Array]
    trained_query: str | None = None
    inversion: Callable[..., tuple[jax.Array, jax.Array]] | None = None
    inversion_predictions: int = 0
    later: tuple[float, Callable[..., jax.Array]] | None = None
    x0_residual: Callable[..., jax.Array] | None = None
    weight: Callable[..., jax.Array] = score_weight
    noise: Callable[..., jax.Array] | None = None
    leaves_noise_aside: bool = False

    def at(self, step: Any) -> "Objective":
        """The objective at a step: with the residual of its stage.

        Args:
            step: of the run, which may be traced.

        Returns:
            An objective of one stage.
        """
        if self.later is None:
            return self
        begin, (first, later) = self.later[0], (self.residual, self.later[1])
        pick = lambda e, noise, t: jnp.where(step < begin, first(e, noise, t), later(e, noise, t))  # noqa: E731
        return self._replace(residual=pick, later=None)

    @property
    def draws_noise(self) -> bool:
        """Whether the score of a view depends on a noise that is drawn for it: a reward then has something to weigh."""
        return self.noise is None and not self.leaves_noise_aside

    @property
    def trained_queries(self) -> list[Query]:
        """The trained query in a list, or an empty list: what a prior's `init_psi` makes learnable."""
        return [] if self.trained_query is None else [self.queries[self.trained_query]]


class TrainState(struct.PyTreeNode):
    """All that training changes, and all that a checkpoint holds: data only, no functions, keys or frozen weights.

    Attributes:
        step: index of the next step.
        theta: trainable floats of the scene.
        aux: masks, grids and statistics of the scene.
        psi: learnable part of the prior.
        opt_theta: state of theta's optimizer.
        opt_psi: state of psi's optimizer.
        skipped: number of updates that were dropped because a gradient was not finite.
    """

    step: Any
    theta: Any
    aux: Any
    psi: Any
    opt_theta: Any
    opt_psi: Any
    skipped: Any
