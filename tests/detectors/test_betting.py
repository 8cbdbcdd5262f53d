"""Betting: its wealth against a slow reference, its error rate, and what it can establish."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riprap.detectors import BehaviorHistory, BettingTest
from riprap.detectors._betting_test import STAKES, log_wealth
from riprap.types import Level


def history_of(*margins, n_behaviors=1):
    history = BehaviorHistory("b", 0.9, n_behaviors=n_behaviors)
    for step, values in enumerate(margins):
        history.add_margins(step, np.asarray(values, dtype=float))
    return history


def slow_wealth(declines, tolerated, clip):
    """The definition, number by number: a mean over stakes of products over probes."""
    total = 0.0
    for stake in STAKES:
        wealth = 1.0
        for decline in declines:
            clipped = min(max(decline, tolerated - clip), tolerated + clip)
            u = (clipped - (tolerated - clip)) / (2 * clip)
            wealth *= 1 + 2 * stake * (u - 0.5)
        total += wealth
    return total / len(STAKES)


@given(
    st.lists(st.floats(-2, 2), min_size=1, max_size=30),
    st.floats(0, 0.5),
    st.floats(0.05, 1),
)
@settings(max_examples=60, deadline=None)
def test_wealth_is_what_its_definition_says(declines, tolerated, clip):
    fast = log_wealth(np.array([declines]), tolerated, clip)[0]
    assert fast == pytest.approx(math.log(slow_wealth(declines, tolerated, clip)), abs=1e-9)


def test_expected_wealth_is_at_most_one_on_the_edge_of_the_null():
    rng = np.random.default_rng(0)
    # Two-point declines whose mean is just the tolerated one; few, for the mean has heavy tails.
    declines = rng.choice([-0.05, 0.15], size=(200_000, 5))
    assert np.exp(log_wealth(declines, 0.05, 0.1)).mean() == pytest.approx(1.0, abs=0.02)


def test_ever_alarming_stays_under_alpha_at_the_edge_with_new_probes_at_every_evaluation():
    rng = np.random.default_rng(1)
    detector = BettingTest(alpha=0.05, tolerated=0.05, clip=0.1)
    false = 0
    for _ in range(400):
        start = np.full(40, 10.0)
        later = [start - 10 * rng.choice([-0.05, 0.15], size=40) for _ in range(25)]
        false += bool((detector.statistic(history_of(start, *later)) > 0).any())
    assert false / 400 <= 0.05


def test_a_decline_of_all_probes_is_established_and_one_within_tolerance_is_not():
    start = np.linspace(4, 6, 48)
    fallen = BettingTest().check(history_of(start, start * 0.8))
    assert fallen is not None
    assert fallen.level is Level.WARNING
    assert BettingTest().check(history_of(start, start * 0.96)) is None
    assert BettingTest().check(history_of(start, start * 1.5)) is None


def test_one_collapsing_probe_establishes_nothing():
    start = np.full(48, 5.0)
    one = start.copy()
    one[0] = -500.0
    assert BettingTest().check(history_of(start, one)) is None


def test_one_rising_probe_hides_nothing():
    start = np.full(48, 5.0)
    most = start * 0.7
    most[0] = 5000.0
    assert BettingTest().check(history_of(start, most)) is not None


def test_level_is_split_over_behaviors_and_evaluations():
    start = np.full(48, 5.0)
    alone, among = (
        BettingTest().statistic(history_of(start, start * 0.8, n_behaviors=n))[-1] for n in (1, 4)
    )
    assert alone - among == pytest.approx(math.log(4))
    first, second = BettingTest().statistic(history_of(start, start * 0.8, start * 0.8))[1:]
    assert first - second == pytest.approx(math.log(6 / 2))


def test_the_evaluations_share_of_the_level_sums_to_at_most_one():
    shares = [1 / (k * (k + 1)) for k in range(1, 100_000)]
    assert sum(shares) == pytest.approx(1, abs=1e-4)
    assert sum(shares) <= 1


def test_a_fall_of_the_score_is_established_too():
    start, broken = np.full(48, 5.0), np.full(48, 5.0)
    broken[:40] = -1
    detector = BettingTest(of="score", tolerated=0.05, clip=1.0)
    assert detector.check(history_of(start, broken)) is not None
    assert detector.check(history_of(start, start * 0.1)) is None


def test_few_probes_cannot_establish_anything():
    assert BettingTest().min_probes(n_behaviors=1) > 5
    n = BettingTest().min_probes(n_behaviors=3)
    start = np.full(n, 5.0)
    assert BettingTest().check(history_of(start, start * -10, n_behaviors=3)) is not None
    fewer = np.full(n - 1, 5.0)
    assert BettingTest().check(history_of(fewer, fewer * -10, n_behaviors=3)) is None


def test_a_start_without_margin_has_no_decline():
    assert BettingTest().check(history_of(np.zeros(48), -np.ones(48))) is None
