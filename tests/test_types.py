"""Readings have a value exactly if they were measured; levels are ordered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from riprap.types import Forecast, Level, Reading, ReadingStatus


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_a_value_that_is_not_finite_becomes_an_error(value: float) -> None:
    reading = Reading.of(3, "b", "kl", value, "nats", "layers.1")
    assert (reading.step, reading.behavior, reading.signal) == (3, "b", "kl")
    assert (reading.unit, reading.layer) == ("nats", "layers.1")
    if value - value == 0:
        assert (reading.state, reading.value) == (ReadingStatus.MEASURED, value)
    else:
        assert (reading.state, reading.value) == (ReadingStatus.ERROR, None)
        assert str(value) in reading.detail


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_measured_means_finite(value: float | None) -> None:
    with pytest.raises(ValueError, match="a measured value must be finite"):
        Reading(0, "b", "kl", value)


@pytest.mark.parametrize("state", [s for s in ReadingStatus if s is not ReadingStatus.MEASURED])
def test_other_statuses_have_no_value(state: ReadingStatus) -> None:
    assert Reading(0, "b", "kl", state=state).value is None
    with pytest.raises(ValueError, match=f"status {state} must have no value, got 0"):
        Reading(0, "b", "kl", 0.0, state=state)


def test_levels_are_ordered_from_the_mildest() -> None:
    assert sorted(Level, key=lambda level: level.rank) == [
        Level.WATCH,
        Level.WARNING,
        Level.CRITICAL,
    ]
    assert Level.WATCH.rank == 1


@pytest.mark.parametrize(
    ("high", "predicted"), [(0.0, True), (50.0, True), (50.1, False), (float("inf"), False)]
)
def test_a_forecast_predicts_a_break_if_its_whole_interval_is_within_the_horizon(
    high: float, predicted: bool
) -> None:
    assert Forecast(0.0, 0.0, high, 50).predicts_break is predicted
