"""Schedule of probe evaluations: dense at the start, immediate when urgent, sparse while calm."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from riprap.detectors import BehaviorHistory
from riprap.monitor import ProbeSchedule
from riprap.types import Forecast

INF = float("inf")
CALM = Forecast(INF, INF, INF, 50)


def evaluated_steps(every: int, steps: int, forecast: Forecast | None = None) -> list[int]:
    schedule, evaluated = ProbeSchedule(every), [0]
    schedule.plan(0, [forecast])
    for step in range(1, steps + 1):
        if schedule.is_due(step, []):
            evaluated.append(step)
            schedule.plan(step, [forecast])
    return evaluated


def test_the_first_steps_are_all_evaluated() -> None:
    assert evaluated_steps(20, 200)[: ProbeSchedule.dense_steps + 1] == list(
        range(ProbeSchedule.dense_steps + 1)
    )


@given(st.integers(1, 60), st.integers(1, 400))
def test_a_gap_is_never_longer_than_asked_nor_than_a_quarter_of_the_way(
    every: int, steps: int
) -> None:
    for earlier, later in pairwise(evaluated_steps(every, steps)):
        assert 1 <= later - earlier <= every
        assert later - earlier <= max(earlier // ProbeSchedule.gap_divisor, 1)


def test_while_calm_the_gap_grows_to_what_was_asked() -> None:
    gaps = np.diff(evaluated_steps(20, 400, CALM))
    assert (np.diff(gaps) >= 0).all()
    assert gaps[-1] == 20


@pytest.mark.parametrize("low", [1.0, 7.5, 16.0, 40.0])
def test_several_evaluations_fit_in_before_the_earliest_break(low: float) -> None:
    schedule = ProbeSchedule(probe_every=50)
    schedule.plan(400, [CALM, None, Forecast(low + 5, low, INF, 50)])
    assert schedule.next_step - 400 == max(int(low) // ProbeSchedule.evaluations_before_break, 1)


def test_a_broken_behavior_does_not_hide_one_that_is_about_to_break() -> None:
    schedule = ProbeSchedule(probe_every=50)
    schedule.plan(400, [Forecast(0, 0, 0, 50), Forecast(20, 16, 30, 50)])
    assert schedule.next_step == 404
    assert sum(refreshes(schedule, range(404, 416))) == 12 // ProbeSchedule.refresh_period


def test_a_broken_behavior_alone_is_not_urgent() -> None:
    schedule = ProbeSchedule(probe_every=50)
    schedule.plan(400, [Forecast(0, 0, 0, 50)])
    assert schedule.next_step == 450


def history(low: float, *predicted: float) -> BehaviorHistory:
    made = BehaviorHistory("b", 0.9)
    made.add_margins(10, np.array([low] * 2 + [9.0] * 8))
    made.interference = {11 + i: value for i, value in enumerate(predicted)}
    return made


@pytest.mark.parametrize(
    ("made", "urgent"),
    [
        (history(2.0), False),
        (history(2.0, -0.5, -0.4), False),
        (history(2.0, -0.5, -0.6), True),
        (history(2.0, -2 * ProbeSchedule.max_spent - 0.01), True),
        (history(2.0, +5.0), False),
        (history(2.0, -1.5, +1.0), False),
        (history(-1.0, -9.0), False),
        (BehaviorHistory("never evaluated", 0.9), False),
    ],
)
def test_interference_calls_for_an_evaluation_at_once(made: BehaviorHistory, urgent: bool) -> None:
    schedule = ProbeSchedule(probe_every=50, next_step=60)
    assert schedule.is_due(12, [history(2.0), made]) is urgent
    assert schedule.is_due(60, [made])


def refreshes(schedule: ProbeSchedule, steps: range) -> list[bool]:
    return [schedule.should_refresh_gradients(step) for step in steps]


def test_gradients_are_fresh_more_often_at_first() -> None:
    schedule = ProbeSchedule(probe_every=50)
    dense = refreshes(schedule, range(1, ProbeSchedule.dense_steps))
    assert dense == [
        i % ProbeSchedule.refresh_period == ProbeSchedule.refresh_period - 1
        for i in range(len(dense))
    ]
    later = refreshes(
        ProbeSchedule(probe_every=50),
        range(ProbeSchedule.dense_steps, ProbeSchedule.dense_steps + 12),
    )
    assert later == [
        i % ProbeSchedule.calm_refresh_period == ProbeSchedule.calm_refresh_period - 1
        for i in range(12)
    ]
    assert ProbeSchedule.refresh_period < ProbeSchedule.calm_refresh_period


def test_gradients_are_fresh_more_often_while_a_break_is_forecast() -> None:
    schedule = ProbeSchedule(probe_every=50)
    schedule.plan(100, [Forecast(30, 20, INF, 50)])
    assert sum(refreshes(schedule, range(101, 113))) == 12 // ProbeSchedule.refresh_period
    schedule.plan(112, [CALM])
    assert sum(refreshes(schedule, range(113, 125))) == 12 // ProbeSchedule.calm_refresh_period
