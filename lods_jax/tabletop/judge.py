"""The judge: a small classifier that says what an image of the tabletop world shows, or that it shows nothing.

Trained on renders and on negatives alone, never on samples of a prior, and apart from the prior's text tower. Its kind head has
one class more than there are kinds: NONE, for blobs, floaters, burnt and half-noised images. Without it a coloured blob would be
called a ball or a mug, and an accuracy would mean nothing.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int, Key
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from lods_jax.core.cameras import VIEWS
from lods_jax.core.files import replacing
from lods_jax.core.noise_schedule import STABLE_DIFFUSION, add_noise
from lods_jax.tabletop.dataset import boundary_distance
from lods_jax.tabletop.fitting import Recipe, optimizer, sit, start
from lods_jax.tabletop.objects import COLORS, COMPOSITE, KINDS, PATTERNS
from lods_jax.tabletop.streams import fresh_renders, pool_batches

SIZE = 64
NONE = len(KINDS)  # index of the class "no object" in the kind head
HEADS = {"kind": len(KINDS) + 1, "color": len(COLORS), "pattern": len(PATTERNS), "view": len(VIEWS)}
SHIPPED = Path(__file__).parent / "weights" / "judge.safetensors"


class Judge(nn.Module):
    """Images [b 64 64 3] in [0, 1] -> ({head: logits [b classes]}, features [b 128])."""

    @nn.compact
    def __call__(self, rgb):
        b = len(rgb)
        # Pixels of a 2x2 block as channels: a quarter of the work at full resolution.
        x = (2 * rgb - 1).reshape(b, 32, 2, 32, 2, 3).swapaxes(2, 3).reshape(b, 32, 32, 12)
        x = nn.silu(nn.GroupNorm(8)(nn.Conv(24, (3, 3), name="conv_in")(x)))
        for width in (48, 96, 128):
            x = nn.Conv(width, (3, 3), strides=2)(x)
            y = nn.Conv(width, (3, 3))(nn.silu(nn.GroupNorm(8)(x)))
            x = x + nn.Conv(width, (3, 3), kernel_init=nn.initializers.zeros)(nn.silu(nn.GroupNorm(8)(y)))
        # Flattened, not averaged: the view shows in where things are.
        features = nn.silu(nn.Dense(128)(nn.silu(nn.GroupNorm(8)(x)).reshape(b, -1)))
        return {head: nn.Dense(n, name=head)(features) for head, n in HEADS.items()}, features


class Verdict(NamedTuple):
    """What the judge reads in n images, on the host."""

    kind: np.ndarray  # int [n] index into KINDS, or NONE
    color: np.ndarray  # int [n]
    pattern: np.ndarray  # int [n]
    view: np.ndarray  # int [n]
    features: np.ndarray  # [n 128] for KID


# --- negatives and augmentation -------------------------------------------------------------------------------------------
def _blur(rgb: Float[Array, "h w 3"], sigma: Float[Array, ""]) -> Float[Array, "h w 3"]:
    """Gaussian blur, its kernel renormalised at the edges; the identity at sigma = 0."""
    distance = jnp.abs(jnp.arange(SIZE)[:, None] - jnp.arange(SIZE)[None])
    kernel = jnp.exp(-0.5 * (distance / jnp.maximum(sigma, 1e-2)) ** 2)
    kernel = kernel / kernel.sum(1, keepdims=True)
    return jnp.einsum("ij,jkc,lk->ilc", kernel, rgb, kernel)


def _splats(key: Key[Array, ""], n: int, small: float, large: float) -> Float[Array, "h w 3"]:
    """n soft ellipses of random colours on white or grey: what a 3-D run without a shape looks like."""
    k = jax.random.split(key, 6)
    y, x = jnp.meshgrid(jnp.arange(SIZE) / SIZE, jnp.arange(SIZE) / SIZE, indexing="ij")
    centre = 0.5 + 0.18 * jax.random.normal(k[0], (n, 2))
    scale = jax.random.uniform(k[1], (n, 2), minval=small, maxval=large)
    # All alike in colour or each its own, with equal odds.
    colors = jax.random.uniform(k[2], (n, 3)) * jax.random.bernoulli(k[3]) + jax.random.uniform(k[4], (1, 3))
    background = jnp.where(jax.random.bernoulli(k[5]), 1.0, 0.6) * jnp.ones((SIZE, SIZE, 3))

    def add(image, splat):
        centre, scale, color = splat
        alpha = jnp.exp(-0.5 * (((x - centre[0]) / scale[0]) ** 2 + ((y - centre[1]) / scale[1]) ** 2))[..., None]
        return image * (1 - alpha) + alpha * jnp.clip(color, 0, 1)[None, None], None

    return jax.lax.scan(add, background, (centre, scale, colors))[0]


NEGATIVES: dict[str, Callable] = {
    "blob": lambda key, rgb: _splats(key, 5, 0.05, 0.22),
    "floaters": lambda key, rgb: _splats(key, 80, 0.008, 0.04),
    # Blurred until no part is left: the blob painter's view of a real object.
    "smear": lambda key, rgb: _blur(rgb, jax.random.uniform(key, (), minval=4.5, maxval=9.0)),
    "burnt": lambda key, rgb: jnp.clip(0.5 + jax.random.uniform(key, (), minval=5.0, maxval=9.0) * (rgb - 0.5), 0, 1),
    "half-noised": lambda key, rgb: _half_noised(key, rgb),
}


def _half_noised(key, rgb):
    k_t, k_noise = jax.random.split(key)
    t = jax.random.randint(k_t, (1,), 400, 700)
    return jnp.clip(
        add_noise(STABLE_DIFFUSION, 2 * rgb[None] - 1, jax.random.normal(k_noise, (1, *rgb.shape)), t)[0] / 2 + 0.5, 0, 1
    )


def negatives(key: Key[Array, ""], rgb: Float[Array, "b h w 3"], which: Int[Array, "b"]) -> Float[Array, "b h w 3"]:
    """Images of no object, the `which`-th of NEGATIVES each, made from renders where the kind of negative needs one."""
    one = lambda args: jax.lax.switch(args[2], list(NEGATIVES.values()), args[0], args[1])  # noqa: E731
    return jax.lax.map(one, (jax.random.split(key, len(rgb)), rgb, which))


def _augment(key, rgb):
    """Small shifts, softness, brightness and noise: what differs between a render and a good reconstruction of it."""
    k = jax.random.split(key, 4)
    rgb = jnp.roll(rgb, jax.random.randint(k[0], (2,), -3, 4), (0, 1))
    rgb = _blur(rgb, jax.random.uniform(k[1], (), maxval=1.3))
    gain, sigma = jax.random.uniform(k[2], (2,))
    return jnp.clip(rgb * (0.9 + 0.2 * gain) + 0.03 * sigma * jax.random.normal(k[3], rgb.shape), 0, 1)


# --- training -----------------------------------------------------------------------------------------------------------
def _loss(params, batch, key):
    """Cross entropies; the last quarter of the batch becomes negatives, on which only the kind head is asked."""
    rgb, labels = batch
    b, cut = len(rgb), 3 * len(rgb) // 4
    k_aug, k_neg, k_which = jax.random.split(key, 3)
    rgb = rgb.astype(jnp.float32) / 255
    which = jax.random.randint(k_which, (b - cut,), 0, len(NEGATIVES))
    shown = jax.vmap(_augment)(jax.random.split(k_aug, cut), rgb[:cut])
    logits, _ = Judge().apply({"params": params}, jnp.concatenate([shown, negatives(k_neg, rgb[cut:], which)]))
    real = jnp.arange(b) < cut
    front = real & jnp.isin(labels[:, 0], jnp.array([KINDS.index(k) for k in COMPOSITE]))
    targets = labels.at[:, 0].set(jnp.where(real, labels[:, 0], NONE))
    asked = {"kind": jnp.ones(b, bool), "color": real, "pattern": real, "view": front}
    loss, right = 0.0, {}
    for i, head in enumerate(HEADS):
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits[head], targets[:, i])
        loss += jnp.sum(entropy * asked[head]) / asked[head].sum()
        right[head] = jnp.sum((logits[head].argmax(-1) == targets[:, i]) & asked[head]) / asked[head].sum()
    return loss, right


def train_judge(path: Path, minutes: float, *, resume: bool = False, seed: int = 0) -> None:
    """Trains the judge for `minutes` on endless renders of all captions and writes its averaged weights in float16.

    With `resume` it goes on from the weights at `path`, with a fresh optimizer and new renders.
    """
    if path.exists() and not resume:
        raise ValueError(f"{path} exists already; pass --resume to go on with it, or another --out")
    recipe, tx, seen = Recipe(_loss, peak=3e-3, batch=64, ema=0.995), optimizer("muon"), 0
    if resume:
        params = load_judge(path)
        with safe_open(path, framework="np") as file:
            seen = int(file.metadata()["samples"])
    else:
        params = jax.jit(Judge().init)(jax.random.key(seed), jnp.zeros((1, SIZE, SIZE, 3)))["params"]
    key = jax.random.fold_in(jax.random.key(seed + 1), seen)
    draw = lambda i: fresh_renders(key, i, SIZE, split="all")[:2]  # noqa: E731
    batches = pool_batches(draw, capacity=24_000, batch=recipe.batch, reuse=8.0, seed=seed)

    def save(fit):
        flat = {"/".join(k): np.asarray(v, np.float16) for k, v in flatten_dict(fit.ema).items()}
        with replacing(path) as partial:
            save_file(flat, partial, {"samples": str(fit.samples)})

    sit("judge", recipe, start(params, tx, seen), batches, 60 * minutes, seed, tx, save)


def load_judge(path: Path = SHIPPED) -> Any:
    """Float32 parameters of a trained judge."""
    if not path.is_file():
        raise FileNotFoundError(f"no judge at {path}; train one with: lods train-prior --part judge --out {path.parent}")
    return unflatten_dict({tuple(k.split("/")): jnp.asarray(v, jnp.float32) for k, v in load_file(path).items()})


_apply = jax.jit(lambda params, rgb: Judge().apply({"params": params}, rgb))


def judge(params: Any, rgb: Float[np.ndarray, "n 64 64 3"], chunk: int = 64) -> Verdict:
    """Reads n >= 1 images in [0, 1]."""
    padded = np.concatenate([rgb, np.zeros((-len(rgb) % chunk, SIZE, SIZE, 3), np.float32)])
    out = [_apply(params, jnp.asarray(padded[i : i + chunk])) for i in range(0, len(padded), chunk)]
    read = {head: np.concatenate([np.asarray(o[0][head]) for o in out])[: len(rgb)].argmax(-1) for head in HEADS}
    return Verdict(**read, features=np.concatenate([np.asarray(o[1]) for o in out])[: len(rgb)])


def accuracy_on_renders(params: Any, seed: int = 77) -> dict[str, float]:
    """Shares of right answers on fresh renders: kind and colour of all, view of composite kinds 3 degrees from a boundary; and
    per kind of negative the share that reads as none."""
    renders = fresh_renders(jax.random.key(seed), 0, SIZE, split="all")
    rgb = renders.rgb.astype(np.float32) / 255
    read, (kind, color, pattern, view) = judge(params, rgb), renders.labels.T
    front = np.isin(kind, [KINDS.index(k) for k in COMPOSITE])
    clear = front & (boundary_distance(renders.azimuth, renders.elevation) > 3)
    result = {
        "kind": np.mean(read.kind == kind),
        "color": np.mean(read.color == color),
        "pattern": np.mean(read.pattern == pattern),
        "view": np.mean((read.view == view)[clear]),
    }
    make = jax.jit(negatives)
    for i, name in enumerate(NEGATIVES):
        bad = make(jax.random.key(seed + 1), jnp.asarray(rgb[:256]), jnp.full(256, i))
        result[f"none: {name}"] = np.mean(judge(params, np.asarray(bad)).kind == NONE)
    return {name: float(x) for name, x in result.items()}
