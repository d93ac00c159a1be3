"""Laws of the means that a log gives: a window that was saved anywhere, as JSON, gives those of one that was not, to the bit."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lods_jax.runs.log_window import Window, read_window

numbers = st.floats(-1e30, 1e30) | st.just(math.nan)
steps = st.lists(st.fixed_dictionaries({"fit": numbers, "score_rms": numbers, "nonfinite_leaf": st.just(-1)}), max_size=8)
NEW = Window(logged=20, skipped=3, seconds=1.5)


def saved(window):
    return read_window(json.loads(json.dumps(window._asdict())), NEW)


@given(steps, st.integers(0, 8))
def test_a_window_that_was_saved_anywhere_gives_the_same_means(metrics, at):
    start = NEW._replace(logged=NEW.logged - min(at, len(metrics)))
    whole = start.after(metrics)
    assert saved(start.after(metrics[:at])).after(metrics[at:]) == whole
    assert "nonfinite_leaf" not in whole.means()
    for name, mean in whole.means().items():
        values = [step[name] for step in metrics if not math.isnan(step[name])]
        assert mean == pytest.approx(math.fsum(values) / len(values), rel=1e-9, abs=1e16)  # terms of 1e30 cancel


def test_a_name_without_a_value_is_left_out_and_does_not_count():
    window = Window().after([{"fit": math.nan, "turn": math.nan}, {"fit": 2.0, "turn": math.nan}, {"fit": 4.0, "turn": math.nan}])
    assert window.means() == {"fit": 3.0}


def test_dropped_updates_are_counted_in_a_row_across_lines():
    """Two lines of nothing but dropped updates, and one with an update that was not."""
    first = Window(logged=10).after([{}, {}]).closed(skipped=2)
    assert (first.logged, first.dead, first.steps) == (12, 2, 0)
    second = first.after([{}, {}, {}]).closed(skipped=5)
    assert second.dead == 5
    assert second.after([{}, {}]).closed(skipped=6).dead == 0


whole = NEW._replace(logged=18).after([{"fit": 1.0}, {"fit": 2.0}])._asdict()


@pytest.mark.parametrize(
    "change",
    [
        {"logged": 21}, {"logged": -1}, {"logged": "x"}, {"logged": True}, {"steps": 1}, {"sums": [1]}, {"sums": {"fit": None}},
        {"sums": {"fit": 1e308}}, {"counts": {"fit": 0}}, {"counts": {}}, {"counts": {"fit": 1.5}},
        {"seconds": "long"}, {"more": 1},
    ],
)  # fmt: skip
def test_what_is_no_window_is_a_new_one(change):
    assert read_window(whole, NEW) == Window(**whole)
    assert read_window(whole | change, NEW) == NEW
    for nothing in (None, [], "x", {}):
        assert read_window(nothing, NEW) == NEW
