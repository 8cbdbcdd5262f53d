"""Thresholds: side, value, consecutive checks, and values relative to the start."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from riprap.detectors import BehaviorHistory, Threshold
from riprap.types import Level


def make_history(values: list[float], signal: str = "kl_start", every: int = 5) -> BehaviorHistory:
    made = BehaviorHistory("b", 0.9)
    for index, value in enumerate(values):
        made.add_margins(index * every, np.ones(4))
        made.signals.setdefault(signal, []).append((index * every, value))
    return made


def standing(detector: Threshold, made: BehaviorHistory) -> list[bool]:
    """Activity of the alert after each evaluation, from what was known then."""
    return [detector.check(made.truncated(step)) is not None for step in made.steps]


@given(
    st.lists(st.floats(-2, 2), min_size=1, max_size=12),
    st.integers(1, 4),
    st.sampled_from(["below", "above"]),
    st.floats(-1, 1),
)
def test_it_stands_after_so_many_evaluations_in_a_row(
    values: list[float], consecutive: int, side: str, bound: float
) -> None:
    detector = Threshold(signal="kl_start", side=side, value=bound, consecutive=consecutive)
    beyond = [value < bound if side == "below" else value > bound for value in values]
    expected = [
        index + 1 >= consecutive and all(beyond[index + 1 - consecutive : index + 1])
        for index in range(len(values))
    ]
    assert standing(detector, make_history(values)) == expected


def test_the_bound_itself_is_not_beyond() -> None:
    below = Threshold(signal="kl_start", side="below", value=0.5)
    above = Threshold(signal="kl_start", side="above", value=0.5)
    assert standing(below, make_history([0.5])) == standing(above, make_history([0.5])) == [False]


def test_a_relative_value_is_a_share_of_the_start() -> None:
    detector = Threshold(signal="projection", side="below", value=0.8, relative=True)
    assert standing(detector, make_history([10, 9, 8.1, 7.9], "projection")) == [False] * 3 + [True]


@pytest.mark.parametrize(
    ("signal", "value", "expected"),
    [("score", 0.75, [False, False, True]), ("margin", 1.0, [False, True, True])],
)
def test_scores_and_margins_are_always_there(
    signal: str, value: float, expected: list[bool]
) -> None:
    made = BehaviorHistory("b", 0.75)
    for step, margins in enumerate([[1, 2, 3, 4], [-2, 1, 1, 1], [-2, -1, 1, 1]]):
        made.add_margins(step, np.array(margins, dtype=float))
    assert standing(Threshold(signal=signal, side="below", value=value), made) == expected


def test_the_threshold_margin_follows_the_floor_of_the_behavior() -> None:
    detector = Threshold(signal="margin_low", side="below", value=0.0)
    for floor, expected in [(0.5, False), (0.75, False), (0.9, True)]:
        made = BehaviorHistory("b", floor)
        made.add_margins(0, np.array([-1.0, 1, 2, 3]))
        assert standing(detector, made) == [expected]


def test_an_old_reading_raises_nothing() -> None:
    made = make_history([9.0, 9.0])
    made.add_margins(15, np.ones(4))
    assert Threshold(signal="kl_start", side="above", value=1).check(made) is None


def test_a_signal_that_was_never_read_raises_nothing() -> None:
    assert Threshold(signal="elsewhere", side="above", value=1).check(make_history([9.0])) is None


def test_the_alert_says_what_caused_it() -> None:
    detector = Threshold(
        signal="kl_start", side="above", value=0.3, consecutive=2, level=Level.CRITICAL
    )
    alert = detector.check(make_history([0.1, 0.4, 0.52]))
    assert alert is not None
    assert (alert.step, alert.behavior, alert.level) == (10, "b", Level.CRITICAL)
    assert alert.detector == "threshold(kl_start)"
    assert [(r.step, r.signal, r.value) for r in alert.readings] == [
        (5, "kl_start", 0.4),
        (10, "kl_start", 0.52),
    ]
    assert alert.message == "kl_start is 0.52, above 0.3 for 2 probe evaluations"
    assert alert.forecast is None


def test_checking_changes_nothing() -> None:
    made, detector = make_history([0.1, 0.4]), Threshold(signal="kl_start", side="above", value=0.3)
    before = repr(made)
    assert detector.check(made) == detector.check(made)
    assert repr(made) == before
