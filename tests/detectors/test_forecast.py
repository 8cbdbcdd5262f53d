"""A forecast finds what is falling, doubts what wavers, and says so when a fall fades."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riprap.detectors import BehaviorHistory, ForecastDetector, SlopeDetector
from riprap.detectors._trend import Trend, fit_trend, realized_changes, shaped_changes
from riprap.types import Level

FORECAST = ForecastDetector()


def history_of(lows: list[float], steps: list[int] | None = None, n: int = 20) -> BehaviorHistory:
    """A history whose threshold margin takes the given values; the other probes are far above."""
    history = BehaviorHistory("b", 0.9)
    for step, low in zip(steps or range(len(lows)), lows, strict=True):
        history.add_margins(step, np.array([low, low, low, *[50.0] * (n - 3)]))
    return history


def test_an_even_fall_is_forecast_where_it_leads() -> None:
    history = history_of([10 - 0.5 * step for step in range(16)])  # at 2.5, so 5 steps to go
    forecast = FORECAST.forecast(history)
    assert forecast is not None
    assert forecast.low <= 5 <= forecast.high
    assert forecast.median == pytest.approx(5, rel=0.35)
    alert = FORECAST.check(history)
    assert alert is not None and alert.level is Level.CRITICAL and alert.forecast == forecast


def test_a_fall_that_gathers_speed_is_seen_before_it_is_over() -> None:
    lows = [6.0, 6.0, 5.95, 5.8, 5.5, 4.9, 3.7, 1.3]  # each change twice the one before
    alert = FORECAST.check(history_of(lows))
    assert alert is not None and alert.level is Level.CRITICAL


def test_a_fall_that_has_levelled_off_is_not_critical() -> None:
    lows = [3 + 5 * float(np.exp(-step / 6)) for step in range(30)]
    alert = FORECAST.check(history_of(lows))
    assert alert is None or alert.level is Level.WATCH


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_wavering_about_a_healthy_margin_is_never_critical(seed: int) -> None:
    noise = np.random.default_rng(seed).normal(0, 0.15, 60)
    alert = FORECAST.check(history_of(list(8 + noise)))
    assert alert is None or alert.level is not Level.CRITICAL


def test_nothing_above_watch_while_most_of_the_margin_is_left() -> None:
    lows = [10 - 0.04 * step**2 for step in range(11)]  # at 6 of 10, and some 7 steps to go
    ready = ForecastDetector(spent=0.0, doubt=0.0).check(history_of(lows))
    patient = ForecastDetector(spent=0.5, doubt=0.0).check(history_of(lows))
    assert ready is not None and ready.level is Level.CRITICAL
    assert patient is not None and patient.level is Level.WATCH
    assert patient.forecast == ready.forecast


def test_a_rise_is_calm() -> None:
    forecast = FORECAST.forecast(history_of([2 + 0.1 * step for step in range(20)]))
    assert forecast is not None and forecast.low == float("inf")


def test_under_the_floor_is_critical_at_once_whatever_the_trend() -> None:
    alert = FORECAST.check(history_of([5.0, -0.1]))
    assert alert is not None and alert.level is Level.CRITICAL
    assert alert.forecast is not None and alert.forecast.high == 0
    assert "broken" in alert.message


def test_nothing_is_said_before_enough_was_seen() -> None:
    early = history_of([5.0, 3.0])
    assert FORECAST.forecast(early) is None and FORECAST.check(early) is None


def test_bounds_keep_their_order_and_stay_within_the_horizon() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        lows = list(np.cumsum(generator.normal(-0.2, 0.4, 15)) + 6)
        forecast = FORECAST.forecast(history_of(lows))
        assert forecast is not None
        assert forecast.low <= forecast.median <= forecast.high
        for bound in (forecast.low, forecast.median, forecast.high):
            assert bound <= forecast.horizon or bound == float("inf")


def test_a_trend_fades_as_its_persistence_says() -> None:
    now = Trend(margin=4.0, change=-0.5, standard_error=0.0, age=10)
    assert now.steps_to_zero(0, float("inf")) == pytest.approx(8)
    assert now.steps_to_zero(0, 1.0) == pytest.approx(-10 * np.log(1 - 0.8))  # 5 in all to lose
    assert now.steps_to_zero(0, 0.7) == float("inf")  # 3.5 in all: it levels off above 0


def test_the_change_now_is_that_of_a_weighted_line() -> None:
    changes = np.array([-0.02 * k for k in range(11)])
    values = np.concatenate([[5.0], 5 + np.cumsum(changes)])
    found = fit_trend(history_of(list(values)), changes, memory=4.0, doubt=0.0)
    weights = np.exp(-np.arange(11)[::-1] / 4)
    slope, intercept = np.polyfit(np.arange(11), changes, 1, w=np.sqrt(weights))
    assert found.change == pytest.approx(intercept + 10 * slope)
    assert found.standard_error == pytest.approx(0, abs=1e-9)
    assert found.age == 10  # the first change is 0, so the highest value is last seen at step 1


def test_interference_says_when_within_a_gap_and_the_margins_how_much() -> None:
    history = history_of([8.0, 4.0], steps=[0, 4])
    history.interference = {1: 0.0, 2: 0.0, 3: -1.0, 4: -1.0}
    values = np.array([8.0, 4.0])
    assert realized_changes(history, values).tolist() == [-1.0] * 4
    shaped = shaped_changes(history, values)
    assert shaped.sum() == pytest.approx(-4)
    assert shaped.tolist() == [-0.5, -0.5, -1.5, -1.5]


def test_slope_is_blind_to_interference() -> None:
    history = history_of([8.0, 7.0, 6.0, 3.0], steps=[0, 2, 4, 10])
    blind = SlopeDetector().forecast(history)
    history.interference = {step: -1.0 if step > 8 else 0.5 for step in range(1, 11)}
    assert SlopeDetector().forecast(history) == blind
    assert FORECAST.forecast(history) != blind


def diving(share: float) -> BehaviorHistory:
    """A run in which a share of the probes dive to their floor, and the others stay."""
    history = BehaviorHistory("b", 0.9)
    n = 48
    for step in range(11):
        margins = np.full(n, 10.0)
        margins[: int(share * n)] -= 0.06 * step**2
        history.add_margins(step, margins)
    return history


def test_a_few_diving_probes_are_no_decline_of_the_behavior() -> None:
    free = ForecastDetector(spent=0.0, doubt=0.0)
    gated = ForecastDetector(spent=0.0, doubt=0.0, declined=0.2)
    few, most = diving(0.15), diving(1.0)
    first, second = free.check(few), gated.check(few)
    assert first is not None and first.level is Level.CRITICAL
    assert second is not None and second.level is Level.WATCH
    assert second.forecast == first.forecast
    critical = gated.check(most)
    assert critical is not None and critical.level is Level.CRITICAL


def test_a_broken_floor_is_critical_whatever_the_mean() -> None:
    history = diving(0.15)
    margins = np.full(48, 10.0)
    margins[:6] = -1.0
    history.add_margins(11, margins)
    alert = ForecastDetector(declined=0.2).check(history)
    assert alert is not None and alert.level is Level.CRITICAL
