"""Two priors over a finite set of captioned images whose scores are known in closed form: nothing is trained.

`posterior_mean` is the best denoiser that the images allow; at low noise it is certain of one image, so it memorises.
`caption_gaussians` fits one Gaussian per caption in PCA coordinates, and does not memorise.

Notation: n images x_i with features f_i in {0, 1}^k, one column for each of k words. A text y is k logits, and
log p(i | y) = <f_i, y> + const. Unconditional is y = 0. The words of a caption have the logit `NAMED`, which leaves no
weight to images without them: a caption is hard. A learned embedding that starts from y = 0 is soft.
"""

import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from PIL import Image, ImageOps

from lods_jax.core.images import read_rgba, to_uint8
from lods_jax.core.math import clip_to_unit
from lods_jax.core.noise_schedule import STABLE_DIFFUSION, NoiseSchedule, divisor, signal_and_noise, x0_to_eps
from lods_jax.core.types import Cond, Prior
from lods_jax.priors.gaussian import adapter_shift, init_psi

# Above any log-likelihood ratio of two images (3e10 at most, for 64 x 64 at t = 0 of flow matching); a power of two, so that
# float32 products and sums of it are exact, and the words of a caption cancel to 0.
NAMED = 2.0**40
IGNORED = ("a", "an", "the", "view")
# Evidence is divided by sigma2, 8.5e-4 at t = 0 of Stable Diffusion, which makes TF32 or bfloat16 products useless.
EXACT = jax.lax.Precision.HIGHEST


def caption_words(text: str, ignored: Collection[str] = IGNORED) -> list[str]:
    """The words of a caption in lower case, without those that carry no meaning.

    Args:
        text: the caption.
        ignored: words to leave out.

    Returns:
        Words in their order.

    Examples:
        >>> caption_words("A red mug, side view")
        ['red', 'mug', 'side']
    """
    return [word for word in re.split(r"[\s,]+", text.lower()) if word and word not in ignored]


def caption_logits(
    features: Float[np.ndarray, "n k"], words: Sequence[str], texts: Sequence[str], ignored: Collection[str]
) -> Float[Array, "b 1 k"]:
    """Tokens of captions: `NAMED` in the column of each named word, 0 elsewhere.

    Args:
        features: [n k], 1 where a word describes an image.
        words: names of the k columns.
        texts: b captions.
        ignored: words that mean nothing.

    Returns:
        Tokens [b 1 k].

    Raises:
        ValueError: a word has no column, or no image shows all words of a caption. Either would leave the softmax to choose among
            images that contradict the text.
    """
    column = {word: j for j, word in enumerate(words)}
    logits = np.zeros((len(texts), 1, len(words)), np.float32)
    for row, text in zip(logits, texts, strict=True):
        named = caption_words(text, ignored)
        if unknown := [word for word in named if word not in column]:
            raise ValueError(f"unknown word {unknown[0]!r} in {text!r}; the captions use: {', '.join(words)}")
        columns = [column[word] for word in named]
        if not np.all(features[:, columns], axis=1).any():
            raise ValueError(f"no image shows {text!r}: choose other words, or add such an image")
        row[0, columns] = NAMED
    return jnp.asarray(logits)


def log_prior(features: Float[Array, "n k"], psi: dict, cond: Cond) -> Float[Array, "b n"]:
    """log p(i | y), up to a constant per example; at most -NAMED for images that contradict a caption.

    Args:
        features: [n k].
        psi: {"lora": shift of the tokens}, or empty.
        cond: its tokens are [b 1 k].

    Returns:
        [b n].
    """
    named = jax.nn.log_softmax(jnp.matmul(cond.tokens[:, 0], features.T, precision=EXACT))
    # The shift is added after NAMED has cancelled: in one sum with it, float32 would round it away.
    return named + jnp.matmul(adapter_shift(psi, cond)[:, 0], features.T, precision=EXACT)


def resize(rgb: Float[Array, "b h w 3"], size: tuple[int, int]) -> Float[Array, "b h2 w2 3"]:
    """Bilinear, antialiased when it shrinks: without that, most pixels of a large render would get no gradient.

    Args:
        rgb: [b h w 3].
        size: height and width, pixels.

    Returns:
        [b height width 3].
    """
    return jax.image.resize(rgb, (len(rgb), *size, 3), "bilinear")


def posterior(
    weights: dict,
    psi: dict,
    z_t: Float[Array, "b h w c"],
    t: Int[Array, "b"],
    cond: Cond,
    noise_schedule: NoiseSchedule = STABLE_DIFFUSION,
) -> Float[Array, "b n"]:
    """p(i | z_t, y), the weight of each image in the denoiser of `posterior_mean`.

    Args:
        weights: of that prior.
        psi: {"lora": shift of the tokens}, or empty.
        z_t: noised pixels [b h w c].
        t: timesteps [b].
        cond: its tokens are [b 1 k].
        noise_schedule: of that prior.

    Returns:
        [b n], each row with sum 1.
    """
    x, x_t = weights["x"], z_t.reshape(len(z_t), -1)
    signal, noise_std = signal_and_noise(noise_schedule, t, x_t)
    # -|z_t - signal x_i|^2 / (2 noise_std^2) without |z_t|^2, which all images share.
    fit = signal * jnp.matmul(x_t, x.T, precision=EXACT) - signal**2 * weights["half_norm2"][None]
    return jax.nn.softmax(fit / divisor(noise_std**2) + log_prior(weights["features"], psi, cond))


def posterior_mean(
    images: Float[np.ndarray, "n h w c"],
    features: Float[np.ndarray, "n k"],
    words: Sequence[str],
    ignored: Collection[str] = IGNORED,
    noise_schedule: NoiseSchedule = STABLE_DIFFUSION,
) -> Prior:
    """The exact denoiser of a set of images: E[x0 | x_t, y] = sum_i p(i | x_t, y) x_i.

    Latents are pixels in [-1, 1].

    Args:
        images: [n h w c] in [0, 1]; `predict` takes any number of channels.
        features: [n k], 1 where a word describes an image, else 0.
        words: names of the k columns.
        ignored: words that a caption may hold and that mean nothing.
        noise_schedule: what z_t is mixed by.

    Returns:
        The prior. Its `embed` raises ValueError for captions that no image shows.

    Raises:
        ValueError: images, features and words do not fit each other.
    """
    check_captioned(images, features, words)

    def init(key: Key[Array, ""]) -> dict[str, Array]:
        x = 2 * np.asarray(images, np.float32).reshape(len(images), -1) - 1
        half_norm2 = np.einsum("nd,nd->n", x, x, dtype=np.float64) / 2
        weights = {"x": x, "half_norm2": half_norm2, "features": features}
        return {name: jnp.asarray(value, jnp.float32) for name, value in weights.items()}

    def embed(weights: dict, texts: list[str]) -> Float[Array, "b 1 k"]:
        return caption_logits(features, words, texts, ignored)

    def encode(weights: dict, rgb: Float[Array, "b h w 3"], key: Key[Array, ""]) -> Float[Array, "b h2 w2 3"]:
        return 2 * resize(rgb, images.shape[1:3]) - 1

    def decode(weights: dict, z: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return clip_to_unit((z + 1) / 2)

    def predict_x0(
        weights: dict, psi: dict, z_t: Float[Array, "b h w c"], t: Int[Array, "b"], cond: Cond
    ) -> Float[Array, "b h w c"]:
        x0 = jnp.matmul(posterior(weights, psi, z_t, t, cond, noise_schedule), weights["x"], precision=EXACT)
        return x0.reshape(z_t.shape)

    def predict(
        weights: dict, psi: dict, z_t: Float[Array, "b h w c"], t: Int[Array, "b"], cond: Cond
    ) -> Float[Array, "b h w c"]:
        return x0_to_eps(noise_schedule, predict_x0(weights, psi, z_t, t, cond), z_t, t)

    own_x0 = predict_x0 if noise_schedule.ends_in_noise else None
    return Prior(init, embed, init_psi, encode, decode, predict, noise_schedule, own_x0)


def caption_moments(weights: dict, psi: dict, cond: Cond) -> tuple[Float[Array, "b d"], Float[Array, "b d d"]]:
    """Mean and covariance of p(z | y), the images weighted by p(i | y).

    Args:
        weights: of a prior that `caption_gaussians` made.
        psi: {"lora": shift of the tokens}, or empty.
        cond: its tokens are [b 1 k].

    Returns:
        Mean [b d] and covariance [b d d], in PCA coordinates.
    """
    share = jax.nn.softmax(log_prior(weights["features"], psi, cond))
    mean = jnp.matmul(share, weights["coords"], precision=EXACT)
    offset = weights["coords"][None] - mean[:, None]
    # Around the mean, not E[zz'] - mean mean': the difference of two large numbers need not be positive definite.
    cov = jnp.einsum("bn,bnd,bne->bde", share, offset, offset, precision=EXACT)
    return mean, cov + weights["ridge"] * jnp.eye(cov.shape[-1])[None]


def principal_axes(x: Float[np.ndarray, "n d"], dims: int) -> Float[np.ndarray, "d {dims}"]:
    """The leading right singular vectors, by subspace iteration (Halko et al. 2011, algorithm 4.4).

    The full SVD of 2,000 renders at 32 x 32 takes half a minute, this a second or two.

    Args:
        x: centred rows [n d].
        dims: number of axes.

    Returns:
        Axes in columns [d dims].
    """
    spare = min(dims + 16, *x.shape)
    axes = np.random.default_rng(0).normal(size=(x.shape[1], spare))
    for _ in range(6):
        axes, _ = np.linalg.qr(x.T @ (x @ axes))
    _, _, rotation = np.linalg.svd(x @ axes, full_matrices=False)
    return axes @ rotation[:dims].T


def caption_gaussians(
    images: Float[np.ndarray, "n h w 3"],
    features: Float[np.ndarray, "n k"],
    words: Sequence[str],
    dims: int = 32,
    ridge: float = 1e-2,
    ignored: Collection[str] = IGNORED,
    noise_schedule: NoiseSchedule = STABLE_DIFFUSION,
) -> Prior:
    """A prior with one Gaussian per text: mean and covariance of its images in their first PCA coordinates.

    Latents [b 1 1 dims] are the coordinates, all divided by one number that makes their mean variance 1, so that distances keep
    their proportions.

    Args:
        images: [n h w 3] in [0, 1].
        features: [n k], 1 where a word describes an image, else 0.
        words: names of the k columns.
        dims: number of PCA coordinates.
        ridge: variance that is added to every coordinate, so that a caption of few images has a density; the mean variance is 1.
        ignored: words that a caption may hold and that mean nothing.
        noise_schedule: what z_t is mixed by.

    Returns:
        The prior. Its `embed` raises ValueError for captions that no image shows.

    Raises:
        ValueError: images, features and words do not fit each other, or `dims` or `ridge` is out of range.
    """
    check_captioned(images, features, words)
    most = min(len(images) - 1, images[0].size)
    if not 1 <= dims <= most:
        raise ValueError(f"dims must be in 1..{most} for {len(images)} images of {images[0].size} values, got {dims}")
    if not ridge > 0:
        raise ValueError(f"ridge must be positive, got {ridge}")

    def init(key: Key[Array, ""]) -> dict[str, Array]:
        x = np.asarray(images, np.float64).reshape(len(images), -1)
        mean = x.mean(0)
        basis = principal_axes(x - mean, dims)
        coords = (x - mean) @ basis
        scale = 1 / np.sqrt(np.mean(coords**2))
        weights = {"mean": mean, "basis": basis, "scale": scale, "coords": scale * coords}
        weights |= {"features": features, "ridge": ridge}
        return {name: jnp.asarray(value, jnp.float32) for name, value in weights.items()}

    def embed(weights: dict, texts: list[str]) -> Float[Array, "b 1 k"]:
        return caption_logits(features, words, texts, ignored)

    def encode(weights: dict, rgb: Float[Array, "b h w 3"], key: Key[Array, ""]) -> Float[Array, "b 1 1 d"]:
        x = resize(rgb, images.shape[1:3]).reshape(len(rgb), -1)
        z = weights["scale"] * jnp.matmul(x - weights["mean"][None], weights["basis"], precision=EXACT)
        return z[:, None, None]

    def decode(weights: dict, z: Float[Array, "b 1 1 d"]) -> Float[Array, "b h w 3"]:
        x = weights["mean"][None] + jnp.matmul(z[:, 0, 0], weights["basis"].T, precision=EXACT) / weights["scale"]
        return clip_to_unit(x).reshape(-1, *images.shape[1:])

    def predict(
        weights: dict, psi: dict, z_t: Float[Array, "b 1 1 d"], t: Int[Array, "b"], cond: Cond
    ) -> Float[Array, "b 1 1 d"]:
        mean, cov = caption_moments(weights, psi, cond)
        signal, noise_std = signal_and_noise(noise_schedule, t, cov)
        # z_t is N(signal mean, signal^2 cov + noise_std^2), and eps = -noise_std times its score.
        cov_t = signal**2 * cov + noise_std**2 * jnp.eye(cov.shape[-1])[None]
        offset = z_t[:, 0, 0, :, None] - signal * mean[..., None]
        eps = noise_std * jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(cov_t), offset)
        return eps.reshape(z_t.shape)

    def predict_x0(
        weights: dict, psi: dict, z_t: Float[Array, "b 1 1 d"], t: Int[Array, "b"], cond: Cond
    ) -> Float[Array, "b 1 1 d"]:
        mean, cov = caption_moments(weights, psi, cond)
        signal, noise_std = signal_and_noise(noise_schedule, t, mean)
        # Tweedie: mean + signal cov (signal^2 cov + noise_std^2)^-1 (z_t - signal mean), and eps holds all but signal cov.
        pulled = predict(weights, psi, z_t, t, cond)[:, 0, 0] / divisor(noise_std)
        return (mean + signal * jnp.einsum("bij,bj->bi", cov, pulled, precision=EXACT)).reshape(z_t.shape)

    own_x0 = predict_x0 if noise_schedule.ends_in_noise else None
    return Prior(init, embed, init_psi, encode, decode, predict, noise_schedule, own_x0)


def check_captioned(images: np.ndarray, features: np.ndarray, words: Sequence[str]) -> None:
    """Checks that there are images, a row of 0s and 1s for each, and a word for each column.

    Args:
        images: [n ...].
        features: [n k].
        words: k names.

    Raises:
        ValueError: something does not fit.
    """
    if len(images) == 0 or features.shape != (len(images), len(words)):
        raise ValueError(
            f"features must be [n k] for n >= 1 images and k words, got {features.shape} for "
            f"{len(images)} images and {len(words)} words"
        )
    if not np.isin(features, (0, 1)).all():
        raise ValueError("features must be 0 or 1")


def from_folder(
    folder: str | Path, size: int = 64, ignored: Collection[str] = IGNORED
) -> tuple[Float[np.ndarray, "n h w 3"], Float[np.ndarray, "n k"], list[str]]:
    """Reads a folder of captioned images, in the imagefolder layout of Hugging Face datasets.

    `metadata.jsonl` holds one line {"file_name": "mug.png", "text": "a red mug, side view"} per image. Images are composited on
    white, cropped to the centre square and scaled.

    Args:
        folder: with `metadata.jsonl`.
        size: edge of the images, pixels.
        ignored: words of captions that mean nothing.

    Returns:
        Images [n size size 3] in [0, 1], features [n k], and the k words.

    Raises:
        ValueError: the listing is missing, empty or malformed, or names a file outside the folder or one that is no image.
    """
    listing = Path(folder) / "metadata.jsonl"
    if not listing.is_file():
        raise ValueError(f'{listing} is missing: it holds a line {{"file_name": ..., "text": ...}} for each image')
    images, captions = [], []
    for number, line in enumerate(listing.read_bytes().splitlines(), 1):
        try:
            row = json.loads(line)
            path, words = listing.parent / row["file_name"], caption_words(row["text"], ignored)
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ValueError(f"{listing} line {number} is not a JSON object with texts file_name and text") from None
        if not path.resolve().is_relative_to(listing.parent.resolve()):
            raise ValueError(f"{listing} line {number} names a file outside the folder: {path}")
        images.append(read_image(path, size))
        captions.append(words)
    if not images:
        raise ValueError(f"{listing} lists no image")
    vocabulary = sorted(set().union(*captions))
    features = np.asarray([[word in words for word in vocabulary] for words in captions], np.float32)
    return np.stack(images), features, vocabulary


def read_image(path: Path, size: int) -> Float[np.ndarray, "h w 3"]:
    """The centre square of an image file, on white where it is transparent.

    Args:
        path: of the file.
        size: edge of the result, pixels.

    Returns:
        [size size 3] in [0, 1].

    Raises:
        ValueError: the file is no image.
    """
    image = Image.fromarray(to_uint8(read_rgba(path)))
    on_white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return np.asarray(ImageOps.fit(on_white, (size, size), Image.Resampling.BILINEAR), np.float32) / 255
