"""The classifier of the tabletop world as a judge of pictures: how probable it finds what a prompt says."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lods_jax.core.cameras import VIEWS
from lods_jax.distillation.rewards import Judge
from lods_jax.tabletop.classifier import HEADS, SIZE, Classifier, load_classifier
from lods_jax.tabletop.dataset import parse_caption
from lods_jax.tabletop.objects import COLORS, KINDS, PATTERNS

NAMES = {"kind": KINDS, "color": tuple(COLORS), "pattern": PATTERNS, "view": VIEWS}


def classifier_judge() -> Judge:
    """The classifier as a judge of pictures.

    Returns:
        The judge. Its reward is the log-probability of kind, colour, pattern and view, as far as the prompt names them.
    """
    return Judge(load_classifier(), wanted, log_probability)


def wanted(texts: Sequence[str]) -> Float[np.ndarray, "k d"]:
    """Which outputs of the classifier captions ask for.

    Args:
        texts: captions.

    Returns:
        Ones and zeros over the classes of all heads in NAMES, side by side.

    Raises:
        ValueError: by `parse_caption`, for a text of another world.
    """
    rows = []
    for text in texts:
        caption = parse_caption(text)._asdict()
        rows.append(np.concatenate([np.eye(HEADS[head])[names.index(caption[head])] if caption[head] else np.zeros(HEADS[head])
                                    for head, names in NAMES.items()]))  # fmt: skip
    return np.stack(rows).astype(np.float32)


def log_probability(params: Any, rgb: Float[Array, "b h w 3"], asked: Float[Array, "b d"]) -> Float[Array, "b"]:
    """The log-probability of what is asked for.

    Args:
        params: of the classifier.
        rgb: in [0, 1], of any size.
        asked: from `wanted`.

    Returns:
        At most 0.
    """
    rgb = jax.image.resize(jnp.clip(rgb, 0, 1), (len(rgb), SIZE, SIZE, 3), "linear")
    logits, _ = Classifier().apply({"params": params}, rgb)
    return jnp.sum(asked * jnp.concatenate([jax.nn.log_softmax(logits[head]) for head in NAMES], -1), -1)
