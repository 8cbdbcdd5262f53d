"""Judging a long run costs as much at its end as at its beginning, and changes no result."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riprap.detectors import (
    CUSUM,
    AnyDetector,
    BehaviorHistory,
    BettingTest,
    Deviation,
    ForecastDetector,
    PageHinkley,
    SlopeDetector,
    Threshold,
    reevaluate,
    score,
    threshold_margin,
)
from riprap.detectors import _derived as derived_numbers
from riprap.detectors import _trend as trend
from riprap.types import Forecast

SEQUENTIAL: list[Any] = [
    CUSUM(),
    CUSUM(signal="kl_start", scale=0.3, allowance=0.2),
    CUSUM(signal="cosine_margin", scale={"b": 0.2}),
    PageHinkley(scale=0.5),
    PageHinkley(signal="cosine_margin", scale=0.4),
    Deviation(signal="kl_start", side="above"),
    Deviation(signal="cosine_margin", first=3),
    BettingTest(),
    BettingTest(of="score"),
]
DETECTORS: list[AnyDetector] = [
    ForecastDetector(),
    ForecastDetector(memory=0.7, declined=0.1),
    SlopeDetector(memory=1.5),
    Threshold(signal="kl_start", side="above", value=0.5, consecutive=3),
    Threshold(signal="margin", side="below", value=0.7, relative=True),
    *SEQUENTIAL,
]


def random_history(seed: int, n_steps: int) -> BehaviorHistory:
    """Run with dense and sparse evaluations, signals by step, and interference of several kinds."""
    rng = np.random.default_rng(seed)
    history = BehaviorHistory("b", 0.9, n_behaviors=2)
    every = int(rng.integers(1, 12))
    low, next_evaluation = 8.0, 0
    speed = rng.normal(0, 0.01) - 0.01
    for step in range(n_steps + 1):
        low += speed + rng.normal(0, 0.05)
        if step:
            history.signals.setdefault("cosine_margin", []).append((step, float(rng.normal())))
        if step and (step % every == 0 or step == next_evaluation) and rng.random() < 0.97:
            history.add_interference(step, rng.normal() if rng.random() < 0.98 else None)
        if step == next_evaluation:
            margins = low + np.abs(rng.normal(0, 0.5, 20))
            history.add_margins(step, margins)
            if rng.random() < 0.9:
                value = float(rng.normal(0, 0.3) + step / n_steps)
                history.signals.setdefault("kl_start", []).append((step, value))
            next_evaluation += int(rng.integers(1, 20)) if rng.random() < 0.8 else 1
    return history


def unbounded_forecast(detector: ForecastDetector, history: BehaviorHistory) -> Forecast | None:
    """The forecast from all changes of the run, each computed anew."""
    if score(history.margins[-1]) < history.floor:
        return Forecast(0.0, 0.0, 0.0, detector.horizon)
    if history.step < detector.least_steps or len(history.steps) < 2:
        return None
    steps = history.steps
    lows = np.array([threshold_margin(margins, history.floor) for margins in history.margins])
    changes = detector.changes(history, lows)
    memory = max(detector.memory, steps[-1] - steps[-2])
    ages = np.arange(len(changes))[::-1].astype(float)
    weights = np.exp(-ages / memory)
    weights /= weights.sum()
    change, error = trend._fit_line_end(ages, changes, weights)
    peak = max(step for step, low in zip(steps, lows, strict=True) if low == lows.max())
    found = trend.Trend(
        float(lows[-1]), change, float(np.hypot(error, detector.doubt * change)), steps[-1] - peak
    )
    late, median, early = (
        detector._within_horizon(found.steps_to_zero(z, persistence))
        for z, persistence in zip((trend.Z80, 0.0, -trend.Z80), detector.persistence, strict=True)
    )
    return Forecast(median, early, late, detector.horizon)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(DETECTORS[:3]))
def test_forecasts_are_those_from_all_changes(seed: int, detector: ForecastDetector) -> None:
    history = random_history(seed, 1200)
    for step in history.steps[:: max(len(history.steps) // 12, 1)]:
        then = history.truncated(step)
        found, expected = detector.forecast(then), unbounded_forecast(detector, then)
        if expected is None:
            assert found is None
            continue
        assert found is not None
        for part in ("median", "low", "high"):
            assert getattr(found, part) == pytest.approx(getattr(expected, part), rel=1e-9)
        assert detector.alert_level(found, then) == detector.alert_level(expected, then)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_statistics_are_those_of_the_whole_series_to_the_last_bit(seed: int) -> None:
    whole = random_history(seed, 250)
    live = BehaviorHistory("b", 0.9, n_behaviors=2)
    for step, margins in zip(whole.steps, whole.margins, strict=True):
        then = whole.truncated(step)
        live.signals = then.signals  # lists that grow, as a monitor's do
        live.add_margins(step, margins)
        for detector in SEQUENTIAL:
            values = detector.statistic(then)
            expected = float(values[-1]) if len(values) else None
            assert detector.latest(live) == expected


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_a_run_is_judged_anew_as_it_was_at_each_step(seed: int) -> None:
    history = random_history(seed, 200)
    for detector in DETECTORS:
        then = [detector.check(history.truncated(step)) for step in history.steps]
        assert reevaluate(detector, history) == [alert for alert in then if alert is not None]
    kept = [r for r in history.signals["cosine_margin"] if r[0] in history.steps]
    assert list(history.series("cosine_margin")) == kept
    under = [s for s, m in zip(history.steps, history.margins, strict=True) if score(m) < 0.9]
    assert history.broken_at == min(under, default=None)
    assert history.truncated(100).broken_at == min([s for s in under if s <= 100], default=None)


def test_evaluations_that_are_taken_away_are_forgotten() -> None:
    history = random_history(3, 200)
    detector = CUSUM()
    detector.check(history)
    earlier = history.truncated(100)
    fresh = random_history(3, 200).truncated(100)
    assert detector.latest(earlier) == detector.latest(fresh)
    assert earlier.steps_since_peak == fresh.steps_since_peak
    restored = BehaviorHistory("b", 0.9, n_behaviors=2)
    restored.load_state_dict(history.truncated(100).state_dict())
    history.load_state_dict(restored.state_dict())
    assert detector.latest(history) == detector.latest(fresh)
    assert list(history.series("kl_start")) == list(fresh.series("kl_start"))


class CountedList(list[Any]):
    """List that counts the items that are read from it."""

    read = 0

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        self.read += len(found) if isinstance(at, slice) else 1
        return found

    def __iter__(self) -> Iterator[Any]:
        self.read += len(self)
        return super().__iter__()

    def __contains__(self, item: object) -> bool:
        self.read += len(self)
        return super().__contains__(item)


class CountedDict(dict[int, float]):
    """Dict that counts the entries that are read from it."""

    read = 0

    def __getitem__(self, step: int) -> float:
        self.read += 1
        return super().__getitem__(step)

    def __contains__(self, step: object) -> bool:
        self.read += 1
        return super().__contains__(step)

    def get(self, step: int, default: Any = None) -> Any:
        self.read += 1
        return super().get(step, default)

    def items(self) -> Any:
        self.read += len(self)
        return super().items()


def test_an_evaluation_late_in_a_run_reads_no_more_than_an_early_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fitted: list[int] = []
    sorted_margins: list[int] = []

    def fit(ages: np.ndarray, changes: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
        fitted.append(len(changes))
        return -0.001, 0.001

    def low(margins: np.ndarray, floor: float) -> float:
        sorted_margins.append(len(margins))
        return threshold_margin(margins, floor)

    monkeypatch.setattr(trend, "_fit_line_end", fit)
    monkeypatch.setattr(derived_numbers, "threshold_margin", low)
    history = BehaviorHistory("b", 0.9)
    history.steps, history.margins = CountedList(), CountedList()
    history.interference = CountedDict()
    history.signals = {"kl_start": CountedList(), "cosine_margin": CountedList()}
    sources: list[Any] = [history.steps, history.margins, history.interference]
    sources += history.signals.values()
    reads: list[int] = []
    for step in range(1, 8_001):
        history.add_interference(step, -0.01)
        history.signals["cosine_margin"].append((step, 0.1))
        if step % 10 == 0:
            history.signals["kl_start"].append((step, step / 8_000))
            history.add_margins(step, np.linspace(5, 9, 20) - step / 8_000)
            for source in sources:
                source.read = 0
            sorted_margins.clear()
            for detector in DETECTORS:
                detector.evaluate(history)
            assert history.broken_at is None
            assert len(sorted_margins) <= len(DETECTORS)
            reads.append(sum(source.read for source in sources))
    assert max(fitted) <= trend.REACH * 10 + 10
    assert max(reads[:200]) > 1000  # the window was full then
    assert max(reads[400:]) <= max(reads[:200]) + 20  # a bisection, by its logarithm


def test_what_has_lost_its_weight_does_not_matter() -> None:
    """A fall of a million, and then changes of a thousandth: the forecast is the same."""
    rng = np.random.default_rng(0)
    lows = 5 - 0.001 * np.arange(600) + rng.normal(0, 1e-4, 600)
    history, other = BehaviorHistory("b", 0.9), BehaviorHistory("b", 0.9)
    for step, low in enumerate(lows):
        margins = np.array([low] * 3 + [50.0] * 17)
        history.add_margins(step, margins + (1e6 if step < 100 else 0.0))
        other.add_margins(step, margins)
    detector = ForecastDetector(horizon=10_000, persistence=(math.inf, math.inf, math.inf))
    found, expected = unbounded_forecast(detector, history), detector.forecast(history)
    assert found is not None and expected is not None
    assert found.median == pytest.approx(expected.median, rel=1e-9)
    calm = detector.forecast(other)
    assert calm is not None and calm.median == pytest.approx(found.median, rel=1e-9)
