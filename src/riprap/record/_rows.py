"""Readings, alerts and forecasts as rows, and back."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

from riprap.types import Action, Alert, Forecast, Level, Reading, ReadingStatus

READING_COLUMNS = "step, behavior, signal, value, unit, state, layer, detail"
ALERT_COLUMNS = "step, behavior, level, detector, message, readings, forecast"
_NAMED = (int, str, str)
_READING = (*_NAMED, float | None, str, str, str, str)
_ALERT = (*_NAMED, str, str, str, str | None)
ACTION_COLUMNS = "step, guard, moment, applied, detail, facts"
_ACTION = (*_NAMED, int, str, str)


def reading_to_row(reading: Reading) -> tuple[Any, ...]:
    """A reading as SQLite takes it: numpy's numbers would be refused, and only at the commit."""
    value = None if reading.value is None else float(reading.value)
    named = (int(reading.step), reading.behavior, reading.signal, value)
    return (*named, reading.unit, str(reading.state), reading.layer, _escape_surrogates(reading.detail))


def reading_from_row(row: tuple[Any, ...]) -> Reading:
    """The reading of a row, in the order of `READING_COLUMNS`.

    Raises:
        ValueError: it is none; a file may hold anything.
    """
    _check_types(row, _READING)
    step, behavior, signal, value, unit, state, layer, detail = row
    return Reading(step, behavior, signal, value, unit, ReadingStatus(state), layer, detail)


def _escape_surrogates(text: str) -> str:
    """Halves of surrogate pairs, which an error may repeat from a file's name, are written out."""
    return text.encode("utf-8", "backslashreplace").decode()


def alert_to_row(alert: Alert) -> tuple[Any, ...]:
    """An alert in the order of `ALERT_COLUMNS`; its readings and forecast as JSON."""
    readings = json.dumps([asdict(reading) for reading in alert.readings])
    forecast = None if alert.forecast is None else forecast_to_json(alert.forecast)
    said = _escape_surrogates(alert.message)
    named = (int(alert.step), alert.behavior, str(alert.level), alert.detector, said)
    return (*named, readings, forecast)


def alert_from_row(row: tuple[Any, ...]) -> Alert:
    """The alert of a row, in the order of `ALERT_COLUMNS`.

    Raises:
        LookupError, TypeError, ValueError: it is none.
    """
    _check_types(row, _ALERT)
    step, behavior, level, detector, message, readings, forecast = row
    caused = tuple(_reading_from_fields(fields) for fields in json.loads(readings))
    known = None if forecast is None else forecast_from_json(forecast)
    return Alert(step, behavior, Level(level), detector, message, caused, known)


def _reading_from_fields(fields: dict[str, Any]) -> Reading:
    named = [fields.get(column, "") for column in READING_COLUMNS.split(", ")]
    return reading_from_row(tuple(named))


def _check_types(row: tuple[Any, ...], kinds: tuple[Any, ...]) -> None:
    """SQLite lets any column hold anything, and so may a file that somebody made."""
    if len(row) != len(kinds) or not all(map(isinstance, row, kinds)):
        raise ValueError(f"a row holds {', '.join(type(value).__name__ for value in row)}")


def action_to_row(action: Action) -> tuple[Any, ...]:
    """An action in the order of `ACTION_COLUMNS`; its numbers as JSON."""
    facts = {"before": action.before, "after": action.after, "seconds": action.seconds}
    named = (int(action.step), action.guard, action.moment, int(action.applied))
    return (*named, _escape_surrogates(action.detail), json.dumps(facts))


def action_from_row(row: tuple[Any, ...]) -> Action:
    """The action of a row, in the order of `ACTION_COLUMNS`.

    Raises:
        TypeError, ValueError: it is none.
    """
    _check_types(row, _ACTION)
    step, guard, moment, applied, detail, facts = row
    return Action(step, guard, moment, bool(applied), detail, **json.loads(facts))


def forecast_to_json(forecast: Forecast) -> str:
    """A forecast as JSON that any reader takes: "not within the horizon" is null."""
    numbers = asdict(forecast)
    known = {key: None if math.isinf(value) else value for key, value in numbers.items()}
    return json.dumps(known, allow_nan=False)


def forecast_from_json(text: str) -> Forecast:
    """The forecast of a text made by `forecast_text`.

    Raises:
        AttributeError, TypeError, ValueError: it is none.
    """
    numbers = json.loads(text)
    known: dict[str, Any] = {k: math.inf if v is None else v for k, v in numbers.items()}
    if any(math.isnan(number) for number in known.values()):
        raise ValueError("a forecast without a number")
    return Forecast(**known)
