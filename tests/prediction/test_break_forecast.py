"""Steps to a break: against a simulation, step by step."""

from __future__ import annotations

import math

import numpy as np
import pytest

from riprap.prediction._break_forecast import (
    DOUBT,
    Course,
    fewest_rows_for,
    time_to_floor,
)


@pytest.mark.parametrize("seed", range(20))
def test_the_time_to_the_floor_is_that_of_a_simulation(seed: int) -> None:
    """Margins that fall and margins that recover, moved along their lines in small steps."""
    rng = np.random.default_rng(seed)
    margins, slopes = rng.normal(2, 1.2, 24), rng.normal(-0.05, 0.1, 24)
    margins[:2] = np.abs(margins[:2])
    margins = np.where(rng.random(24) < 0.9, np.abs(margins), margins)
    floor = 0.8
    (found,) = time_to_floor(margins, slopes[None], floor)
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


def test_the_interval_is_that_of_the_doubt_about_the_pace() -> None:
    """Equal margins that fall by a fiftieth a step break after 50 steps, at the median pace."""
    course = Course(np.full(20, 1.0), np.full(20, -0.02), 0.9, np.ones(1000), 0.0)
    forecast, probability = course.forecast()
    assert probability > 0.99
    assert forecast.median == pytest.approx(50, rel=0.15)
    for bound, z in ((forecast.low, -1.2816), (forecast.high, 1.2816)):
        assert bound == pytest.approx(50 * math.exp(DOUBT * z), rel=0.25)
    half, _ = course.forecast(0.5)
    assert half.median == pytest.approx(2 * forecast.median, rel=0.05)
    rising, probability = course.forecast(-1.0)
    assert rising.low == math.inf and probability == 0
    short = Course(np.full(20, 1.0), np.full(20, -0.02), 0.9, np.ones(50), 0.0)
    assert short.forecast()[1] == pytest.approx(0.5, abs=0.1)


def test_rows_that_do_half() -> None:
    assert fewest_rows_for(0.5, np.array([1.0, 1.0, 1.0, 1.0])) == 2
    assert fewest_rows_for(0.5, np.array([10.0, 1.0, 1.0])) == 1
    assert fewest_rows_for(0.5, np.array([1.0, -2.0])) is None
