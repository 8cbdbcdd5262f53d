"""Readings, alerts and forecasts as rows, and back."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

from riprap.evidence import Action, Alert, EvidenceState, Forecast, Level, Reading

READING_COLUMNS = "step, behavior, signal, value, unit, state, layer, detail"
ALERT_COLUMNS = "step, behavior, level, detector, message, readings, forecast"
ACTION_COLUMNS = "step, guard, moment, applied, detail, facts"


def row_of(reading: Reading) -> tuple[Any, ...]:
    """A reading as SQLite takes it: numpy's numbers would be refused, and only at the commit."""
    value = None if reading.value is None else float(reading.value)
    named = (int(reading.step), reading.behavior, reading.signal, value)
    return (*named, reading.unit, str(reading.state), reading.layer, reading.detail)


def reading_of(row: tuple[Any, ...]) -> Reading:
    """The reading of a row, in the order of `READING_COLUMNS`."""
    step, behavior, signal, value, unit, state, layer, detail = row
    return Reading(step, behavior, signal, value, unit, EvidenceState(state), layer, detail)


def alert_row(alert: Alert) -> tuple[Any, ...]:
    """An alert in the order of `ALERT_COLUMNS`; its readings and forecast as JSON."""
    readings = json.dumps([asdict(reading) for reading in alert.readings])
    forecast = None if alert.forecast is None else forecast_text(alert.forecast)
    named = (int(alert.step), alert.behavior, str(alert.level), alert.detector, alert.message)
    return (*named, readings, forecast)


def alert_of(row: tuple[Any, ...]) -> Alert:
    """The alert of a row, in the order of `ALERT_COLUMNS`."""
    step, behavior, level, detector, message, readings, forecast = row
    caused = tuple(
        Reading(**(fields | {"state": EvidenceState(fields["state"])}))
        for fields in json.loads(readings)
    )
    known = None if forecast is None else forecast_of(forecast)
    return Alert(step, behavior, Level(level), detector, message, caused, known)


def action_row(action: Action) -> tuple[Any, ...]:
    """An action in the order of `ACTION_COLUMNS`; its numbers as JSON."""
    facts = {"before": action.before, "after": action.after, "seconds": action.seconds}
    named = (int(action.step), action.guard, action.moment, int(action.applied), action.detail)
    return (*named, json.dumps(facts))


def action_of(row: tuple[Any, ...]) -> Action:
    """The action of a row, in the order of `ACTION_COLUMNS`."""
    step, guard, moment, applied, detail, facts = row
    return Action(step, guard, moment, bool(applied), detail, **json.loads(facts))


def forecast_text(forecast: Forecast) -> str:
    """A forecast as JSON that any reader takes: "not within the horizon" is null."""
    numbers = asdict(forecast)
    known = {key: None if math.isinf(value) else value for key, value in numbers.items()}
    return json.dumps(known, allow_nan=False)


def forecast_of(text: str) -> Forecast:
    """The forecast of a text made by `forecast_text`."""
    numbers = json.loads(text)
    known: dict[str, Any] = {k: math.inf if v is None else v for k, v in numbers.items()}
    return Forecast(**known)
