"""Measures of a sequence, against tables worked out by hand."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from atlas_dist.core import metrics

# After each of three tasks (chance 25, 50, 10 %).
R = [[80.0], [70.0, 90.0], [60.0, 85.0, 40.0]]


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(metrics).failed == 0


def test_against_a_table_worked_out_by_hand() -> None:
    assert metrics.average_accuracy(R) == pytest.approx((60 + 85 + 40) / 3)
    assert metrics.backward_transfer(R) == pytest.approx(((60 - 80) + (85 - 90)) / 2)
    assert metrics.forward_transfer(R, [80.0, 88.0, 35.0]) == pytest.approx(((90 - 88) + (40 - 35)) / 2)
    assert metrics.forgetting(80.0, 60.0, 25.0) == pytest.approx(100 * 20 / 55)
    assert metrics.relative_gain(40.0, 35.0, 10.0) == pytest.approx(100 * 5 / 25)


def test_a_single_task_transfers_nothing() -> None:
    assert metrics.backward_transfer([[50.0]]) == metrics.forward_transfer([[50.0]], [50.0]) == 0.0


def test_what_never_rose_above_chance_can_not_be_forgotten() -> None:
    assert metrics.forgetting(25.0, 10.0, 25.0) == 0.0
    assert metrics.relative_gain(40.0, 10.0, 10.0) == 0.0


def test_spread_over_seeds_by_hand() -> None:
    found = metrics.spread([70.0, 74.0, 78.0, 78.0])
    assert found.mean == 75.0
    assert found.deviation == pytest.approx((44 / 3) ** 0.5)
    assert str(found) == "75.0 ± 3.8"
    assert metrics.spread([70.0]) == metrics.Spread(70.0, 0.0, 1)


def test_order_sensitivity_by_hand() -> None:
    orders = [{"a": 70.0, "b": 40.0}, {"a": 76.0, "b": 40.0}, {"a": 70.0, "b": 46.0}]
    assert metrics.order_sensitivity(orders) == pytest.approx(8**0.5)
    assert metrics.order_sensitivity(orders[:1]) == 0.0


@given(st.lists(st.tuples(st.integers(-3, 3), st.floats(-1e6, 1e6)), min_size=3, max_size=30))
def test_rank_correlation_is_that_of_scipy(pairs: list[tuple[int, float]]) -> None:
    first, second = [float(a) for a, _ in pairs], [b for _, b in pairs]
    found = metrics.rank_correlation(first, second)
    if len(set(first)) < 2 or len(set(second)) < 2:
        assert found is None
    else:
        assert found == pytest.approx(spearmanr(first, second).statistic, abs=1e-9)


def test_two_pairs_say_nothing() -> None:
    assert metrics.rank_correlation([1.0, 2.0], [1.0, 2.0]) is None
