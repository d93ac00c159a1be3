"""Every figure of one generated object against the true object of its caption, from its renders and its opacity alone.

24 cameras: twelve azimuths, none on the border between two views, at two elevations. The true object has the middle of the
proportions that the data set shows; for KID it has many.
"""

from collections.abc import Callable
from functools import cache

import jax
import numpy as np
from jaxtyping import Float

from lods_jax.core.cameras import TABLETOP, VIEWS, rays, turntable
from lods_jax.core.types import Camera, Render
from lods_jax.tabletop import metrics
from lods_jax.tabletop.appearance import TrueViews, appearance, true_views
from lods_jax.tabletop.classifier import SIZE, classify, load_classifier
from lods_jax.tabletop.dataset import Caption, parse_caption, render_caption
from lods_jax.tabletop.objects import COLORS, COMPOSITE, KINDS, PATTERNS
from lods_jax.tabletop.reward import log_probability, wanted

AZIMUTHS, ELEVATIONS = 12, (10.0, 35.0)
PROPORTIONS = (0.1, 0.3, 0.5, 0.7, 0.9)
POINTS = 8192  # on the visible surface

FIGURES = {
    "kind": "share of views in which the classifier reads the asked kind",
    "color": "share of views in which it reads the asked colour",
    "pattern": "share of views in which it reads the asked pattern",
    "view": "share of views in which it reads the view that it is (kinds with a front)",
    "janus": "share of side and back views that it reads as a front (kinds with a front)",
    "reward": "mean log-probability that it finds for what prompt and view say: the reward of `--objective.reward classifier`",
    "kid": "kernel inception distance to true renders, in the classifier's features",
    "chamfer": "mean distance between our visible surface and the true one, world units",
    "coverage": "share of the true visible surface that is within 0.04 of ours",
    "floaters": "share of the opacity mass outside the largest piece",
    "saturation": "mean saturation minus that of the true object",
    "tint": "how coloured white and grey parts are: mean error of Oklab chroma, 0.02 is just noticeable",
    "color_error": "mean distance to the true colours of coloured parts, Oklab",
    "speckle": "specks on the object's inside relative to the truth; 1 is the truth",
    "floater_pixels": "share of the rendered opacity outside the largest piece that is connected in the image",
    "part_recall": "share of each true part that our renders show, mean over the parts; 1 is everything",
    "sharpness": "slope of the colours at edges relative to the truth; 1 is the truth",
}


READ = {"kind": KINDS, "color": list(COLORS), "pattern": PATTERNS}  # what the classifier reads, by its index
EDIT_FIGURES = {
    "attribute": "of an edit: share of views in which the classifier reads what was to change as asked",
    "rest": "of an edit: the same of what was to stay, of kind, colour, pattern and view",
    "moved": "of an edit: mean distance between its visible surface and that of the object before, world units",
}


def eyes() -> Camera:
    """The 24 cameras of every figure."""
    rings = [turntable(AZIMUTHS, elevation, TABLETOP) for elevation in ELEVATIONS]
    return jax.tree.map(lambda *x: np.concatenate([np.asarray(part) for part in x]), *rings)


def measure(
    prompt: str,
    look: Callable[[Camera], Render],
    points: Float[np.ndarray, "n 3"],
    mass: Float[np.ndarray, "n"],
) -> dict[str, float]:
    """The FIGURES of an object; NaN where one has no meaning (views of a ball, anything of an empty scene).

    Args:
        prompt: a caption of the tabletop world.
        look: cameras -> renders on white, NumPy.
        points: where the scene holds something [n 3].
        mass: how much it holds there [n].

    Returns:
        {figure: value}.

    Raises:
        ValueError: by `parse_caption`, for a prompt of another world.
    """
    caption, camera = parse_caption(prompt), eyes()
    seen = look(camera)
    read = classify(_classifier(), np.asarray(seen.rgb, np.float32))
    true, features = truth(caption._replace(view=None))
    fronted = caption.kind in COMPOSITE
    surface, rms = visible_points(seen, camera), np.sqrt(np.mean(features**2))
    return {
        "kind": float(np.mean(read.kind == KINDS.index(caption.kind))),
        "color": float(np.mean(read.color == list(COLORS).index(caption.color))) if caption.color else float("nan"),
        "pattern": float(np.mean(read.pattern == PATTERNS.index(caption.pattern))),
        "view": float(np.mean(read.view == camera.view)) if fronted else float("nan"),
        "janus": metrics.janus_index(read, camera.view) if fronted else float("nan"),
        "reward": mean_reward(caption, camera, seen.rgb),
        # In units of the true features, so that the kernel is 8 between an image and itself, more or less.
        "kid": metrics.kid(read.features / rms, features / rms),
        "chamfer": metrics.chamfer(surface, caption.kind, camera) if len(surface) else float("nan"),
        "coverage": metrics.coverage(surface, caption.kind, camera=camera) if len(surface) else 0.0,
        "floaters": metrics.floaters(points, mass),
        "saturation": metrics.saturation(seen.rgb, seen.opacity[..., 0]) - metrics.saturation(true[..., :3], true[..., 3]),
        **appearance(seen.rgb, seen.opacity[..., 0], true_appearance(caption._replace(view=None), seen.rgb.shape[1])),
    }


def mean_reward(caption: Caption, camera: Camera, rgb: Float[np.ndarray, "b h w 3"]) -> float:
    """The reward of `--objective.reward classifier`, mean over views.

    Args:
        caption: without view.
        camera: b cameras; kinds with a front are asked for their views.
        rgb: renders on white.

    Returns:
        At most 0.
    """
    asked = [str(caption._replace(view=VIEWS[view] if caption.kind in COMPOSITE else None)) for view in np.asarray(camera.view)]
    return float(np.mean(_rate(_classifier(), np.asarray(rgb, np.float32), wanted(asked))))


def measure_edit(
    source: str, prompt: str, look: Callable[[Camera], Render], look_before: Callable[[Camera], Render]
) -> dict[str, float]:
    """The EDIT_FIGURES of an edited object; NaN where one has no meaning.

    Args:
        source: the caption of the object before.
        prompt: that of the edit.
        look: cameras -> renders of the edited object on white, NumPy.
        look_before: the same of the object before.

    Returns:
        {figure: value}.

    Raises:
        ValueError: by `parse_caption`, for a prompt of another world.
    """
    before, after, camera = parse_caption(source), parse_caption(prompt), eyes()
    seen, was = look(camera), look_before(camera)
    read = classify(_classifier(), np.asarray(seen.rgb, np.float32))
    asked = {name: values.index(getattr(after, name)) for name, values in READ.items() if getattr(after, name)}
    shares = {name: float(np.mean(getattr(read, name) == i)) for name, i in asked.items()}
    changed = [share for name, share in shares.items() if getattr(before, name) != getattr(after, name)]
    kept = [share for name, share in shares.items() if getattr(before, name) == getattr(after, name)]
    kept += [float(np.mean(read.view == camera.view))] if after.kind in COMPOSITE else []
    mean = lambda x: float(np.mean(x)) if x else float("nan")  # noqa: E731
    moved = metrics.distance_between(visible_points(seen, camera), visible_points(was, camera))
    return {"attribute": mean(changed), "rest": mean(kept), "moved": moved}


def visible_points(seen: Render, camera: Camera, n: int = POINTS) -> Float[np.ndarray, "m 3"]:
    """Points of the surface that cameras see: pixels with opacity above 1/2, at their mean depth.

    Args:
        seen: renders.
        camera: their cameras.
        n: the most points to give, drawn at random.

    Returns:
        [m 3], m <= n.
    """
    _, h, w, _ = seen.rgb.shape
    origins, directions = (np.asarray(x) for x in rays(camera, h, w))
    forward = np.asarray(camera.c2w)[:, None, None, :3, 2]
    along = seen.depth / (directions * forward).sum(-1, keepdims=True)  # depth is measured along the optical axis
    points = (origins + along * directions)[seen.opacity[..., 0] > 0.5]
    return points[np.random.default_rng(0).permutation(len(points))[:n]]


@cache
def truth(caption: Caption) -> tuple[Float[np.ndarray, "b h w 4"], Float[np.ndarray, "m d"]]:
    """The true object of a caption.

    Args:
        caption: without view.

    Returns:
        RGBA [24 h w 4] on white, and the classifier's features [m d] of the object in many proportions.
    """
    show = lambda variation: np.asarray(render_caption(caption, eyes(), SIZE, variation=variation))  # noqa: E731
    many = np.concatenate([show(variation) for variation in PROPORTIONS])
    return show(0.5), classify(_classifier(), many[..., :3]).features


@cache
def true_appearance(caption: Caption, size: int) -> TrueViews:
    """The true object of a caption from the 24 cameras, for `appearance`.

    Args:
        caption: without view.
        size: edge of the renders, pixels.

    Returns:
        From `appearance.true_views`.
    """
    return true_views(caption, eyes(), size)


_rate = jax.jit(log_probability)


@cache
def _classifier():
    return load_classifier()
