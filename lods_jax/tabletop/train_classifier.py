"""Trains the classifier of the tabletop world on endless renders: some as they are, some damaged, some of defective objects.

A batch holds true renders, slightly augmented; renders under each of `damage.DAMAGES` at a random strength; objects with
something wrong (`objects.DEFECTS`), whose quality is told by what they should be; and images of nothing. Quality is asked of all
of them, kind where an object can still be told or where nothing is left, colour, pattern and view of true renders alone.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float, Int, Key
from safetensors import safe_open
from safetensors.numpy import save_file

from lods_jax.core.files import replacing
from lods_jax.tabletop.classifier import ERROR_SCALE, HEADS, NONE, SIZE, Classifier, classify, load_classifier
from lods_jax.tabletop.damage import DAMAGES, NOTHING, blur, damage, error, nothing
from lods_jax.tabletop.dataset import boundary_distance, sample_defects
from lods_jax.tabletop.fitting import Recipe, optimizer, start, train_for
from lods_jax.tabletop.objects import COMPOSITE, DEFECTS, KINDS
from lods_jax.tabletop.streams import ahead, fresh_renders, pool_batches

# Damages that in the end leave no object; under the others (a tint, say) it can still be told.
WRECKING = ("melted", "holes", "smeared", "noised")
FRONTED = jnp.array([KINDS.index(k) for k in COMPOSITE])


def quality_of(e: Array) -> Array:
    """The quality of a colour error e (`damage.error`): 1 for none, 1/e at ERROR_SCALE."""
    return jnp.exp(-e / ERROR_SCALE)


def augment(key: Key[Array, ""], rgb: Float[Array, "h w 3"]) -> Float[Array, "h w 3"]:
    """Small shifts, softness, brightness and noise, as between a render and a good reconstruction of it.

    Args:
        key: consumed.
        rgb: [h w 3].

    Returns:
        [h w 3].
    """
    k = jax.random.split(key, 4)
    rgb = jnp.roll(rgb, jax.random.randint(k[0], (2,), -6, 7), (0, 1))
    rgb = blur(rgb, jax.random.uniform(k[1], (), maxval=1.3 / SIZE))
    gain, sigma = jax.random.uniform(k[2], (2,))
    return jnp.clip(rgb * (0.93 + 0.14 * gain) + 0.02 * sigma * jax.random.normal(k[3], rgb.shape), 0, 1)


def examples(
    key: Key[Array, ""], rgb: Array, labels: Int[Array, "b 4"], bad: Array, true: Array, bad_labels: Int[Array, "d 4"]
) -> tuple[Array, dict[str, Array], dict[str, Array]]:
    """A training batch from byte images.

    Args:
        key: of strengths, damages and augmentation.
        rgb: true renders [b h w 3], of which the last len(DAMAGES) groups are damaged.
        labels: of them [b 4].
        bad: defective objects [d h w 3]; the last len(NOTHING) groups are replaced by images of nothing.
        true: what the defective objects should look like [d h w 3].
        bad_labels: of them [d 4].

    Returns:
        The images, the target of each head, and where each head is asked.
    """
    rgb, bad, true = (x.astype(jnp.float32) / 255 for x in (rgb, bad, true))
    b, group = len(rgb), max(1, len(rgb) // 32)
    k_damage, k_strength, k_nothing, k_augment = jax.random.split(key, 4)
    clean = b - group * len(DAMAGES)
    quality, wrecked = [jnp.ones(clean)], [jnp.zeros(clean, bool)]
    images = [rgb[:clean]]
    for i, name in enumerate(DAMAGES):
        whole = rgb[clean + i * group :][:group]
        u = jax.random.uniform(jax.random.fold_in(k_strength, i), (group,))
        images.append(damage(name, jax.random.split(jax.random.fold_in(k_damage, i), group), whole, u))
        quality.append(quality_of(error(images[-1], whole)))
        wrecked.append(jnp.full(group, name in WRECKING))
    empty = [
        jax.vmap(lambda k, name=name: nothing(name, k, SIZE))(jax.random.split(jax.random.fold_in(k_nothing, i), group))
        for i, name in enumerate(NOTHING)
    ]
    kept = len(bad) - group * len(NOTHING)
    images += [bad[:kept], *empty]
    quality += [quality_of(error(bad[:kept], true[:kept])), jnp.zeros(group * len(NOTHING))]
    wrecked += [jnp.zeros(kept, bool), jnp.ones(group * len(NOTHING), bool)]
    images, quality, wrecked = (jnp.concatenate(x) for x in (images, quality, wrecked))
    images = jax.vmap(augment)(jax.random.split(k_augment, len(images)), images)
    labels = jnp.concatenate([labels, bad_labels])
    real, none = jnp.arange(len(labels)) < clean, wrecked & (quality < 0.1)
    targets = {"kind": jnp.where(none, NONE, labels[:, 0]), "color": labels[:, 1], "pattern": labels[:, 2], "view": labels[:, 3]}
    asked = {"kind": none | (quality > 0.5), "color": real, "pattern": real, "view": real & jnp.isin(labels[:, 0], FRONTED)}
    return images, targets | {"quality": quality}, asked | {"quality": jnp.ones(len(labels), bool)}


def loss(params, batch, key):
    """Cross entropies of the heads where they are asked; of quality against its target as a probability.

    Args:
        params: of the classifier.
        batch: from `batches`.
        key: see `examples`.

    Returns:
        The loss, and {head: share of right answers}.
    """
    images, targets, asked = examples(key, *batch)
    logits, _ = Classifier().apply({"params": params}, images)
    total, metrics = 0.0, {}
    for head in HEADS:
        on = asked[head].astype(jnp.float32)
        if head == "quality":
            entropy = optax.sigmoid_binary_cross_entropy(logits[head][:, 0], targets[head])
            right = 1 - jnp.abs(jax.nn.sigmoid(logits[head][:, 0]) - targets[head])
        else:
            entropy = optax.softmax_cross_entropy_with_integer_labels(logits[head], targets[head])
            right = (logits[head].argmax(-1) == targets[head]).astype(jnp.float32)
        total += jnp.sum(entropy * on) / jnp.sum(on) * (2.0 if head == "quality" else 1.0)
        metrics[head] = jnp.sum(right * on) / jnp.sum(on)
    return total, metrics


def batches(seed: int, recipe: Recipe) -> Iterator[tuple[np.ndarray, ...]]:
    """Yields renders with their labels, and three eighths as many defective objects with what they should be and their labels.

    Args:
        seed: of the stream.
        recipe: batch and reuse.

    Yields:
        Arrays for `examples`.
    """
    key, each = jax.random.key(seed), 16

    def defects(i: int) -> tuple[np.ndarray, ...]:
        bad, true = sample_defects(jax.random.fold_in(jax.random.fold_in(key, 7), i), each, SIZE, split="all")
        return bad, true.rgb, true.labels

    renders = ahead(lambda i: fresh_renders(key, i, SIZE, split="all")[:2])
    whole = pool_batches(renders, capacity=8000, batch=recipe.batch, reuse=recipe.reuse, seed=seed)
    options = {"capacity": 20 * each * len(DEFECTS), "batch": 3 * recipe.batch // 8, "reuse": 2 * recipe.reuse, "seed": seed}
    for (rgb, labels), bad in zip(whole, pool_batches(ahead(defects), **options), strict=False):
        yield rgb, labels, *bad


def train_classifier(path: Path, minutes: float, *, resume: bool = False, batch: int = 64, seed: int = 0) -> None:
    """Trains the classifier on endless renders of all captions, and writes its averaged weights in float16.

    Args:
        path: file of the weights.
        minutes: length of this sitting, compilation included.
        resume: whether to go on from the weights at `path`, with a fresh optimizer and new renders.
        batch: true and damaged renders per step, a multiple of 32.
        seed: of parameters and renders.

    Raises:
        ValueError: `path` exists and `resume` is not given.
    """
    if path.exists() and not resume:
        raise ValueError(f"{path} exists already; pass --resume to go on with it, or another --out")
    recipe, tx, seen = Recipe(loss, peak=3e-3, batch=batch, ema=0.995, reuse=8.0 * max(1.0, batch / 64)), optimizer("muon"), 0
    if resume:
        params = load_classifier(path)
        with safe_open(path, framework="np") as file:
            seen = int(file.metadata()["samples"])
    else:
        params = jax.jit(Classifier().init)(jax.random.key(seed), jnp.zeros((1, SIZE, SIZE, 3)))["params"]

    def save(fit):
        write_classifier(path, fit.ema, int(fit.samples))

    train_for("classifier", recipe, start(params, tx, seen), batches(seed + seen, recipe), 60 * minutes, seed, tx, save)


def write_classifier(path: Path, params: Any, samples: int) -> None:
    """Writes parameters in float16.

    Args:
        path: of the file.
        params: of the classifier.
        samples: number of renders they were trained on.
    """
    flat = {"/".join(k): np.asarray(v, np.float16) for k, v in flatten_dict(params).items()}
    with replacing(path) as partial:
        save_file(flat, partial, {"samples": str(samples)})


# --- what it is worth ----------------------------------------------------------------------------------------------------
def accuracy_on_renders(params: Any, seed: int = 77) -> dict[str, float]:
    """The classifier's own figures on fresh renders.

    Args:
        params: of the classifier.
        seed: of the renders.

    Returns:
        Shares of right answers: kind, color and pattern of all, view of composite kinds 3 degrees from a boundary; `none: X`, the
            share of images of nothing, and of wrecks at full strength, that read as none; `ranking: X`, see `quality_ranking`.
    """
    renders = fresh_renders(jax.random.key(seed), 0, SIZE, split="all")
    rgb = renders.rgb.astype(np.float32) / 255
    read, (kind, color, pattern, view) = classify(params, rgb), renders.labels.T
    clear = np.isin(kind, FRONTED) & (boundary_distance(renders.azimuth, renders.elevation) > 3)
    figures = {
        "kind": np.mean(read.kind == kind),
        "color": np.mean(read.color == color),
        "pattern": np.mean(read.pattern == pattern),
        "view": np.mean((read.view == view)[clear]),
        "quality of true renders": np.mean(read.quality),
    }
    keys = jax.random.split(jax.random.key(seed + 1), 128)
    for name in NOTHING:
        figures[f"none: {name}"] = np.mean(classify(params, np.asarray(_nothing(name, keys))).kind == NONE)
    for name in WRECKING:
        wrecks = np.asarray(_damage(name, keys, rgb[:128], jnp.ones(128)))
        figures[f"none: {name}"] = np.mean(classify(params, wrecks).kind == NONE)
    figures |= {f"ranking: {name}": x for name, x in quality_ranking(params, rgb[:256], seed).items()}
    return {name: float(x) for name, x in figures.items()}


_damage = jax.jit(damage, static_argnums=0)
_nothing = jax.jit(lambda name, keys: jax.vmap(lambda key: nothing(name, key, SIZE))(keys), static_argnums=0)


def quality_ranking(params: Any, rgb: Float[np.ndarray, "n h w 3"], seed: int) -> dict[str, float]:
    """Share of pairs whose more damaged image has the lower quality, by damage; `defects` against true objects.

    A pair is one render under one draw of a damage at two strengths at least 0.2 apart; of defects, those that show.

    Args:
        params: of the classifier.
        rgb: true renders [n h w 3] in [0, 1].
        seed: of the strengths.

    Returns:
        {damage: share}, and "all", their mean.
    """
    keys, rng = jax.random.split(jax.random.key(seed + 2), len(rgb)), np.random.default_rng(seed)
    low = rng.uniform(0, 0.8, len(rgb)).astype(np.float32)
    high = (low + rng.uniform(0.2, 1 - low)).astype(np.float32)
    shares = {}
    for name in DAMAGES:
        less, more = (classify(params, np.asarray(_damage(name, keys, rgb, u))).quality for u in (low, high))
        shares[name] = np.mean(less > more)
    bad, true = sample_defects(jax.random.key(seed + 3), 24, SIZE, split="all")
    bad, good = (x.astype(np.float32) / 255 for x in (bad, true.rgb))
    shows = np.asarray(error(bad, good)) > 0.02
    shares["defects"] = np.mean((classify(params, good).quality > classify(params, bad).quality)[shows])
    return shares | {"all": np.mean(list(shares.values()))}
