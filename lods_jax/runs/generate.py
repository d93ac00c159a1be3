"""Images from a prior: by plain sampling, by distillation under an objective, and by editing an image."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lods_jax.core.images import grid, write_png
from lods_jax.core.types import Objective
from lods_jax.core.videos import write_video
from lods_jax.distillation.prompts import prompt_table
from lods_jax.priors.sampling import latent_shape, prior_with_texts
from lods_jax.training.distill_2d import DistillConfig, distill, film, in_latents


def distilled(
    folder: Path,
    objective: Objective,
    prompt: str,
    n: int,
    recipe: DistillConfig,
    seed: int = 0,
    negative_prompt: str = "",
    space: str = "latents",
    strict: bool = True,
) -> Float[np.ndarray, "f n h w 3"]:
    """n images of `prompt` under an objective, as a film of their optimisation; the last frame is the result.

    Args:
      space: "latents" are optimised themselves, from noise of a tenth of their size; "pixels" through the encoder, from grey.
    """
    prior, weights, texts = prior_with_texts(folder, strict, prompt_table(prompt, negative_prompt, with_view=False))
    decode, key = jax.jit(prior.decode), jax.random.key(seed)
    if space == "latents":
        start = 0.1 * jax.random.normal(key, (n, *latent_shape(prior, weights)))
        prior, show = in_latents(prior), lambda z: decode(weights, z)
    else:
        size = decode(weights, jnp.zeros((1, *latent_shape(prior, weights)))).shape[1]
        start, show = 0.5 + 0.02 * jax.random.normal(key, (n, size, size, 3)), lambda rgb: jnp.clip(rgb, 0, 1)
    frames, _ = film(distill(prior, weights, objective, texts, start, recipe, seed), show, recipe.steps)
    return frames


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
) -> Float[np.ndarray, "f n h w 3"]:
    """n edits of an image in [0, 1], from what `source` says of it to what `target` says, as a film that ends with the result.

    The latents start as those of the image, which are also the reference of DDS.
    """
    prior, weights, texts = prior_with_texts(
        folder, strict, prompt_table(target, negative_prompt, with_view=False, source=source)
    )
    z = jax.jit(prior.encode)(weights, jnp.asarray(image)[None], jax.random.key(seed))
    start, decode = jnp.tile(z, (n, 1, 1, 1)), jax.jit(prior.decode)
    steps = distill(in_latents(prior), weights, objective, texts, start, recipe, seed, reference=start)
    frames, _ = film(steps, lambda z: decode(weights, z), recipe.steps)
    return frames


def write_images(path: Path, rgb: Float[np.ndarray, "n h w 3"]) -> None:
    """Images in rows of eight as a PNG; small ones are enlarged, so that a person sees them."""
    write_png(path, grid(rgb, columns=min(len(rgb), 8)), scale=enlarged(rgb))


def write_film(path: Path, frames: Float[np.ndarray, "f n h w 3"], first: Float[np.ndarray, "h w 3"] | None = None) -> None:
    """The last images of a film as a PNG, behind `first` if there is one, and the film beside it as an MP4."""
    write_images(path, frames[-1] if first is None else np.concatenate([first[None], frames[-1]]))
    rows = np.stack([grid(images, columns=min(len(images), 8)) for images in frames])
    try:
        write_video(path.with_suffix(".mp4"), rows.repeat(enlarged(frames), 1).repeat(enlarged(frames), 2), fps=12.0)
    except RuntimeError as error:  # no ffmpeg that works: the images are there
        print(f"no video: {error}")


def enlarged(images: np.ndarray) -> int:
    """The factor that brings the edge of images [... h w 3] to at least 128 pixels or so."""
    return max(1, 192 // images.shape[-3])
