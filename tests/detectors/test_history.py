"""Histories: the threshold margin, the score, and what was known at a step."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from riprap.detectors import BehaviorHistory, score, threshold_margin

# A few sizes only, so that 0 and ties are common.
margin_lists = st.lists(st.sampled_from([-2.0, -0.5, 0.0, 0.5, 2.0]), min_size=1, max_size=60)
percents = st.integers(1, 100)


@given(margin_lists, percents)
def test_the_sign_of_the_threshold_margin_decides_the_score(
    values: list[float], percent: int
) -> None:
    margins, floor = np.array(values), percent / 100
    assert (score(margins) < floor) == (threshold_margin(margins, floor) <= 0)


@pytest.mark.parametrize("n", [*range(1, 26), 30, 40, 48, 50, 60, 100, 120])
def test_a_score_that_just_meets_its_floor_is_not_under_it(n: int) -> None:
    """Around every floor of whole percents, where (1 − floor)·n is not exact in binary."""
    for percent in range(1, 101):
        allowed = (100 - percent) * n // 100
        for fallen in range(max(allowed - 1, 0), min(allowed + 1, n) + 1):
            margins = np.array([-1.0] * fallen + [1.0] * (n - fallen))
            under = fallen > allowed
            assert (score(margins) < percent / 100) == under
            assert (threshold_margin(margins, percent / 100) <= 0) == under


@given(margin_lists, percents)
def test_the_score_is_compared_exactly(values: list[float], percent: int) -> None:
    """At a floor that the score just meets, rounding breaks nothing."""
    positive = sum(value > 0 for value in values)
    under = Fraction(positive, len(values)) < Fraction(percent, 100)
    assert (score(np.array(values)) < percent / 100) == under


@given(margin_lists, percents)
def test_the_threshold_margin_is_the_last_that_may_fall(values: list[float], percent: int) -> None:
    """One by one from the smallest, margins fall until the score is under its floor."""
    floor, ordered = percent / 100, sorted(abs(value) + 1 for value in values)
    for index in range(len(ordered)):
        fallen = np.array([-1.0] * (index + 1) + ordered[index + 1 :])
        if score(fallen) < floor:
            assert threshold_margin(np.array(ordered), floor) == ordered[index]
            return
    pytest.fail("the score never fell under its floor")


def make_history() -> BehaviorHistory:
    history = BehaviorHistory("b", 0.9)
    for step, low in [(0, 3.0), (2, 2.0), (5, -1.0), (9, 1.0)]:
        history.add_margins(step, np.array([low] * 2 + [4.0] * 8))
    history.interference = {step: -0.1 * step for step in range(1, 11)}
    history.signals = {"kl_start": [(0, 0.0), (2, 0.1), (5, 0.4), (9, 0.9)]}
    return history


def test_a_track_knows_when_it_broke() -> None:
    history = make_history()
    assert history.broken_at == 5
    assert history.healthy_at_start
    assert (history.step, history.threshold_margin) == (9, 1.0)


def test_a_behavior_that_was_broken_from_the_start() -> None:
    history = BehaviorHistory("b", 0.9)
    history.add_margins(0, np.array([-1.0, 1.0]))
    assert not history.healthy_at_start
    assert history.broken_at is None  # it had nothing to lose


def test_predicted_changes_count_from_the_last_evaluation() -> None:
    assert make_history().interference_since_last_probe() == pytest.approx(-1.0)
    assert make_history().truncated(6).interference_since_last_probe() == pytest.approx(-0.6)
    assert make_history().truncated(5).interference_since_last_probe() == 0


@pytest.mark.parametrize("step", range(11))
def test_until_is_what_was_known_then(step: int) -> None:
    whole, then = make_history(), make_history().truncated(step)
    assert then.steps == [s for s in whole.steps if s <= step]
    assert [m.tolist() for m in then.margins] == [
        m.tolist() for s, m in zip(whole.steps, whole.margins, strict=True) if s <= step
    ]
    assert then.interference == {s: r for s, r in whole.interference.items() if s <= step}
    assert then.signals == {"kl_start": [r for r in whole.signals["kl_start"] if r[0] <= step]}
    assert (then.behavior, then.floor) == (whole.behavior, whole.floor)
    assert then.broken_at == (5 if step >= 5 else None)


def test_until_does_not_share_what_it_cut() -> None:
    whole = make_history()
    then = whole.truncated(9)
    then.add_margins(10, np.ones(10))
    then.interference[10] = 7.0
    then.signals["kl_start"].append((10, 1.0))
    assert whole.steps == [0, 2, 5, 9]
    assert whole.interference[10] == pytest.approx(-1.0)
    assert len(whole.signals["kl_start"]) == 4
