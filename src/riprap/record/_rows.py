"""Readings, alerts, actions and forecasts as rows of the record, and back."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from riprap._extras import require
from riprap.types import Action, Alert, Forecast, Level, Reading, ReadingStatus

if TYPE_CHECKING:
    import pandas as pd

READING_COLUMNS = "step, behavior, signal, value, unit, state, layer, detail"
ALERT_COLUMNS = "step, behavior, level, detector, message, readings, forecast"
ACTION_COLUMNS = "step, guard, moment, applied, detail, facts"
_NAMED = (int, str, str)
_READING_TYPES = (*_NAMED, float | None, str, str, str, str)
_ALERT_TYPES = (*_NAMED, str, str, str, str | None)
_ACTION_TYPES = (*_NAMED, int, str, str)
_FRAME_COLUMNS = ["step", "behavior", "signal", "value", "state", "unit", "layer", "detail"]


def to_dataframe(readings: Iterable[Reading]) -> pd.DataFrame:
    """Return a table with one row per reading; `value` is NaN where `state` is not MEASURED.

    Raises:
        MissingExtraError: pandas is not installed.
    """
    require("report", "pandas")
    import pandas as pd

    rows = [[getattr(reading, column) for column in _FRAME_COLUMNS] for reading in readings]
    frame = pd.DataFrame(rows, columns=_FRAME_COLUMNS)
    frame["value"] = pd.to_numeric(frame["value"]).astype(float)
    frame["state"] = frame["state"].astype(str)
    return frame


def reading_to_row(reading: Reading) -> tuple[Any, ...]:
    """Return a reading in the order of `READING_COLUMNS`.

    Numbers become Python numbers: SQLite refuses numpy's, and only at the commit.
    """
    value = None if reading.value is None else float(reading.value)
    named = (int(reading.step), reading.behavior, reading.signal, value)
    detail = _escape_surrogates(reading.detail)
    return (*named, reading.unit, str(reading.state), reading.layer, detail)


def reading_from_row(row: tuple[Any, ...]) -> Reading:
    """Return the reading of a row in the order of `READING_COLUMNS`.

    Raises:
        ValueError: the row is not a reading; a file may hold anything.
    """
    _check_types(row, _READING_TYPES)
    step, behavior, signal, value, unit, state, layer, detail = row
    return Reading(step, behavior, signal, value, unit, ReadingStatus(state), layer, detail)


def _escape_surrogates(text: str) -> str:
    """Escape unpaired surrogates, which an error text may take over from a file name."""
    return text.encode("utf-8", "backslashreplace").decode()


def alert_to_row(alert: Alert) -> tuple[Any, ...]:
    """Return an alert in the order of `ALERT_COLUMNS`, its readings and forecast as JSON."""
    readings = json.dumps([asdict(reading) for reading in alert.readings])
    forecast = None if alert.forecast is None else forecast_to_json(alert.forecast)
    message = _escape_surrogates(alert.message)
    named = (int(alert.step), alert.behavior, str(alert.level), alert.detector, message)
    return (*named, readings, forecast)


def alert_from_row(row: tuple[Any, ...]) -> Alert:
    """Return the alert of a row in the order of `ALERT_COLUMNS`.

    Raises:
        LookupError, TypeError, ValueError: the row is not an alert.
    """
    _check_types(row, _ALERT_TYPES)
    step, behavior, level, detector, message, readings, forecast = row
    causes = tuple(_reading_from_fields(fields) for fields in json.loads(readings))
    known = None if forecast is None else forecast_from_json(forecast)
    return Alert(step, behavior, Level(level), detector, message, causes, known)


def _reading_from_fields(fields: dict[str, Any]) -> Reading:
    return reading_from_row(tuple(fields.get(name, "") for name in READING_COLUMNS.split(", ")))


def _check_types(row: tuple[Any, ...], types: tuple[Any, ...]) -> None:
    """Check a row's types: SQLite allows any value in any column."""
    if len(row) != len(types) or not all(map(isinstance, row, types)):
        raise ValueError(f"a row holds {', '.join(type(value).__name__ for value in row)}")


def action_to_row(action: Action) -> tuple[Any, ...]:
    """Return an action in the order of `ACTION_COLUMNS`, its numbers as JSON."""
    facts = {"before": action.before, "after": action.after, "seconds": action.seconds}
    named = (int(action.step), action.guard, action.moment, int(action.applied))
    return (*named, _escape_surrogates(action.detail), json.dumps(facts))


def action_from_row(row: tuple[Any, ...]) -> Action:
    """Return the action of a row in the order of `ACTION_COLUMNS`.

    Raises:
        TypeError, ValueError: the row is not an action.
    """
    _check_types(row, _ACTION_TYPES)
    step, guard, moment, applied, detail, facts = row
    return Action(step, guard, moment, bool(applied), detail, **json.loads(facts))


def forecast_to_json(forecast: Forecast) -> str:
    """Return a forecast as standard JSON: "not within the horizon" is null."""
    numbers = asdict(forecast)
    known = {key: None if math.isinf(value) else value for key, value in numbers.items()}
    return json.dumps(known, allow_nan=False)


def forecast_from_json(text: str) -> Forecast:
    """Return the forecast of a text that `forecast_to_json` made.

    Raises:
        AttributeError, TypeError, ValueError: the text is not a forecast.
    """
    numbers = json.loads(text)
    known: dict[str, Any] = {k: math.inf if v is None else v for k, v in numbers.items()}
    if any(math.isnan(number) for number in known.values()):
        raise ValueError("a number of the forecast is NaN")
    return Forecast(**known)
