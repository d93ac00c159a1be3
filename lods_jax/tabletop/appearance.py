"""Figures of what a person sees in renders of an object beside the true one: casts of colour, specks, what hangs in the air, what
is missing, blur.

Colours are compared in Oklab (Ottosson 2020), where distances are alike to the eye: 0.02 is just noticeable. A generated object
has proportions of its own, so what is compared with the truth may lie a TOLERANCE away. Colours and sharpness are read in
despeckled renders (a median filter takes specks away and leaves edges), so that specks do not count twice.
Notation: b views of h x w pixels; "seen" is Oklab and opacity [b h w 4].
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import ndimage

from lods_jax.core.images import oklab
from lods_jax.core.types import Camera
from lods_jax.tabletop.dataset import Caption, render_caption
from lods_jax.tabletop.objects import part_count

# World units; objects are about 1.6 high.
TOLERANCE = 0.04  # of the data set's proportions: half of them differ by less from those of the middle
BESIDE = 0.08  # how far from its place an edge is looked for, and over how much the eye averages grain
SPECK = 0.04  # half of the median filter's window: three pixels of 128

NEUTRAL = 0.03  # Oklab chroma below which the truth is white, grey or black; the least of a coloured material is 0.08
NOISE = 0.004  # floor of `speckle`, Oklab: one grey level of 255
EDGE = 0.05  # change of the true colours between neighbours, Oklab, above which pixels lie on an edge
VISIBLE = 0.1  # opacity that shows against white
LEAST = 0.01  # share of the true object that pixels must make up for a figure of them


class Part(NamedTuple):
    """Where one part of the true object shows.

    Attributes:
        pixels: numbers of the pixels [n], counted through views, rows and columns.
        seen: the true object there [n 4].
        without: the true object without this part there [n 4].
    """

    pixels: Int[np.ndarray, "n"]
    seen: Float[np.ndarray, "n 4"]
    without: Float[np.ndarray, "n 4"]


@dataclass(frozen=True)
class Views:
    """What an object shows to b cameras.

    Attributes:
        seen: [b h w 4] on white.
        despeckled: the same less its specks.
    """

    seen: Float[np.ndarray, "b h w 4"]
    despeckled: Float[np.ndarray, "b h w 4"]


@dataclass(frozen=True)
class TrueViews(Views):
    """What the true object shows to b cameras.

    Attributes:
        parts: that show anywhere.
        scale: pixels per world unit.
    """

    parts: list[Part]
    scale: float


def true_views(caption: Caption, camera: Camera, size: int) -> TrueViews:
    """Renders the true object of a caption, whole and without each of its parts in turn.

    Args:
        caption: without view.
        camera: b cameras.
        size: edge of the renders, pixels.

    Returns:
        The views.
    """
    whole, *lacking = (np.asarray(render_caption(caption, camera, size, without=i)) for i in range(-1, part_count(caption.kind)))
    scale = float(np.mean(size / 2 / np.tan(np.asarray(camera.fov_y) / 2) / np.asarray(camera.radius)))
    return prepare_truth(whole, lacking, scale)


def prepare_truth(rgba: Float[np.ndarray, "b h w 4"], without: list[Float[np.ndarray, "b h w 4"]], scale: float) -> TrueViews:
    """Prepares renders of a true object.

    Args:
        rgba: of the whole object, on white.
        without: of the object without each of its parts in turn, on white.
        scale: pixels per world unit, at the origin.

    Returns:
        The views.
    """
    whole, parts = views(rgba[..., :3], rgba[..., 3], scale), []
    for other in without:
        lacking = _seen(other[..., :3], other[..., 3])
        pixels = np.flatnonzero(np.linalg.norm(lacking - whole.seen, axis=-1) > 2 * EDGE)
        if len(pixels):
            parts.append(Part(pixels, whole.seen.reshape(-1, 4)[pixels], lacking.reshape(-1, 4)[pixels]))
    return TrueViews(whole.seen, whole.despeckled, parts, scale)


def appearance(rgb: Float[np.ndarray, "b h w 3"], opacity: Float[np.ndarray, "b h w"], true: TrueViews) -> dict[str, float]:
    """All figures of this file.

    Args:
        rgb: our renders on white.
        opacity: of them.
        true: the true object from the same cameras.

    Returns:
        {figure: value}; NaN where one has no meaning.
    """
    ours = views(rgb, opacity, true.scale)
    return {
        "tint": tint(ours, true),
        "color_error": color_error(ours, true),
        "speckle": speckle(ours, true),
        "floater_pixels": floater_pixels(ours),
        "part_recall": part_recall(ours, true),
        "sharpness": sharpness(ours, true),
    }


def views(rgb: Float[np.ndarray, "b h w 3"], opacity: Float[np.ndarray, "b h w"], scale: float) -> Views:
    """Prepares renders for the figures.

    Args:
        rgb: on white.
        opacity: of them.
        scale: pixels per world unit.

    Returns:
        The views. A median filter takes away what fills less than half of the square around a pixel, and leaves edges.
    """
    seen = _seen(rgb, opacity)
    window = (1, *[_window(scale)] * 2)
    return Views(seen, np.stack([ndimage.median_filter(plane, window, mode="nearest") for plane in np.moveaxis(seen, -1, 0)], -1))


def _window(scale):
    return 2 * max(1, round(SPECK * scale)) + 1


def _seen(rgb, opacity):
    return np.concatenate([oklab(rgb), np.asarray(opacity, np.float32)[..., None]], -1)


def tint(ours: Views, true: TrueViews) -> float:
    """How coloured it is what should be white or grey: mean error of the Oklab chroma (a, b) there.

    Args:
        ours: our renders.
        true: the true object.

    Returns:
        0 for the true colours, 0.02 just noticeable, 0.1 pink for white; NaN for an object without white or grey.
    """
    return _color_difference(ours, true, _chroma(true.seen) < NEUTRAL, slice(1, 3))


def color_error(ours: Views, true: TrueViews) -> float:
    """Mean distance in Oklab (Delta E OK) to the true colours where these are neither white nor grey.

    Args:
        ours: our renders.
        true: the true object.

    Returns:
        0 for the true colours; NaN for an object without colours.
    """
    return _color_difference(ours, true, _chroma(true.seen) >= NEUTRAL, slice(0, 3))


def _chroma(seen):
    return np.hypot(seen[..., 1], seen[..., 2])


def _color_difference(ours, true, which, channels) -> float:
    """Mean length of the difference to the nearest true colour within TOLERANCE, over `which` pixels that both objects cover.

    Differences are averaged over BESIDE to all sides first: the eye averages over grain, and sees a cast that stays.
    """
    solid = true.seen[..., 3] > 0.99
    which = which & solid
    pixels = np.flatnonzero(which & (ours.despeckled[..., 3] > 0.5))
    if which.sum() < LEAST * solid.sum() or not len(pixels):
        return float("nan")
    mine = ours.despeckled.reshape(-1, 4)[pixels, channels]
    nearest, length = np.zeros_like(mine), np.full(len(pixels), np.inf, np.float32)
    for around in _around(true.despeckled, pixels, TOLERANCE * true.scale):
        difference = mine - around[:, channels]
        nearer = (now := np.linalg.norm(difference, axis=-1)) < length
        nearest[nearer], length[nearer] = difference[nearer], now[nearer]
    window = 2 * round(BESIDE * true.scale) + 1
    spread = np.zeros((which.size, mine.shape[1] + 1), np.float32)
    spread[pixels] = np.concatenate([nearest, np.ones_like(nearest[:, :1])], 1)
    spread = ndimage.uniform_filter(spread.reshape(*which.shape, -1), (1, window, window, 1)).reshape(which.size, -1)[pixels]
    return float(np.linalg.norm(spread[:, :-1] / spread[:, -1:], axis=-1).mean())


def _around(seen, pixels, radius):
    """Yields the values [n 4] at each offset of a disc from some pixels."""
    reach = int(radius)
    padded = np.pad(seen, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    b, y, x = np.unravel_index(pixels, seen.shape[:3])
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            if dy**2 + dx**2 <= radius**2:
                yield padded[b, y + dy + reach, x + dx + reach]


def speckle(ours: Views, true: TrueViews) -> float:
    """Energy of the specks on the object relative to the truth: what the median filter takes away, root mean square.

    Counted inside both objects, away from the edges of silhouettes and of true colours; pinholes count.

    Args:
        ours: our renders.
        true: the true object.

    Returns:
        1 for as many as the truth has; NOISE is added to both, for a truth may have none. NaN without an inside.
    """
    square = (1, *[_window(true.scale)] * 2)
    edges = np.ptp(_neighbours(true.seen), 0).max(-1) > EDGE
    covered = ndimage.binary_closing(ours.seen[..., 3] > 0.5, np.ones((1, 3, 3)))  # pinholes are specks, holes are not
    inside = ~ndimage.maximum_filter(edges | (true.seen[..., 3] < 0.99) | ~covered, square)
    if inside.sum() < LEAST * (true.seen[..., 3] > 0.5).sum():
        return float("nan")
    energy = lambda x: ((x.seen - x.despeckled)[inside, :3] ** 2).sum(-1).mean() + NOISE**2  # noqa: E731
    return float(np.sqrt(energy(ours) / energy(true)))


def _neighbours(seen):
    """Each pixel and the ones right of it and below [3 b h w 4]."""
    padded = np.pad(seen, ((0, 0), (0, 1), (0, 1), (0, 0)), mode="edge")
    return np.stack([seen, padded[:, :-1, 1:], padded[:, 1:, :-1]])


def floater_pixels(ours: Views) -> float:
    """What hangs in the air: share of the opacity that lies, in the image, outside the largest connected piece.

    Pixels of opacity VISIBLE are connected if they touch, by a corner too. A true object is one piece from all sides, whatever
    its proportions.

    Args:
        ours: our renders.

    Returns:
        The share; NaN for an empty scene.
    """
    opacity = ours.seen[..., 3]
    if not opacity.sum() > 1e-3:
        return float("nan")
    apart = 0.0
    for view in opacity:
        piece, _ = ndimage.label(view > VISIBLE, np.ones((3, 3)))
        mass = np.bincount(piece.ravel(), view.ravel())[1:]  # less what is not visible
        apart += mass.sum() - mass.max(initial=0)
    return float(apart / opacity.sum())


def part_recall(ours: Views, true: TrueViews) -> float:
    """Share of each part that is there, mean over the parts: a handle counts as much as the mug.

    What a part adds to a pixel is the difference between the true object and the true object without this part. The pixel has the
    part if we, within TOLERANCE, are nearer to the truth than half of that. So parts count that change the outline, such as
    legs, with a colour of any kind, and parts that change the colour alone, such as a door.

    Args:
        ours: our renders.
        true: the true object.

    Returns:
        1 if everything is there, about 0 for an empty scene.
    """
    shares = []
    for part in true.parts:
        there = np.zeros(len(part.pixels), bool)
        enough = np.linalg.norm(part.seen - part.without, axis=-1) / 2
        for shown in (
            ours.seen,
            ours.despeckled,
        ):  # as it is, where small parts are, and despeckled, where grain does not hide the others
            for around in _around(shown, part.pixels, TOLERANCE * true.scale):
                there |= np.linalg.norm(around - part.seen, axis=-1) < enough
        shares.append(there.mean())
    return float(np.mean(shares))


def sharpness(ours: Views, true: TrueViews) -> float:
    """How steep colours change at the true edges: the steepest place within BESIDE in our renders beside that in the true ones.

    The median over the edges, so that those which we lack do not count as blur.

    Args:
        ours: our renders.
        true: the true object.

    Returns:
        1 for as sharp as the truth, below for blur.
    """
    reach = 2 * round(BESIDE * true.scale) + 1
    steepest = lambda x: ndimage.maximum_filter(_slope(x.despeckled), (1, reach, reach))  # noqa: E731
    edges = _slope(true.despeckled) > EDGE
    return float(np.median(steepest(ours)[edges] / steepest(true)[edges]))


def _slope(seen):
    """Length of the gradient of the colours [b h w], per pixel."""
    return np.sqrt(sum((np.gradient(seen[..., :3], axis=axis) ** 2).sum(-1) for axis in (1, 2)))
