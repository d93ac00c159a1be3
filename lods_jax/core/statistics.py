"""Summary statistics of some runs: the interquartile mean with a bootstrap interval (Agarwal et al. 2021)."""

import numpy as np
from jaxtyping import Float


def interquartile_mean(x: Float[np.ndarray, "n"]) -> float:
    """Mean of the middle half of the numbers; the two outermost count by the fraction that makes it exactly half.

    Args:
        x: [n].

    Returns:
        The mean.

    Examples:
        >>> interquartile_mean(np.array([0.0, 1.0, 2.0, 100.0]))
        1.5
    """
    return float(interquartile_means(np.asarray(x)))


def interquartile_means(x: Float[np.ndarray, "*b n"]) -> Float[np.ndarray, "*b"]:
    """`interquartile_mean` of each row of many.

    Args:
        x: [*b n].

    Returns:
        [*b].
    """
    x = np.sort(x.astype(np.float64), axis=-1)
    edges = np.linspace(0, 1, x.shape[-1] + 1)
    weight = np.clip(np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25), 0, None)
    return np.asarray((x * weight).sum(-1) / weight.sum())


def bootstrap(x: Float[np.ndarray, "n"], level: float = 0.95, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the interquartile mean (Agarwal et al. 2021).

    Args:
        x: [n].
        level: of the interval.
        draws: number of resamples.
        seed: of the resamples.

    Returns:
        Lower and upper end.
    """
    rng = np.random.default_rng(seed)
    means = interquartile_means(np.stack([rng.choice(x, len(x)) for _ in range(draws)]))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
