"""Tabletop renders as the exact priors take them: images, features and words, cached on disk by what made them."""

import hashlib
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float

from lods_jax.core.files import replacing
from lods_jax.core.paths import cache_folder
from lods_jax.tabletop.dataset import VIEWS, WORDS
from lods_jax.tabletop.objects import COLORS, COMPOSITE, KINDS, PATTERNS
from lods_jax.tabletop.streams import fresh_renders

CACHE = cache_folder() / "renders"
FEATURES = (*KINDS, *COLORS, *PATTERNS, *VIEWS)


def captioned_renders(
    parts: int, size: int, seed: int = 0, split: str = "seen", cache: Path = CACHE
) -> tuple[Float[np.ndarray, "n h w 3"], Float[np.ndarray, "n k"], tuple[str, ...]]:
    """672 renders per part with their attributes, cached on disk.

    A view word is a feature of composite kinds only, as in captions; "plain" is a feature although captions leave it out. The
    cache is keyed by a hash of the arguments and of the source of the world, so that a changed world never uses old renders.

    Args:
        parts: number of parts.
        size: edge of the renders, pixels.
        seed: of the renders.
        split: of the captions: "seen", "unseen" or "all".
        cache: folder.

    Returns:
        Renders [n size size 3] in [0, 1], features [n k] of 0 and 1, and the k words.
    """
    source = b"".join((Path(__file__).parent / name).read_bytes() for name in ("objects.py", "dataset.py", "streams.py"))
    digest = hashlib.sha256(source + repr((size, seed, split, WORDS)).encode()).hexdigest()[:16]
    columns = []
    for part in range(parts):
        file = cache / f"{digest}-{part:04d}.npz"
        if not file.exists():
            renders = fresh_renders(jax.random.key(seed), part, size, split=split)
            with replacing(file) as partial:
                np.savez(partial, rgb=renders.rgb, labels=renders.labels)
        with np.load(file) as stored:
            columns.append((stored["rgb"], stored["labels"]))
    rgb, labels = (np.concatenate(column) for column in zip(*columns, strict=True))
    one_hot = [labels[:, i, None] == np.arange(len(names)) for i, names in enumerate((KINDS, COLORS, PATTERNS, VIEWS))]
    one_hot[3] &= np.isin(labels[:, :1], [KINDS.index(k) for k in COMPOSITE])
    return rgb.astype(np.float32) / 255, np.concatenate(one_hot, 1).astype(np.float32), FEATURES
