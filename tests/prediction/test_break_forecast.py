"""Steps to a break: against a simulation, step by step."""

from __future__ import annotations

import math

import numpy as np
import pytest

from riprap.detectors import fewest_rows_for, time_to_floor
from riprap.prediction._break_forecast import (
    DOUBT,
    PACE,
    Course,
)


@pytest.mark.parametrize("seed", range(20))
def test_the_time_to_the_floor_is_that_of_a_simulation(seed: int) -> None:
    """Margins that fall and margins that recover, moved along their lines in small steps."""
    rng = np.random.default_rng(seed)
    margins, slopes = rng.normal(2, 1.2, 24), rng.normal(-0.05, 0.1, 24)
    margins[:2] = np.abs(margins[:2])
    margins = np.where(rng.random(24) < 0.9, np.abs(margins), margins)
    floor = 0.8
    found = time_to_floor(margins, slopes, floor)
    expected = math.inf
    for at in np.arange(0, 400, 0.01):
        if np.mean(margins + at * slopes > 0) < floor:
            expected = at
            break
    assert found == pytest.approx(expected, abs=0.02)


def test_steps_follow_the_schedule() -> None:
    rates = np.array([0.0, 0.5, 1.0, 1.0, 0.5, 0.25, 0.1])
    course = Course(np.ones(3), np.ones(3), 0.9, rates, 0.0)
    sums = np.array([0.0, 0.4, 0.5, 0.6, 2.5, 2.6, 3.3, 3.35, 3.4])
    assert course.steps_of(sums).tolist() == [1, 2, 2, 3, 4, 5, 7, 7, math.inf]


def falling_equally(steps: int) -> Course:
    """Equal margins that fall by a fiftieth a step: along their lines they break after 50 steps."""
    return Course(np.full(20, 1.0), np.full(20, -0.02), 0.9, np.ones(steps), 0.0)


@pytest.mark.parametrize("steps", [30, 100, 1000])
def test_the_forecast_is_that_of_drawn_paces(steps: int) -> None:
    """Runs that each go on at a drawn pace: how many break in the plan, and when those do."""
    factors = PACE * np.exp(DOUBT * np.random.default_rng(0).standard_normal(200_000))
    times = 50 / factors
    inside = times[times <= steps]
    forecast, probability = falling_equally(steps).forecast()
    assert probability == pytest.approx(len(inside) / len(times), abs=0.005)
    for bound, quantile in ((forecast.low, 0.1), (forecast.median, 0.5), (forecast.high, 0.9)):
        assert bound == pytest.approx(np.quantile(inside, quantile), rel=0.03, abs=1)
    assert forecast.high <= steps


def test_another_mix_of_rows_changes_the_pace() -> None:
    course = falling_equally(1000)
    whole, half = course.forecast(), course.forecast(0.5)
    assert half[0].median > 1.2 * whole[0].median and half[1] < whole[1]
    twice = falling_equally(2000)
    assert half[1] == pytest.approx(
        Course(**vars(twice) | {"schedule": np.ones(500)}).probability()
    )
    rising, probability = course.forecast(-1.0)
    assert rising.low == math.inf and probability == 0


def test_a_plan_that_is_over_and_a_behavior_under_its_floor() -> None:
    over = Course(np.full(20, 1.0), np.full(20, -0.02), 0.9, np.ones(16), 16.0)
    assert over.forecast()[1] == 0 and over.forecast()[0].low == math.inf
    under = Course(np.linspace(-1, 1, 20), np.full(20, -0.02), 0.9, np.ones(100), 16.0)
    assert under.forecast()[1] == 1 and under.forecast()[0].median == 16


def test_rows_that_do_half() -> None:
    assert fewest_rows_for(0.5, np.array([1.0, 1.0, 1.0, 1.0])) == 2
    assert fewest_rows_for(0.5, np.array([10.0, 1.0, 1.0])) == 1
    assert fewest_rows_for(0.5, np.array([1.0, -2.0])) is None
