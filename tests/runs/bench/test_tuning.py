"""Equal tuning: as many trials for every method, and a grid that grows until no kept value is at its edge."""

import math

import pytest

from lods_jax.runs.bench import tuning

GRIDS = {"a": {"x": ("1", "3", "9")}, "b": {"x": ("1", "3", "9")}}


def bowl(**best):
    """Losses that are lowest where x is best, by ratio."""
    return lambda name, values: sum((math.log(float(x)) - math.log(best[name])) ** 2 for x in values.values())


def tune(grids, loss, most, allowed=lambda name, values: True):
    return tuning.tune(grids, allowed, lambda trials: [loss(*trial) for trial in trials], most)


def test_a_grid_grows_until_the_best_value_is_not_at_its_edge_and_every_method_gets_as_many_trials():
    tuned = tune(GRIDS, bowl(a=3.0, b=300.0), most=20)
    assert {len(end.trials) for end in tuned.values()} == {7}  # 27, 81, 243 and 729, which is worse
    assert tuned["b"].edges == []
    assert tuned["b"].values == {"x": "243"}
    assert [trial.values["x"] for trial in tuned["b"].trials][3:7] == ["27", "81", "243", "729"]


def test_a_method_that_is_not_at_an_edge_looks_beside_its_best_value_in_the_meantime():
    tuned = tune(GRIDS, bowl(a=2.0, b=30.0), most=20)
    assert tuned["a"].trials[3].values == {"x": "1.732"}  # between 1 and 3, by ratio
    assert tuned["a"].trials[4].values == {"x": "2.279"}  # between 1.732, which was better than 1, and 3
    assert tuned["a"].values == {"x": "2.279"}


def test_no_trial_is_made_where_nothing_is_at_an_edge():
    tuned = tune(GRIDS, bowl(a=3.0, b=3.0), most=20)
    assert {len(end.trials) for end in tuned.values()} == {3}


def test_an_edge_that_is_left_when_the_trials_are_used_up_is_told():
    tuned = tune(GRIDS, bowl(a=3.0, b=1e9), most=5)
    assert {len(end.trials) for end in tuned.values()} == {5}
    assert tuned["b"].edges == ["x"]


def test_the_end_of_what_a_method_can_take_is_no_edge():
    loss = bowl(a=0.01, b=3.0)
    tuned = tune(GRIDS, loss, most=20, allowed=lambda name, values: float(values["x"]) >= 1)
    assert tuned["a"].values["x"] == "1"
    assert tuned["a"].edges == []
    assert len(tuned["a"].trials) == len(tuned["b"].trials)


def test_two_keys_grow_each_on_its_own():
    tuned = tune({"a": {"x": ("1", "3"), "y": ("1", "3")}}, bowl(a=5.0), most=30)
    assert tuned["a"].edges == []
    for x in tuned["a"].values.values():
        assert 2 < float(x) < 15


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_failed_trial_is_never_kept(name):
    loss = bowl(a=3.0, b=3.0)
    tuned = tune(GRIDS, lambda name, values: math.inf if values["x"] == "3" else loss(name, values), most=6)
    assert tuned[name].values["x"] != "3"


def test_a_value_beside_the_best_that_a_method_cannot_take_is_a_trial_that_is_never_kept():
    whole = lambda name, values: float(values["x"]).is_integer()  # noqa: E731
    tuned = tune(GRIDS, bowl(a=3.0, b=20.0), most=6, allowed=whole)
    assert math.inf in [trial.loss for trial in tuned["a"].trials]
    assert tuned["a"].values == {"x": "3"}
    assert len(tuned["a"].trials) == len(tuned["b"].trials)
