"""Images from a prior: by plain sampling, by distillation under an objective, and by editing an image."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lods_jax.core.cameras import VIEWS
from lods_jax.core.errors import UserError, tell
from lods_jax.core.files import is_stream
from lods_jax.core.images import LONGEST_EDGE, grid, write_image
from lods_jax.core.types import Objective, Prior
from lods_jax.core.videos import write_video
from lods_jax.distillation.prompts import prompt_table, view_prompts
from lods_jax.priors.registry import views_of
from lods_jax.priors.sampling import in_batches, latent_shape, prior_with_texts
from lods_jax.training.distill_2d import DistillConfig, distill, film, in_latents


def distilled(
    folder: Path,
    objective: Objective,
    table: Mapping[str, Sequence[str]],
    n: int,
    recipe: DistillConfig,
    seed: int = 0,
    space: str = "latents",
    start: str = "quiet",
    strict: bool = True,
    batch: int | None = None,
    **network: Any,
) -> Float[np.ndarray, "f n h w 3"]:
    """Images of a prompt, distilled under an objective.

    Args:
        folder: of a Stable Diffusion prior.
        objective: to optimise under.
        table: the texts, from `image_prompts`.
        n: number of images.
        recipe: steps and rates.
        seed: of all noise.
        space: "latents" optimises latents; "pixels" optimises pixels through the encoder.
        start: "quiet" is noise of a tenth of the latents' size, or almost even grey; "uniform" is noise over [-1, 1] of latents,
            or over all colours.
        strict: whether words outside the folder's vocabulary are refused.
        batch: see `sampling.in_batches`; None for all at once.
        **network: options of `stable_diffusion`.

    Returns:
        Frames of the optimisation [f n h w 3] in [0, 1]; the last is the result.
    """
    prior, weights, texts = learning(folder, objective, table, strict, batch, network)
    decode, key = jax.jit(prior.decode), jax.random.key(seed)
    if space == "latents":
        shape, span, middle, quiet = (n, *latent_shape(prior, weights)), (-1.0, 1.0), 0.0, 0.1
        prior, show = in_latents(prior), lambda z: decode(weights, z)
    else:
        size = decode(weights, jnp.zeros((1, *latent_shape(prior, weights)))).shape[1]
        shape, span, middle, quiet = (n, size, size, 3), (0.0, 1.0), 0.5, 0.02
        show = lambda rgb: jnp.clip(rgb, 0, 1)  # noqa: E731
    noise = jax.random.uniform(key, shape, jnp.float32, *span) if start == "uniform" else quiet * jax.random.normal(key, shape)
    start = noise if start == "uniform" else middle + noise
    frames, _ = film(distill(prior, weights, objective, texts, start, recipe, seed), show, recipe.steps)
    return frames


def image_prompts(
    prompt: str, negative_prompt: str = "", view: str = "", adapter_text: str | None = None
) -> dict[str, Sequence[str]]:
    """The prompt table of images, which have no camera.

    Args:
        prompt: what to show.
        negative_prompt: the text of "null".
        view: a name of `cameras.VIEWS` that the prompt names; "" for none.
        adapter_text: the text of a LoRA; None for no such text.

    Returns:
        {name: one text per view}.
    """
    table = prompt_table(prompt, negative_prompt, with_view=False, adapter=adapter_text)
    return table | ({"prompt": [view_prompts(prompt)[VIEWS.index(view)]] * len(VIEWS)} if view else {})


def edited(
    folder: Path,
    objective: Objective,
    image: Float[np.ndarray, "h w 3"],
    source: str,
    target: str,
    n: int,
    recipe: DistillConfig,
    seed: int = 0,
    negative_prompt: str = "",
    strict: bool = True,
    batch: int | None = None,
    **network: Any,
) -> Float[np.ndarray, "f n h w 3"]:
    """Edits of an image, from the source text to the target text.

    The latents start as those of the image, which are also the reference of DDS.

    Args:
        folder: of a Stable Diffusion prior.
        objective: to optimise under.
        image: [h w 3] in [0, 1].
        source: what it shows.
        target: what it is to show.
        n: number of edits.
        recipe: steps and rates.
        seed: of all noise.
        negative_prompt: the text of "null".
        strict: whether words outside the folder's vocabulary are refused.
        batch: see `sampling.in_batches`; None for all at once.
        **network: options of `stable_diffusion`.

    Returns:
        Frames of the optimisation [f n h w 3] in [0, 1]; the last is the result.
    """
    table = prompt_table(target, negative_prompt, with_view=False, source=source)
    prior, weights, texts = learning(folder, objective, table, strict, batch, network)
    z = jax.jit(prior.encode)(weights, jnp.asarray(image)[None], jax.random.key(seed))
    start, decode = jnp.tile(z, (n, 1, 1, 1)), jax.jit(prior.decode)
    steps = distill(in_latents(prior), weights, objective, texts, start, recipe, seed, reference=start)
    frames, _ = film(steps, lambda z: decode(weights, z), recipe.steps)
    return frames


def learning(
    folder: Path, objective: Objective, table: Mapping, strict: bool, batch: int | None, network: Mapping[str, Any]
) -> tuple[Prior, Any, dict[str, Array]]:
    """`prior_with_texts` for an objective, in batches.

    Args:
        folder: of a Stable Diffusion prior.
        objective: may train a query.
        table: {name: texts}.
        strict: whether words outside the folder's vocabulary are refused.
        batch: see `sampling.in_batches`; None for all at once.
        network: options of `stable_diffusion`.

    Returns:
        The prior, its weights, and {name: tokens [views n d]}.

    Raises:
        UserError: the objective trains a query in float16, or the prior is one of several views.
    """
    if objective.trained_query and network.get("dtype") == "float16":
        raise UserError("this objective learns, and float16 would round its gradients away: pass --prior.dtype bfloat16")
    if (views := views_of(str(folder))) > 1:
        raise UserError(f"this prior makes {views} views of an object together: sample it, or distil a scene by text-to-3d")
    prior, weights, texts = prior_with_texts(folder, strict, table, **network)
    return in_batches(prior, batch) if batch else prior, weights, texts


def write_images(path: Path, rgb: Float[np.ndarray, "n h w 3"]) -> Path:
    """Writes images in rows of eight, or of as many as are as wide as eight squares; small ones enlarged.

    A grid with an edge that the format cannot have is written as PNG, beside the path.

    Args:
        path: of the file; its suffix is the format.
        rgb: [n h w 3] in [0, 1].

    Returns:
        The path of what was written.
    """
    fit = max(1, 8 * rgb.shape[1] // rgb.shape[2])
    image, scale = grid(rgb, columns=min(len(rgb), fit)), enlarged(rgb)
    edge, most = scale * max(image.shape), LONGEST_EDGE.get(path.suffix.lower(), math.inf)
    if edge > most:
        tell(f"a {path.suffix} has at most {most} pixels an edge, and {len(rgb)} images need {edge}: {path.with_suffix('.png')}")
        path = path.with_suffix(".png")
    return write_image(path, image, scale=scale)


def write_film(path: Path, frames: Float[np.ndarray, "f n h w 3"], first: Float[np.ndarray, "h w 3"] | None = None) -> Path:
    """Writes the last frame as an image, and all frames beside it as an MP4. Beside a device or a pipe there is no video.

    Args:
        path: of the image.
        frames: [f n h w 3] in [0, 1].
        first: an image [h w 3] to put before the others, or None.

    Returns:
        The path of the image that was written.
    """
    written = write_images(path, frames[-1] if first is None else np.concatenate([first[None], frames[-1]]))
    if is_stream(path):
        return written
    rows = np.stack([grid(images, columns=min(len(images), 8)) for images in frames])
    try:
        write_video(path.with_suffix(".mp4"), rows.repeat(enlarged(frames), 1).repeat(enlarged(frames), 2), fps=12.0)
    except RuntimeError as error:  # no ffmpeg that works: the images are there
        tell(f"no video: {error}")
    return written


def enlarged(images: np.ndarray) -> int:
    """The whole factor that brings the edge of images [... h w 3] to about 128 pixels or more."""
    return max(1, 192 // images.shape[-3])
