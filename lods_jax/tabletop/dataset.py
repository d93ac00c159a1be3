"""Tabletop-12 as captioned images: captions, splits, and renders from a seed at any resolution.

A caption is "a red striped mug, side view": article, colour, pattern unless plain, kind, and a view for kinds with a front.
54 of the 288 (kind, colour, pattern) triples are held out, so that a prior can be asked for what it has never seen together.
"""

import hashlib
from functools import partial
from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lods_jax.core.cameras import TABLETOP, VIEWS, Orbit, sample_orbit
from lods_jax.core.random import group_keys
from lods_jax.core.types import Camera
from lods_jax.tabletop.objects import COLORS, COMPOSITE, DEFECTS, KINDS, PATTERNS, render_objects

WORDS = ("a", "an", ",", "view", *VIEWS, *PATTERNS[1:], *COLORS, *KINDS)


class Caption(NamedTuple):
    """The attributes that a caption names; None for those it does not.

    Attributes:
        kind: of KINDS.
        color: of COLORS.
        pattern: of PATTERNS.
        view: of VIEWS.
    """

    kind: str
    color: str | None = None
    pattern: str = "plain"
    view: str | None = None

    def __str__(self):
        words = [w for w in (self.color, self.pattern if self.pattern != "plain" else None, self.kind) if w]
        article = "an" if words[0][0] in "aeiou" else "a"
        return " ".join([article, *words]) + (f", {self.view} view" if self.view else "")


class Renders(NamedTuple):
    """n captioned renders, as NumPy arrays on the host.

    Attributes:
        rgb: uint8 [n size size 3].
        labels: [n 4], indices into KINDS, COLORS, PATTERNS, VIEWS.
        azimuth: [n] radians.
        elevation: [n] radians.
        radius: distance of the camera [n], world units.
    """

    rgb: np.ndarray
    labels: np.ndarray
    azimuth: np.ndarray
    elevation: np.ndarray
    radius: np.ndarray


def parse_caption(text: str) -> Caption:
    """The attributes of a caption, in any order of words; later words win.

    Args:
        text: of the words `WORDS`.

    Returns:
        The caption.

    Raises:
        ValueError: a word is unknown, or no kind is named.

    Examples:
        >>> parse_caption("a red striped mug, side view").pattern
        'striped'
    """
    words = text.lower().replace(",", " ").split()
    unknown = [w for w in words if w not in WORDS]
    found = {
        "kind": [w for w in words if w in KINDS],
        "color": [w for w in words if w in COLORS],
        "pattern": [w for w in words if w in PATTERNS],
        "view": [w for w in words if w in VIEWS],
    }
    if unknown or not found["kind"]:
        what = f"unknown words {', '.join(unknown)}" if unknown else "no kind of object"
        raise ValueError(f"caption {text!r} has {what}; a caption reads like 'a red striped mug, side view'")
    return Caption(**{name: w[-1] for name, w in found.items() if w})


def held_out(kind: str, color: str, pattern: str) -> bool:
    """Whether no training render shows a triple: 54 of 288, those whose hash is below 0.15.

    Args:
        kind: of KINDS.
        color: of COLORS.
        pattern: of PATTERNS.

    Returns:
        True for a held-out triple; the same for ever.
    """
    digest = hashlib.sha256(f"{kind} {color} {pattern}".encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32 < 0.15


def captions(split: str = "seen") -> list[Caption]:
    """Every (kind, colour, pattern) of a split, without views.

    Args:
        split: "seen", "unseen" or "all".

    Returns:
        Captions.

    Raises:
        ValueError: there is no such split.

    Examples:
        >>> len(captions("unseen"))
        54
    """
    if split not in ("seen", "unseen", "all"):
        raise ValueError(f"split must be seen, unseen or all, got {split!r}")
    triples = product(KINDS, COLORS, PATTERNS)
    return [Caption(*t) for t in triples if split == "all" or held_out(*t) == (split == "unseen")]


def caption_of(labels: np.ndarray) -> Caption:
    """The caption of one row of `Renders.labels`, with a view where the kind has a front."""
    kind, color, pattern, view = (int(i) for i in labels)
    shown = VIEWS[view] if KINDS[kind] in COMPOSITE else None
    return Caption(KINDS[kind], list(COLORS)[color], PATTERNS[pattern], shown)


def render_caption(
    caption: Caption | str,
    camera: Camera,
    size: int = 64,
    *,
    background: float | tuple[float, float, float] = 1.0,
    variation: float | Float[np.ndarray, "4"] = 0.5,
    without: int | None = None,
) -> Float[Array, "b size size 4"]:
    """The true object of a caption from b cameras.

    Args:
        caption: without a colour it is white.
        camera: b cameras.
        size: edge of the renders, pixels.
        background: grey, or rgb, in [0, 1].
        variation: of all proportions, or of each of the four, in [0, 1]; 0.5 is the middle of what the data set shows.
        without: number of a part that is left out, -1 for none; None where no part is ever left out.

    Returns:
        RGBA [b size size 4], rgb composited on the background, alpha the coverage.
    """
    caption = parse_caption(caption) if isinstance(caption, str) else caption
    b = len(camera.fov_y)
    color = jnp.full(b, list(COLORS).index(caption.color or "white"))
    pattern = jnp.full(b, PATTERNS.index(caption.pattern))
    proportions = jnp.broadcast_to(jnp.asarray(variation, jnp.float32), (b, 4))
    left_out = None if without is None else jnp.full(b, without)
    rgba = render_objects(caption.kind, camera, proportions, color, pattern, size=size, without=left_out)
    below = jnp.broadcast_to(jnp.asarray(background, jnp.float32), (1, 1, 1, 3))
    return rgba.at[..., :3].add((1 - rgba[..., 3:]) * below)


def sample_renders(
    key: Key[Array, ""],
    per_kind: dict[str, int],
    size: int = 64,
    *,
    split: str = "seen",
    orbit: Orbit = TABLETOP,
    chunk: int | None = None,
    views: int = 1,
    joint: bool = False,
) -> Renders:
    """Random renders by cameras of an orbit, in random order.

    Half of the backgrounds are white and half an even grey; colours and proportions are uniform; half of the objects are plain.

    Args:
        key: decides everything.
        per_kind: {kind: number of images}.
        size: edge of the renders, pixels.
        split: of the captions: "seen", "unseen" or "all".
        orbit: the distribution of cameras.
        chunk: views traced at once; None for 1 on a CPU and 64 elsewhere. It does not change the result.
        views: images in a row that show the same object, for pairs; every second of them is on white.
        joint: whether these are a group as `sample_orbit` draws it, for a prior of several views: azimuths 360 / views apart, all
            else of the cameras equal, and one background.

    Returns:
        The renders.

    Raises:
        ValueError: a number of images is no multiple of `views`.
    """
    if any(n % views for n in per_kind.values()):
        raise ValueError(f"per_kind must hold multiples of views={views}, got {per_kind}")
    chunk = chunk or _chunk()
    parts = []
    for kind, n in per_kind.items():
        own = jax.random.fold_in(key, KINDS.index(kind))
        parts.append(_render_kind(own, kind, n, size, split, orbit, chunk, views, views if joint else 1))
    order = np.random.default_rng(np.asarray(jax.random.key_data(key))).permutation(sum(per_kind.values()) // views)
    order = (views * order[:, None] + np.arange(views)).ravel()
    return Renders(*(np.concatenate(column)[order] for column in zip(*parts, strict=True)))


def sample_defects(key: Key[Array, ""], each: int, size: int, *, split: str = "seen") -> tuple[np.ndarray, Renders]:
    """Random renders of objects with something wrong (`objects.DEFECTS`), and of the same objects as they should be.

    Args:
        key: decides everything.
        each: images of each defect.
        size: edge of the renders, pixels.
        split: of the captions, as for `sample_renders`.

    Returns:
        rgb uint8 [n size size 3] of the defective objects, and the true `Renders` row by row. Some sides do not show a defect.
    """
    chunk, pairs = _chunk(), []
    for i, (defect, kind) in enumerate(DEFECTS.items()):
        draw = partial(_render_kind, jax.random.fold_in(key, i), kind, each, size, split, TABLETOP, chunk, 1)
        pairs.append((draw(shape=defect)[0], draw()))
    bad, true = zip(*pairs, strict=True)
    return np.concatenate(bad), Renders(*(np.concatenate(column) for column in zip(*true, strict=True)))


def _chunk() -> int:
    """Views that are traced at once: one keeps a CPU's cache, a GPU wants dozens."""
    return 1 if jax.default_backend() == "cpu" else 64


def _render_kind(key, kind, n, size, split, orbit, chunk, views, group=1, shape=None):
    triples = [(c, p) for k, c, p, _ in captions(split) if k == kind]
    if not triples:
        raise ValueError(f"split {split!r} has no caption of a {kind}")
    # Plain weighs twice as much as striped or checkered: patterns are the hardest to learn and the least asked for.
    weight = np.array([2.0 if p == "plain" else 1.0 for _, p in triples])
    keys = jax.random.split(key, 5)
    camera = sample_orbit(group_keys(jax.random.split(keys[0], n), group), jnp.arange(n) % group, group, orbit, group)
    pick = np.asarray(jax.random.choice(keys[1], len(triples), (n // views,), p=weight / weight.sum())).repeat(views)
    color = np.array([list(COLORS).index(c) for c, _ in triples])[pick]
    pattern = np.array([PATTERNS.index(p) for _, p in triples])[pick]
    variation = jnp.repeat(jax.random.uniform(keys[2], (n // views, 4)), views, 0)
    u = np.asarray(jax.random.uniform(keys[3], (n // group, 2))).repeat(group, 0)
    rgba = render_objects(shape or kind, camera, variation, color, pattern, size=size, chunk=chunk)
    white = u[:, 0] < 0.5 if views == group else np.arange(n) % 2 == 0
    grey = np.where(white, 1.0, 0.3 + 0.6 * u[:, 1]).astype(np.float32)
    rgb = np.asarray(_bytes_on(rgba, grey))
    labels = np.stack([np.full(n, KINDS.index(kind)), color, pattern, np.asarray(camera.view)], 1)
    return rgb, labels, np.asarray(camera.azimuth), np.asarray(camera.elevation), np.asarray(camera.radius)


@jax.jit
def _bytes_on(rgba: Float[Array, "n h w 4"], grey: Float[Array, "n"]) -> Array:
    """Premultiplied renders on even greys as bytes; on the device, since a quarter of the memory then travels."""
    return (255 * (rgba[..., :3] + (1 - rgba[..., 3:]) * grey[:, None, None, None]) + 0.5).astype(jnp.uint8)


def boundary_distance(
    azimuth: Float[np.ndarray, "n"], elevation: Float[np.ndarray, "n"], orbit: Orbit = TABLETOP
) -> Float[np.ndarray, "n"]:
    """Degrees to the nearest boundary between views; within a few degrees of one a view word is a matter of taste.

    Args:
        azimuth: [n] radians.
        elevation: [n] radians.
        orbit: its limits.

    Returns:
        [n] degrees.
    """
    azimuth, elevation = np.abs(np.rad2deg(azimuth)), np.rad2deg(elevation)
    beside = np.minimum(np.abs(azimuth - orbit.front), np.abs(azimuth - (180 - orbit.front)))
    return np.where(elevation > orbit.above, elevation - orbit.above, np.minimum(beside, orbit.above - elevation))
