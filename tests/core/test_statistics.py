"""How tables sum up runs: means that outliers do not move, and intervals that cover as often as they say."""

import numpy as np
import pytest

from lods_jax.core.statistics import bootstrap, interquartile_mean


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize(
    ("x", "mean"),
    [
        ([7.0], 7),
        ([1.0, 2.0], 1.5),
        ([100.0, 2.0, 0.0, 1.0], 1.5),  # the middle two
        ([100.0, 0.0, 3.0, 0.0, 1.0], 1.3),  # 0.75 of the second, the third, 0.75 of the fourth: 3.25 / 2.5
    ],
)
def test_the_interquartile_mean_is_the_mean_of_the_middle_half(x, mean):
    assert interquartile_mean(np.array(x)) == pytest.approx(mean)


def test_a_bootstrap_interval_covers_the_truth_as_often_as_it_says(rng):
    """80 % of 100 intervals within three standard errors; of 30 values a percentile interval is a little narrow."""
    intervals = [bootstrap(rng.normal(size=30), level=0.8, draws=100) for _ in range(100)]
    assert 0.65 < np.mean([low < 0 < high for low, high in intervals]) < 0.92


def test_a_bootstrap_interval_of_equal_values_is_a_point():
    assert bootstrap(np.full(5, 2.0), draws=10) == pytest.approx((2, 2))
