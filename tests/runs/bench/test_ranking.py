"""What rows show: differences run by run, the order of methods and how firmly it holds."""

import numpy as np
import pytest

from lods_jax.core.statistics import interquartile_mean
from lods_jax.runs.bench.ranking import agreement, differences, means, order_of, seconds_apart


def rows(seed=0, n=12, **shifts):
    """Runs whose figure is that of their prompt, which differs far more than methods do, and a shift of the method."""
    rng = np.random.default_rng(seed)
    base = rng.uniform(0, 100, n)
    whole = {"scene": "", "prior_name": "", "prompt_set": "", "seed": 1}
    return [
        whole | {"method": method, "prompt": str(i), "kid": x + shift, "view": -x - shift}
        for i, x in enumerate(base)
        for method, shift in shifts.items()
    ]


def test_the_difference_of_a_method_to_itself_is_nothing_and_to_others_their_shift():
    held = rows(a=0.0, b=0.5)
    assert differences(held, ["a", "b"], "kid", "a") == ["0 (0 to 0)", "0.5 (0.5 to 0.5)"]


def test_a_run_that_the_baseline_lacks_is_left_out_of_differences_and_not_of_means():
    held = [*rows(a=0.0, b=0.5), {"method": "b", "prompt": "alone", "seed": 1, "kid": 1e6}]
    assert differences(held, ["b"], "kid", "a") == ["0.5 (0.5 to 0.5)"]
    assert means(held, ["b"], "kid") != means(held[:-1], ["b"], "kid")


def test_what_is_hard_for_all_methods_does_not_shake_their_order():
    """The methods differ by a hundredth of what prompts differ by; paired draws see it every time."""
    order = order_of(rows(a=0.5, b=0.0, c=1.0), ["a", "b", "c"], "kid")
    assert order.methods == ["b", "a", "c"]
    assert order.held == 1
    np.testing.assert_array_equal(order.better, np.triu(np.ones((3, 3)), 1))


def test_a_figure_that_is_better_when_higher_orders_the_other_way():
    held = rows(a=0.5, b=0.0)
    assert order_of(held, ["a", "b"], "view").methods == order_of(held, ["a", "b"], "kid").methods


def test_methods_of_one_quality_are_ordered_by_chance():
    rng = np.random.default_rng(1)
    held = [row | {"kid": rng.normal()} for row in rows(n=40, a=0.0, b=0.0)]
    order = order_of(held, ["a", "b"], "kid")
    assert 0.5 <= order.held < 0.99
    assert order.better[0, 1] + order.better[1, 0] == pytest.approx(1)
    values = [[row["kid"] for row in held if row["method"] == name] for name in order.methods]
    assert order.loss == pytest.approx([interquartile_mean(np.array(x)) for x in values])


def test_only_runs_that_all_methods_have_are_compared():
    held = [row for row in rows(a=0.0, b=1.0) if row["method"] == "a" or row["prompt"] in "0123"]
    assert order_of(held, ["a", "b"], "kid").n == 4
    assert order_of(held, ["a"], "kid") is None
    assert order_of(held, ["a", "b"], "no_figure") is None


def test_tau_is_one_for_an_order_and_itself_minus_one_for_its_reverse_and_a_third_for_one_swap():
    of = lambda **shifts: order_of(rows(**shifts), [*shifts], "kid", draws=1)  # noqa: E731
    order = of(a=0.0, b=1.0, c=2.0)
    assert agreement(order, order) == pytest.approx(1)
    assert agreement(order, of(a=2.0, b=1.0, c=0.0)) == pytest.approx(-1)
    assert agreement(order, of(a=1.0, b=0.0, c=2.0)) == pytest.approx(1 / 3)  # one of three pairs is the other way round
    assert agreement(order, of(x=0.0, y=1.0)) is None


def test_seconds_of_two_machines_or_of_other_numbers_of_processes_are_never_in_one_mean():
    held = rows(n=2, a=0.0, b=0.0)
    alone, shared, cpu = ({"devices": ["gpu: A"]}, {"devices": ["gpu: A"], "shard": "2/4"}, {"devices": ["cpu: cpu"] * 2})
    where = [alone, alone, shared, cpu]
    apart = seconds_apart([row | {"seconds": i} | where[i] for i, row in enumerate(held)])
    assert means(apart, ["a", "b"], "seconds") == ["-", "-"]
    assert means(apart, ["a", "b"], "seconds on gpu: A") == ["0 (0 to 0)", "1 (1 to 1)"]
    assert means(apart, ["a", "b"], "seconds on gpu: A, 4 processes") == ["2 (2 to 2)", "-"]
    assert means(apart, ["a", "b"], "seconds on cpu: cpu") == ["-", "3 (3 to 3)"]
    assert differences(apart, ["b"], "seconds on cpu: cpu", "a") == ["-"]


def test_seconds_of_one_machine_stay_what_they_are():
    held = [row | {"seconds": 1.0, "devices": ["gpu: A"], "shard": f"{i + 1}/2"} for i, row in enumerate(rows(n=1, a=0.0, b=0.0))]
    assert seconds_apart(held) == held
