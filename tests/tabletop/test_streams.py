"""The pool hands out what was drawn, as often as it was told to, and forgets the oldest."""

from itertools import islice

import jax
import numpy as np
import pytest

from lods_jax.tabletop import streams
from lods_jax.tabletop.dataset import Renders
from lods_jax.tabletop.streams import fresh_renders, pool_batches

ROWS = 10


class Source:
    """Parts of ROWS numbered rows, in two columns that differ by sign; remembers how many were drawn."""

    drawn = 0

    def __call__(self, number):
        assert number == self.drawn, "parts come in order"
        self.drawn += 1
        rows = ROWS * number + np.arange(ROWS)
        return rows, -rows


@pytest.mark.parametrize(("reuse", "batch"), [(1.0, 4), (8.0, 4), (2.5, 32), (0.5, 4)])
def test_every_row_that_is_drawn_is_handed_out_reuse_times_on_average(reuse, batch):
    """At any moment: never more than that, and at most the start and the newest part less."""
    source = Source()
    for i, _ in enumerate(pool_batches(source, capacity=80, batch=batch, reuse=reuse, seed=0)):
        owed = source.drawn * ROWS * reuse - (i + 1) * batch
        assert -batch <= owed <= max(80 / 4, ROWS) * reuse + ROWS * reuse
        if source.drawn > 40:
            break


@pytest.mark.parametrize("capacity", [10, 35, 80])
def test_rows_come_from_the_newest_parts_that_fit_the_capacity(capacity):
    source, ages = Source(), set()
    for rows, _ in islice(pool_batches(source, capacity=capacity, batch=64, reuse=8.0, seed=0), 300):
        ages |= set(source.drawn - 1 - rows // ROWS)
    assert ages == set(range(capacity // ROWS))


def test_the_columns_of_a_row_stay_together_and_all_rows_appear():
    batches = list(islice(pool_batches(Source(), capacity=40, batch=16, reuse=8.0, seed=0), 100))
    rows, negated = (np.concatenate(column) for column in zip(*batches, strict=True))
    np.testing.assert_array_equal(rows, -negated)
    assert set(range(50)) <= set(rows)


def test_it_starts_with_a_quarter_of_the_capacity():
    source = Source()
    next(pool_batches(source, capacity=80, batch=4, reuse=100.0, seed=0))
    assert source.drawn * ROWS == 80 / 4


def test_the_seed_decides_which_rows_come_when():
    def run(seed):
        stream = pool_batches(Source(), capacity=40, batch=16, reuse=2.0, seed=seed)
        return np.concatenate([rows for rows, _ in islice(stream, 9)])

    np.testing.assert_array_equal(run(0), run(0))
    assert np.any(run(0) != run(1))


@pytest.mark.parametrize("reuse", [0.0, -1.0])
def test_a_stream_that_would_never_hand_out_a_row_is_refused(reuse):
    with pytest.raises(ValueError, match=f"reuse must be above 0, got {reuse}"):
        next(pool_batches(Source(), capacity=40, batch=4, reuse=reuse, seed=0))


@pytest.fixture
def no_renderer(monkeypatch):
    """Instead of images, the key and the number of renders that were asked for."""

    def fake(key, per_kind, size, **_):
        nothing = np.zeros(0)
        return Renders(np.asarray(jax.random.key_data(key)), np.array(list(per_kind.values())), nothing, nothing, nothing)

    monkeypatch.setattr(streams, "sample_renders", fake)


@pytest.mark.usefixtures("no_renderer")
def test_every_part_of_every_stream_has_a_key_of_its_own():
    keys = {tuple(fresh_renders(jax.random.key(seed), part, 8).rgb) for seed in range(3) for part in range(4)}
    assert len(keys) == 3 * 4


@pytest.mark.usefixtures("no_renderer")
def test_a_part_has_28_renders_a_copy():
    assert fresh_renders(jax.random.key(0), 0, 8, copies=5).labels.sum() == 28 * 5
