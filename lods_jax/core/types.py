"""The words of this library: a scene renders, a prior answers questions about noise, an objective turns answers into a residual.

Notation, here and in every file:
  theta    trainable floats of the scene           psi    learnable part of the prior (embedding, LoRA)
  weights  frozen parameters of the prior          aux    what a scene carries along: masks, grids, statistics
  z, z_t   latents and noised latents [b h w c]    t      diffusion timestep, int in 0..999
  eps      predicted noise, like z_t               noise  true noise, like z_t
  tokens   text-encoder output [b n w]             s      guidance scale

Shapes of PyTreeNode fields are comments: flax rebuilds nodes with other leaves under vmap, eval_shape and tree.map, so
checked annotations on fields would raise. Function signatures carry the checked shapes.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from flax import struct


class Camera(struct.PyTreeNode):
    """b pinhole cameras. World: +z up, +x is the front of an object. Camera: x right, y down, z forward (OpenCV)."""

    c2w: Any  # [b 4 4] camera-to-world, rotation then translation
    fov_y: Any  # [b] vertical field of view, radians
    azimuth: Any  # [b] radians in [-pi, pi), 0 looks at the front
    elevation: Any  # [b] radians above the horizon
    radius: Any  # [b] distance to the origin, world units
    view: Any  # [b] int row of the prompt table, an index into cameras.VIEWS


class Render(struct.PyTreeNode):
    """What a scene shows to b cameras. rgb is composited on the background; depth is 0 where opacity is 0."""

    rgb: Any  # [b h w 3] in [0, 1]
    opacity: Any  # [b h w 1] in [0, 1]
    depth: Any  # [b h w 1] sum(w z) / opacity, world units
    extras: Any  # what a scene can add: normal, z_var, orientation, distortion, total, radii


class Cond(struct.PyTreeNode):
    """Everything that a noise prediction may be conditioned on, per example."""

    tokens: Any  # [b n w] text-encoder output
    lora: Any = None  # [b] scale of the adapter; 0 is the frozen network
    pose: Any = None  # [b 16] camera-to-world, row-major
    pose_on: Any = None  # [b] 1 where the pose is used
    image: Any = None  # [b h w c] image condition


class ReferenceImage(struct.PyTreeNode):
    """What a known camera sees of the object: image-to-3D."""

    rgb: Any  # [h w 3] in [0, 1], on white
    mask: Any  # [h w 1] share of a pixel that the object covers
    camera: Any  # one Camera
    depth: Any = None  # [h w 1] up to scale and offset, larger is farther
    normal: Any = None  # [h w 3] unit, of the camera: x right, y up, z towards it


class Reference(struct.PyTreeNode):
    """Optional inputs of a train step: DDS latents, reference image, inputs of auxiliary priors."""

    latents: Any = None  # [b h w c] for queries that name them (DDS)
    image: Any = None  # ReferenceImage
    auxiliary: tuple = ()  # (weights, text tables) of each auxiliary prior


class Scene(NamedTuple):
    """A differentiable renderer and its parameters, as functions. Built by a factory: `gaussians(**cfg) -> Scene`."""

    init: Callable[..., Any]  # key -> (theta, aux)
    render: Callable[..., Render]  # (theta, aux, camera, keys[b], probe) -> Render
    # (aux, b) -> zeros added to the projected means; its cotangent is the screen-space gradient
    means2d_probe: Callable[..., Any]
    update_stats: Callable[..., Any]  # (aux, means2d_grad, render) -> aux


class Prior(NamedTuple):
    """A frozen image prior, as functions. Built by a factory: `stable_diffusion(folder) -> Prior`."""

    init: Callable[..., Any]  # key -> weights
    embed: Callable[..., jax.Array]  # (weights, list[str]) -> tokens [k n w]; on the host, once
    init_psi: Callable[..., Any]  # (weights, key, tokens [n w], queries) -> psi: only the leaves that a fitted query uses
    encode: Callable[..., jax.Array]  # (weights, rgb [b h w 3] in [0, 1], key) -> z; resizes itself; float32 out
    decode: Callable[..., jax.Array]  # (weights, z) -> rgb [b h w 3] in [0, 1]
    predict: Callable[..., jax.Array]  # (weights, psi, z_t, t [b], Cond) -> eps, float32
    truncate: Callable[[str, str], str] = lambda text, ending="": text  # text, cut so that `ending` fits behind it


class Query(NamedTuple):
    """One question put to the noise predictor."""

    text: str  # a key of the text tables (prompt, plain, null, empty, source, adapter) or "learned"
    lora: float = 0.0  # adapter scale; 0 is the frozen network
    latents: str = "render"  # "reference" for DDS
    pose: bool = False  # condition the adapter on the camera (VSD)
    image: bool = False  # show the image to a network that has an input for it (zeros where False)


class Objective(NamedTuple):
    """A set of noise predictions and one formula."""

    queries: Mapping[str, Query]
    residual: Callable[..., jax.Array]  # ({name: eps}, noise, t) -> what w(t) multiplies
    trained_query: str | None = None  # the query that is trained to denoise the renders
    # (eps_of, z, t, noise) -> (z_t, noise) in place of random noise, eps_of(text, z_t, t) being the frozen network: ISM, SDI
    inversion: Callable[..., tuple[jax.Array, jax.Array]] | None = None

    @property
    def trained_queries(self) -> list[Query]:
        """What a Prior's `init_psi` is asked to make learnable: the fitted query, if there is one."""
        return [] if self.trained_query is None else [self.queries[self.trained_query]]


class TrainState(struct.PyTreeNode):
    """All that training changes, and all that a checkpoint holds: data only, no functions, keys or frozen weights."""

    step: Any
    theta: Any
    aux: Any
    psi: Any
    opt_theta: Any
    opt_psi: Any
    skipped: Any  # updates that were dropped because a gradient was not finite
