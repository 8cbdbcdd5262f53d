"""When probes are visited: densely at first, seldom while calm, at once when it is urgent."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from riprap.detectors import BehaviorHistory
from riprap.monitor._probe_schedule import (
    DENSE,
    GROWTH,
    PATIENCE,
    REFRESH,
    REFRESH_CALM,
    USED_UP,
    ProbeSchedule,
)
from riprap.types import Forecast

INF = float("inf")
CALM = Forecast(INF, INF, INF, 50)


def visits(every: int, steps: int, forecast: Forecast | None = None) -> list[int]:
    cadence, made = ProbeSchedule(every), [0]
    cadence.plan(0, [forecast])
    for step in range(1, steps + 1):
        if cadence.is_due(step, []):
            made.append(step)
            cadence.plan(step, [forecast])
    return made


def test_the_first_steps_are_all_visited() -> None:
    assert visits(20, 200)[: DENSE + 1] == list(range(DENSE + 1))


@given(st.integers(1, 60), st.integers(1, 400))
def test_a_gap_is_never_longer_than_asked_nor_than_a_quarter_of_the_way(
    every: int, steps: int
) -> None:
    for one, two in pairwise(visits(every, steps)):
        assert 1 <= two - one <= every
        assert two - one <= max(one // GROWTH, 1)


def test_while_calm_the_gap_grows_to_what_was_asked() -> None:
    gaps = np.diff(visits(20, 400, CALM))
    assert (np.diff(gaps) >= 0).all()
    assert gaps[-1] == 20


@pytest.mark.parametrize("low", [1.0, 7.5, 16.0, 40.0])
def test_several_visits_fit_in_before_the_earliest_break(low: float) -> None:
    cadence = ProbeSchedule(every=50)
    cadence.plan(400, [CALM, None, Forecast(low + 5, low, INF, 50)])
    assert cadence.due - 400 == max(int(low) // PATIENCE, 1)


def test_a_broken_behaviour_does_not_hide_one_that_is_about_to_break() -> None:
    cadence = ProbeSchedule(every=50)
    cadence.plan(400, [Forecast(0, 0, 0, 50), Forecast(20, 16, 30, 50)])
    assert cadence.due == 404
    assert sum(freshness(cadence, range(404, 416))) == 12 // REFRESH


def test_a_broken_behaviour_alone_is_not_urgent() -> None:
    cadence = ProbeSchedule(every=50)
    cadence.plan(400, [Forecast(0, 0, 0, 50)])
    assert cadence.due == 450


def track(low: float, *predicted: float) -> BehaviorHistory:
    made = BehaviorHistory("b", 0.9)
    made.add_margins(10, np.array([low] * 2 + [9.0] * 8))
    made.predicted = {11 + i: value for i, value in enumerate(predicted)}
    return made


@pytest.mark.parametrize(
    ("made", "urgent"),
    [
        (track(2.0), False),
        (track(2.0, -0.5, -0.4), False),
        (track(2.0, -0.5, -0.6), True),
        (track(2.0, -2 * USED_UP - 0.01), True),
        (track(2.0, +5.0), False),
        (track(2.0, -1.5, +1.0), False),
        (track(-1.0, -9.0), False),
        (BehaviorHistory("never visited", 0.9), False),
    ],
)
def test_interference_calls_for_a_visit_at_once(made: BehaviorHistory, urgent: bool) -> None:
    cadence = ProbeSchedule(every=50, due=60)
    assert cadence.is_due(12, [track(2.0), made]) is urgent
    assert cadence.is_due(60, [made])


def freshness(cadence: ProbeSchedule, steps: range) -> list[bool]:
    return [cadence.should_refresh_gradients(step) for step in steps]


def test_gradients_are_fresh_more_often_at_first() -> None:
    cadence = ProbeSchedule(every=50)
    dense = freshness(cadence, range(1, DENSE))
    assert dense == [i % REFRESH == REFRESH - 1 for i in range(len(dense))]
    later = freshness(ProbeSchedule(every=50), range(DENSE, DENSE + 12))
    assert later == [i % REFRESH_CALM == REFRESH_CALM - 1 for i in range(12)]
    assert REFRESH < REFRESH_CALM


def test_gradients_are_fresh_more_often_while_a_break_is_forecast() -> None:
    cadence = ProbeSchedule(every=50)
    cadence.plan(100, [Forecast(30, 20, INF, 50)])
    assert sum(freshness(cadence, range(101, 113))) == 12 // REFRESH
    cadence.plan(112, [CALM])
    assert sum(freshness(cadence, range(113, 125))) == 12 // REFRESH_CALM
