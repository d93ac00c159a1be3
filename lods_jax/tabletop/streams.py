"""Endless training batches from a pool of fresh renders."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from jaxtyping import Array, Key

from lods_jax.tabletop.dataset import COMPOSITE, KINDS, Renders, sample_renders

# Composite kinds decide the quality of the world; a ball is learned from a third of the renders.
PER_KIND = {kind: 3 if kind in COMPOSITE else 1 for kind in KINDS}


def fresh_renders(key: Key[Array, ""], part: int, size: int, copies: int = 24, split: str = "seen", views: int = 1) -> Renders:
    """One part of an endless stream: 28 * copies renders of all kinds, more of those with a front.

    Each value of `copies` compiles twelve renderers anew, so most callers use the default and as many parts as they need.

    Args:
        key: of the stream.
        part: its number.
        size: edge of the renders, pixels.
        copies: of each object.
        split: of the captions.
        views: images in a row that are views of one object, for a prior of several views.

    Returns:
        The renders.
    """
    per_kind = {kind: n * copies for kind, n in PER_KIND.items()}
    return sample_renders(jax.random.fold_in(key, part), per_kind, size, split=split, views=views, joint=True)


def ahead(draw: Callable[[int], tuple[np.ndarray, ...]]) -> Callable[[int], tuple[np.ndarray, ...]]:
    """A function for parts that are asked for in order: `draw`, with the next part computed in a thread.

    Args:
        draw: number -> part.

    Returns:
        The same with a part in advance.
    """
    thread, waiting = ThreadPoolExecutor(1), {}

    def get(number: int) -> tuple[np.ndarray, ...]:
        now = waiting.pop(number, None) or thread.submit(draw, number)
        waiting[number + 1] = thread.submit(draw, number + 1)
        return now.result()

    return get


def pool_batches(
    draw: Callable[[int], tuple[np.ndarray, ...]], *, capacity: int, batch: int, reuse: float, seed: int
) -> Iterator[tuple[np.ndarray, ...]]:
    """Yields random batches from a ring buffer that `draw(0), draw(1), ...` keep fresh.

    A new part replaces the oldest whenever the rows of the last one have been used `reuse` times on average, so that the cost of
    rendering is shared and no row is seen often. Starts with a quarter of the capacity.

    Args:
        draw: number -> arrays with the same number of rows.
        capacity: rows at most.
        batch: rows per batch.
        reuse: uses of a row, on average.
        seed: of the choice.

    Yields:
        Arrays with `batch` rows.

    Raises:
        ValueError: `reuse` is not positive.
    """
    if not reuse > 0:
        raise ValueError(f"reuse must be above 0, got {reuse}")
    rng = np.random.default_rng(seed)
    parts, number, due = [], 0, 0.0
    while True:
        while due <= 0 or sum(len(p[0]) for p in parts) < capacity / 4:
            parts.append(draw(number))
            number, due = number + 1, due + reuse * len(parts[-1][0])
        rows = len(parts[0][0])
        parts = parts[-max(1, capacity // rows) :]
        due -= batch
        # All parts have as many rows, so a row is a (part, place) pair and the pool is never copied.
        where, place = rng.integers(len(parts), size=batch), rng.integers(rows, size=batch)
        yield tuple(np.stack([parts[i][c][j] for i, j in zip(where, place, strict=True)]) for c in range(len(parts[0])))
