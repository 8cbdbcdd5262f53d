"""The trend of each probe tells when a behavior breaks, in the clock of the learning rates."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from riprap.detectors import BehaviorHistory, ProbeTrend, RateSchedule, threshold_margin
from riprap.types import Level

START = np.linspace(1.0, 3.0, 20)  # the threshold margin is the third lowest


def history(
    steps: Sequence[int], margins: Sequence[np.ndarray], rates: np.ndarray | None = None
) -> BehaviorHistory:
    """A history whose steps have these learning rates; None: unknown."""
    made = BehaviorHistory("b", 0.9)
    sums = None if rates is None else np.concatenate([[0.0], np.cumsum(rates)])
    for step, own in zip(steps, margins, strict=True):
        made.add_margins(step, own, math.nan if sums is None else float(sums[step]))
    return made


def level(made: BehaviorHistory) -> Level | None:
    alert = ProbeTrend().check(made)
    return None if alert is None else alert.level


def test_a_straight_fall_is_followed_to_its_end() -> None:
    fall = 0.02  # of each probe in a step
    steps = (0, 20, 40)
    made = history(steps, [START - fall * step for step in steps])
    expected = math.ceil(threshold_margin(START, 0.9) / fall - 40)
    detector = ProbeTrend()
    assert detector.steps_to_break(made) == expected
    forecast = detector.forecast(made)
    assert forecast is not None
    assert forecast.low < forecast.median < expected < forecast.high


@pytest.mark.parametrize(
    ("fall", "expected"),
    [(0.0, None), (-0.02, None), (0.005, None), (0.018, Level.WATCH), (0.0205, Level.WARNING),
     (0.0255, Level.CRITICAL), (0.05, Level.CRITICAL)],
)  # fmt: skip
def test_levels_follow_the_steps_that_are_left(fall: float, expected: Level | None) -> None:
    steps = (20, 30, 40)
    made = history(steps, [START - fall * step for step in steps])
    assert level(made) is expected


def test_margins_that_spread_around_a_still_mean_are_seen() -> None:
    drift = np.linspace(-1, 1, 20) * 0.06
    steps = (0, 10, 20)
    made = history(steps, [START + drift * step for step in steps])
    means = [own.mean() for own in made.margins]
    assert np.ptp(means) < 1e-9
    assert level(made) in (Level.WARNING, Level.CRITICAL)


def test_a_jump_is_no_trend() -> None:
    """The first step takes most of the margin; then nothing happens."""
    margins = [START, *[START - 0.8] * 6]
    for last in range(2, 7):
        assert level(history(range(last + 1), margins[: last + 1])) is None


def test_a_gap_that_is_longer_than_the_forecast_is_critical() -> None:
    """Nothing is seen before the next evaluation: what breaks before it is said now."""
    short, long = (0, 10, 20), (0, 100, 200)
    for steps, expected in ((short, None), (long, Level.CRITICAL)):
        end = steps[-1] + 80  # when the third lowest probe reaches 0
        falls = threshold_margin(START, 0.9) / end
        assert level(history(steps, [START - falls * step for step in steps])) is expected


def test_the_schedule_to_come_is_known() -> None:
    """The fall ends with the learning rate: under a plan it does not reach 0."""
    rates = np.concatenate([np.ones(40), np.linspace(1, 0, 20)])
    sums = np.concatenate([[0.0], np.cumsum(rates)])
    fall = threshold_margin(START, 0.9) / 55  # of the sum of rates, which ends at 50
    steps = (20, 30, 40)
    made = history(steps, [START - fall * sums[step] for step in steps], rates)
    assert level(made) is Level.WARNING  # as it would be at this rate
    made.schedule = RateSchedule.of_rates(0, rates.tolist())
    assert level(made) is None
    longer = np.concatenate([rates[:40], np.ones(40)])
    made.schedule = RateSchedule.of_rates(0, longer.tolist())
    assert level(made) is Level.WARNING


def test_warm_up_is_not_taken_for_an_acceleration() -> None:
    rates = np.linspace(0, 1, 31)[1:]
    sums = np.concatenate([[0.0], np.cumsum(rates)])
    fall = threshold_margin(START, 0.9) / 60
    steps = (10, 20, 30)
    made = history(steps, [START - fall * sums[step] for step in steps], rates)
    made.schedule = RateSchedule.of_rates(0, [*rates, *[1.0] * 100])
    assert ProbeTrend().steps_to_break(made) == math.ceil(60 - sums[30])


def test_no_rate_at_all_is_no_time() -> None:
    made = history((0, 1, 2), [START, START - 0.1, START - 0.2], np.zeros(2))
    assert ProbeTrend().forecast(made) is not None  # counted in steps


def test_it_says_what_is_broken_and_needs_evaluations_for_all_else() -> None:
    assert level(history((0, 1), [START, START - 5])) is Level.CRITICAL
    assert level(history((0, 1), [START, START - 0.9])) is None
    alert = ProbeTrend().check(history((0, 1), [START, START - 5]))
    assert alert is not None and alert.message == "broken: score 0.00 is under its floor 0.90"


def test_the_text_says_what_was_lost_and_what_would_help() -> None:
    steps = (0, 20, 40)
    made = history(steps, [START - 0.0295 * step for step in steps])
    alert = ProbeTrend().check(made)
    assert alert is not None
    now = made.margins[-1]
    lost = 1 - now.mean() / START.mean()
    failing, near = (now <= 0).sum(), ((now > 0) & (now < 0.1 * START.mean())).sum()
    assert f"{lost:.0%} of the mean margin is lost in 40 steps" in alert.message
    assert f"{failing} of 20 probes fail, and {near} pass with less than a" in alert.message
    assert "lower the learning rate, or replay more examples of the behavior" in alert.message


def test_a_run_that_goes_on_after_its_plan_is_watched() -> None:
    rates = np.ones(60)
    fall = threshold_margin(START, 0.9) / 65
    steps = (40, 50, 60)
    made = history(steps, [START - fall * step for step in steps], rates)
    without = level(made)
    made.schedule = RateSchedule.of_rates(0, rates[:50].tolist())
    assert level(made) is without is Level.CRITICAL
    made.schedule = RateSchedule.of_rates(0, rates.tolist())
    assert level(made) is None  # the plan ends here


def near_the_end(time: float, left: int = 10) -> BehaviorHistory:
    """A history that breaks in `time` steps at its pace, `left` steps before its plan ends."""
    fall, steps = threshold_margin(START, 0.9) / (100 + time), (80, 90, 100)
    made = history(steps, [START - fall * step for step in steps], np.ones(100))
    made.schedule = RateSchedule.of_rates(0, np.ones(100 + left).tolist())
    return made


def test_the_forecast_ends_with_the_plan_and_has_a_probability() -> None:
    """That no break comes before the end is a forecast: the surer, the less is left."""
    detector, found = ProbeTrend(), []
    for time in (5.5, 20.5, 80.5):
        for left in (10, 4, 0):
            forecast = detector.forecast(near_the_end(time, left))
            assert forecast is not None and forecast.horizon == left
            assert forecast.probability is not None
            assert forecast.median == (math.inf if time > left else 0.75 * math.ceil(time))
            assert forecast.high == math.inf or forecast.high <= left
            found.append(forecast.probability)
    shares = np.array(found).reshape(3, 3)
    assert (np.diff(shares[:, :2], axis=0) < 0).all() and (np.diff(shares, axis=1) < 0).all()
    assert (shares[:, -1] == 0).all() and shares[0, 0] > 0.5 and shares[2, 0] < 0.02
    unmoved = detector.forecast(history((80, 90, 100), [START] * 3, np.ones(100)))
    assert unmoved is not None and unmoved.horizon == 50
    assert unmoved.probability is not None and 0 < unmoved.probability < 0.01


def test_a_fall_that_breaks_before_the_plan_ends_is_said() -> None:
    assert level(near_the_end(9.0)) is Level.CRITICAL
    assert level(near_the_end(12.0)) is None  # at this pace the plan ends first
    broken = near_the_end(9.0, left=0)
    broken.add_margins(101, START - 9, 101.0)
    alert = ProbeTrend().check(broken)
    assert alert is not None and alert.level is Level.CRITICAL
    assert alert.forecast is not None and alert.forecast.probability == 1


def test_rates_that_differ_from_the_plan_scale_it() -> None:
    """Multipliers in place of rates, or a rate that was lowered by hand: the shape is kept."""
    rates = np.concatenate([np.ones(40), np.linspace(1, 0, 60)]) * 1e-3
    sums = np.concatenate([[0.0], np.cumsum(rates)])
    fall = threshold_margin(START, 0.9) / sums[54:56].mean()  # not at a whole step
    steps = (20, 30, 40)
    made = history(steps, [START - fall * sums[step] for step in steps], rates)
    detector, found = ProbeTrend(), []
    for plan in (rates, rates * 1000, rates * 0.1):
        made.schedule = RateSchedule.of_rates(0, plan.tolist())
        found.append(detector.steps_to_break(made))
    assert found == [15.0, 15.0, 15.0]
