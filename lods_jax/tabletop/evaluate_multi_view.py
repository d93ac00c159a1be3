"""The gates of a prior of several views of the tabletop world, with fixed seeds and unchosen samples.

Caption swap and the classifier's reading are those of `evaluate`, view by view; in place of the view's word, the cameras of a
group are exchanged. Consistency asks whether the views of a sample are of one object: 3D Gaussians are fitted to them, and the
PSNR of the fit stands between that of independent samples of the prior of single images, and that of true renders.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from lods_jax.core.cameras import VIEWS as VIEW_WORDS
from lods_jax.core.cameras import orbit_camera, turntable
from lods_jax.core.images import grid, write_png
from lods_jax.core.paths import TABLETOP
from lods_jax.core.types import Camera, Prior
from lods_jax.priors.sampling import ELEVATION
from lods_jax.priors.stable_diffusion import stable_diffusion
from lods_jax.scenes.gaussian_init import ball
from lods_jax.scenes.gaussian_rasterizer import rasterize
from lods_jax.tabletop.architectures import size_of
from lods_jax.tabletop.classifier import classify, load_classifier
from lods_jax.tabletop.dataset import Caption, Renders, caption_of, render_caption
from lods_jax.tabletop.evaluate import GATES as SINGLE_GATES
from lods_jax.tabletop.evaluate import agreement, denoising_losses, sample_captions, sampler, table, vae_psnr, wrong
from lods_jax.tabletop.objects import COLORS, COMPOSITE, KINDS
from lods_jax.tabletop.streams import fresh_renders

OBJECTS = 48  # samples of each split
FITTED = 8  # of them, in how many consistency is measured
EDGE, COUNT, STEPS = 64, 768, 200  # pixels, Gaussians and steps of a fit
RATES = {"means": 4e-3, "quats": 5e-3, "log_scales": 1e-2, "opacity_logits": 4e-2, "colors": 2e-2}
SHOWS = 0.05  # difference to the background from which a pixel is of the object
# What a prior of single images must pass, and two figures of its own.
GATES = {name: gate for name, gate in SINGLE_GATES.items() if not name.startswith(("classifier", "caption swap: view"))} | {
    "caption swap: camera": SINGLE_GATES["caption swap: view"],
    "consistency: share": 0.5,
}


# --- caption swap -----------------------------------------------------------------------------------------------------------
def group_swap(prior: Prior, weights: Any, renders: Renders, draws: int = 4) -> dict[str, tuple[float, float]]:
    """Rise of the v-loss of groups with a wrong colour or kind, or with cameras turned by a view, as a share of the right loss.

    Args:
        prior: of several views.
        weights: its parameters.
        renders: unseen groups.
        draws: pairs of timestep and noise per group.

    Returns:
        {what is wrong: (rise, standard error over groups)}, and "correct": (loss, standard error).
    """
    views, rng = prior.views, np.random.default_rng(0)
    losses = denoising_losses(prior, weights, renders.rgb, draws, rng)
    labels, camera = renders.labels[::views], matrices_of(renders)
    per_group = lambda x: x.reshape(-1, views).mean(1)  # noqa: E731
    said = lambda captions: np.repeat([str(c._replace(view=None)) for c in captions], views).tolist()  # noqa: E731
    right = said([caption_of(row) for row in labels])
    turned = np.roll(camera.reshape(-1, views, 16), 1, axis=1).reshape(-1, 16)
    asked = {name: (said([wrong(rng, row, name) for row in labels]), camera) for name in ("color", "kind")}
    front = np.isin(labels[:, 0], [KINDS.index(k) for k in COMPOSITE])
    correct = per_group(losses(right, camera))
    result = {"correct": (float(correct.mean()), float(correct.std() / len(correct) ** 0.5))}
    for name, condition in (asked | {"camera": (right, turned)}).items():
        counts = front if name == "camera" else np.ones_like(front)
        rise, base = (per_group(losses(*condition)) - correct)[counts], correct[counts].mean()
        result[name] = (float(rise.mean() / base), float(rise.std() / len(rise) ** 0.5 / base))
    return result


def matrices_of(renders: Renders) -> Float[np.ndarray, "n 16"]:
    """Camera-to-world matrices of renders, row-major."""
    place = (jnp.asarray(x) for x in (renders.azimuth, renders.elevation, renders.radius))
    # The field of view is not in the matrix.
    return np.asarray(orbit_camera(*place, jnp.ones(len(renders.rgb))).c2w.reshape(-1, 16))


# --- samples ----------------------------------------------------------------------------------------------------------------
def split_views(images: Float[np.ndarray, "n h w 3"], views: int) -> Float[np.ndarray, "n v h _ 3"]:
    """The views of samples.

    Args:
        images: of `views` views side by side each.
        views: their number.

    Returns:
        [n v h w 3].
    """
    n, h, w, _ = images.shape
    return images.reshape(n, h, views, w // views, 3).transpose(0, 2, 1, 3, 4)


def view_captions(captions: list[Caption], views: int) -> list[Caption]:
    """What each view of samples should read as: the view's word is that of its camera, for kinds with a front.

    Args:
        captions: of the samples.
        views: number of views of each.

    Returns:
        Captions, sample by sample.
    """
    words = [VIEW_WORDS[int(i)] for i in turntable(views, ELEVATION).view]
    return [c._replace(view=word if c.kind in COMPOSITE else None) for c in captions for word in words]


def read_samples(images: Float[np.ndarray, "n v h w 3"], asked: list[Caption], classifier_params: Any) -> dict[str, float]:
    """What the classifier reads in the views of samples.

    Args:
        images: views of samples, in [0, 1].
        asked: captions of the samples.
        classifier_params: from `load_classifier`.

    Returns:
        Figures of `agreement` over all views; and "whole objects", the share of samples in all of whose views kind, colour and,
            where there is a front, the view are read rightly.
    """
    views = images.shape[1]
    captions = view_captions(asked, views)
    read = classify(classifier_params, images.reshape(-1, *images.shape[2:]))
    right = [
        KINDS[k] == c.kind and list(COLORS)[o] == c.color and c.view in (None, VIEW_WORDS[v])
        for k, o, v, c in zip(np.minimum(read.kind, len(KINDS) - 1), read.color, read.view, captions, strict=True)
    ]
    return agreement(read, captions) | {"whole objects": float(np.reshape(right, (-1, views)).all(1).mean())}


# --- consistency ------------------------------------------------------------------------------------------------------------
def fit_psnr(images: Float[np.ndarray, "v h w 3"], camera: Camera, seed: int = 0) -> float:
    """How well one object of 3D Gaussians explains images: PSNR of the fit in the pixels that show an object in either.

    Args:
        images: in [0, 1], each on an even background, which the fit is given.
        camera: of the images.
        seed: of the first Gaussians.

    Returns:
        Decibels.
    """
    small = np.asarray(jax.image.resize(np.asarray(images, np.float32), (len(images), EDGE, EDGE, 3), "linear"))
    border = np.concatenate([small[:, 0], small[:, -1], small[:, :, 0], small[:, :, -1]], 1)
    behind = np.median(border, 1)
    ours = np.asarray(fitted_renders(small, behind, camera, jax.random.key(seed)))
    shows = lambda x: np.abs(x - behind[:, None, None]).max(-1) > SHOWS  # noqa: E731
    return float(-10 * np.log10(np.mean((ours - small)[shows(small) | shows(ours)] ** 2)))


@jax.jit
def fitted_renders(images: Array, behind: Array, camera: Camera, key: Array) -> Array:
    """Renders of Gaussians that are fitted to images from nothing.

    Args:
        images: [v EDGE EDGE 3].
        behind: colour of the background of each [v 3].
        camera: of the images.
        key: of the first Gaussians.

    Returns:
        [v EDGE EDGE 3].
    """
    theta = {
        "means": ball(key, COUNT)["means"],
        "quats": jnp.tile(jnp.array([[1.0, 0.0, 0.0, 0.0]]), (COUNT, 1)),
        "log_scales": jnp.full((COUNT, 3), jnp.log(0.05)),
        "opacity_logits": jnp.full(COUNT, -2.0),
        "colors": jnp.full((COUNT, 3), 0.5),
    }
    tx = optax.chain(optax.scale_by_adam(b2=0.99, eps=1e-15), optax.scale_by_schedule(optax.exponential_decay(1.0, STEPS, 0.1)))

    def render(theta):
        opacities = jax.nn.sigmoid(theta["opacity_logits"])
        shape = {"height": EDGE, "width": EDGE, "capacity": 16 * COUNT}
        args = theta["means"], theta["quats"], jnp.exp(theta["log_scales"]), opacities, theta["colors"], behind, camera
        return rasterize(*args, **shape).rgb

    def step(_, state):
        theta, opt = state
        updates, opt = tx.update(jax.grad(lambda theta: jnp.mean(jnp.abs(render(theta) - images)))(theta), opt)
        return {name: theta[name] - rate * updates[name] for name, rate in RATES.items()}, opt

    theta, _ = jax.lax.fori_loop(0, STEPS, step, (theta, tx.init(theta)))
    return render(theta)


def consistency(images: Float[np.ndarray, "n v h w 3"], asked: list[Caption], size: int) -> dict[str, float]:
    """PSNR of fits to the views of samples, to samples of the shipped prior of single images, and to true renders.

    The true renders pass through the autoencoder: finer detail than samples can have would count against them.

    Args:
        images: views of samples, in [0, 1].
        asked: captions of the samples.
        size: edge of the true renders, pixels.

    Returns:
        Three means in decibels, and the share of the way from the second to the third at which the first lies.
    """
    views = images.shape[1]
    camera, words = turntable(views, ELEVATION), view_captions(asked, views)
    single = stable_diffusion(TABLETOP)
    weights = single.init(jax.random.key(0))
    apart = sampler(single, weights)([str(c) for c in words], list(range(len(words))))
    there_and_back = jax.jit(lambda weights, x: single.decode(weights, single.encode(weights, x, jax.random.key(0))))
    true = [there_and_back(weights, render_caption(c._replace(view=None), camera, size)[..., :3]) for c in asked]
    found = {
        "samples [dB]": images,
        "single views [dB]": apart.reshape(len(asked), views, *apart.shape[1:]),
        "true renders [dB]": true,
    }
    figures = {name: float(np.mean([fit_psnr(x, camera) for x in groups])) for name, groups in found.items()}
    ours, low, high = figures.values()
    return figures | {"share": (ours - low) / (high - low)}


# --- all of it --------------------------------------------------------------------------------------------------------------
def report(folder: Path, out: Path) -> dict[str, Any]:
    """Measures the gates of a folder of `lods train-prior --part multiview`, prints them, and writes gates.json and samples.png.

    Args:
        folder: of the prior.
        out: folder to write to.

    Returns:
        {figure: value}.
    """
    prior, size, classifier_params = stable_diffusion(folder), size_of(folder), load_classifier()
    weights = prior.init(jax.random.key(0))
    renders = Renders(*(x[:480] for x in fresh_renders(jax.random.key(123), 0, size, split="unseen", views=prior.views)))
    figures: dict[str, Any] = {"vae psnr [dB]": vae_psnr(prior, weights, renders.rgb)}
    swap = group_swap(prior, weights, renders)
    figures["caption swap: loss"] = swap.pop("correct")[0]
    for name, (rise, error) in swap.items():
        figures[f"caption swap: {name}"], figures[f"caption swap: {name} +-"] = rise, error
    draw = sampler(prior, weights)
    for split, prefix in (("seen", "samples"), ("unseen", "samples, unseen triples")):
        asked = sample_captions(split, OBJECTS)
        images = split_views(draw([str(c._replace(view=None)) for c in asked], list(range(OBJECTS))), prior.views)
        figures |= {f"{prefix}: {name}": x for name, x in read_samples(images, asked, classifier_params).items()}
        if split == "seen":
            out.mkdir(parents=True, exist_ok=True)
            shown = images[:24].reshape(-1, *images.shape[2:])
            write_png(out / "samples.png", grid(shown, 3 * prior.views), scale=128 // size)
            front = [i for i, c in enumerate(asked) if c.kind in COMPOSITE][:FITTED]
            fits = consistency(images[front], [asked[i] for i in front], size)
            figures |= {f"consistency: {name}": x for name, x in fits.items()}
    (out / "gates.json").write_text(json.dumps(figures | {"gates": GATES}, indent=2) + "\n")
    print(table(figures, GATES))
    print(f"written: {out / 'gates.json'}, {out / 'samples.png'}")
    return figures
