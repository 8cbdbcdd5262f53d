"""Readings, alerts, actions and forecasts as rows of the record, and back."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from riprap._extras import require
from riprap._text import shorten
from riprap.types import RUN, Action, Alert, Forecast, Level, OwnDetector, Reading, ReadingStatus

if TYPE_CHECKING:
    import pandas as pd

READING_COLUMNS = "step, behavior, signal, value, unit, state, layer, detail"
ALERT_COLUMNS = "step, behavior, level, detector, message, readings, forecast"
ACTION_COLUMNS = "step, guard, moment, applied, detail, facts"
_ERROR = ReadingStatus.ERROR
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


def facts_to_json(facts: dict[str, Any]) -> str:
    """Return facts as standard JSON, in which a number that is not finite is null.

    Those of the facts themselves are marked: `not_finite` has their names, with what they were.

    Raises:
        RecursionError, TypeError, ValueError: the facts are not JSON.
    """
    text = json.dumps(facts, default=str)
    plain = json.loads(text, parse_constant=lambda _: None)
    marks = {
        name: str(float(value))
        for name, value in facts.items()
        if isinstance(value, float) and not math.isfinite(value)
    }
    return json.dumps(plain | ({"not_finite": marks} if marks else {}))


def numbers_from_facts(facts: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers among facts, those that are not finite as well."""
    marks = facts.get("not_finite")
    marked = marks.items() if isinstance(marks, dict) else ()
    found = {name: value for name, value in facts.items() if isinstance(value, float)}
    return found | {name: float(was) for name, was in marked if was in ("nan", "inf", "-inf")}


def reading_to_row(reading: Reading) -> tuple[Any, ...]:
    """Return a reading in the order of `READING_COLUMNS`, as plain Python values.

    Numbers of numpy become Python's, because SQLite refuses them. A text that is None becomes
    empty, and unpaired surrogates are escaped.

    Raises:
        ArithmeticError, AttributeError, TypeError, ValueError: the record could not hold the
            reading, or not read it back.
    """
    value = None if reading.value is None else float(reading.value)
    names = (_text(reading, "behavior"), _text(reading, "signal"))
    rest = [_text(reading, name) for name in ("unit", "state", "layer", "detail")]
    row = (_integer(reading.step), *names, value, *rest)
    reading_from_row(row)
    return row


def clean_readings(readings: Iterable[Any], step: int = 0) -> list[Reading]:
    """Return readings that the record can hold: `ERROR` with the reason in place of a bad one.

    Args:
        step: step of an `ERROR` reading whose own step is unusable.
    """
    return [_clean_reading(reading, step) for reading in readings]


def _clean_reading(reading: Any, step: int) -> Reading:
    try:
        return reading_from_row(reading_to_row(reading))
    except Exception as error:  # noqa: BLE001 a signal may yield anything, and never ends the record
        return error_reading(reading, step, error)


def error_reading(source: Any, step: int, error: Exception) -> Reading:
    """Return the `ERROR` reading in place of a reading, alert or action that cannot be written."""
    names = [getattr(source, name, None) for name in ("behavior", "signal")]
    behavior, signal = (shorten(name) if isinstance(name, str) else None for name in names)
    with suppress(Exception):
        step = _integer(source.step)
    what = f"malformed {type(source).__name__}: {type(error).__name__}: {error}"
    detail = shorten(what, max_length=500)
    return Reading(step, behavior or RUN, signal or "record", None, "", _ERROR, detail=detail)


def _text(source: Any, name: str) -> str:
    value = getattr(source, name)
    if not isinstance(value, str | None):
        raise TypeError(f"its {name} is {type(value).__name__}, not text")
    return _escape_surrogates(str(value or ""))


def _integer(value: Any) -> int:
    number = int(value)
    if number != value or not -(2**63) <= number < 2**63:
        raise ValueError("its step is not a whole number of 64 bits")
    return number


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
    """Return an alert in the order of `ALERT_COLUMNS`, its readings and forecast as JSON.

    Raises:
        ArithmeticError, AttributeError, LookupError, TypeError, ValueError: the record could not
            hold the alert, or not read it back.
    """
    readings = json.dumps([asdict(reading) for reading in clean_readings(alert.readings)])
    forecast = None if alert.forecast is None else forecast_to_json(alert.forecast)
    texts = [_text(alert, name) for name in ("behavior", "level", "detector", "message")]
    row = (_integer(alert.step), *texts, readings, forecast)
    alert_from_row(row)
    return row


def alert_from_row(row: tuple[Any, ...]) -> Alert:
    """Return the alert of a row in the order of `ALERT_COLUMNS`.

    Raises:
        LookupError, TypeError, ValueError: the row is not an alert.
    """
    _check_types(row, _ALERT_TYPES)
    step, behavior, level, detector, message, readings, forecast = row
    causes = tuple(_reading_from_fields(fields) for fields in json.loads(readings))
    known = None if forecast is None else forecast_from_json(forecast)
    name = detector_name(detector)
    return Alert(step, behavior, Level(level), name, message, causes, known)


def detector_name(stored: str) -> str:
    """Return the name of a detector as it is today; older records have another one for one."""
    return str(OwnDetector.NOT_FINITE) if stored == "finite" else stored


def _reading_from_fields(fields: dict[str, Any]) -> Reading:
    return reading_from_row(tuple(fields.get(name, "") for name in READING_COLUMNS.split(", ")))


def _check_types(row: tuple[Any, ...], types: tuple[Any, ...]) -> None:
    """Check a row's types: SQLite allows any value in any column."""
    if len(row) != len(types) or not all(map(isinstance, row, types)):
        raise ValueError(f"a row holds {', '.join(type(value).__name__ for value in row)}")


def action_to_row(action: Action) -> tuple[Any, ...]:
    """Return an action in the order of `ACTION_COLUMNS`, its numbers as JSON.

    Raises:
        ArithmeticError, AttributeError, TypeError, ValueError: the record could not hold the
            action, or not read it back.
    """
    facts = {"before": action.before, "after": action.after, "seconds": action.seconds}
    names = (_text(action, "guard"), _text(action, "moment"))
    detail = _text(action, "detail")
    row = (_integer(action.step), *names, int(action.applied), detail, _plain_json(facts))
    action_from_row(row)
    return row


def _plain_json(facts: Any) -> str:
    """Return facts as JSON; numbers of numpy and torch become Python's."""
    return json.dumps(facts, default=lambda value: value.item())


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
    if forecast.probability is None:
        del numbers["probability"]
    known = {key: None if value == math.inf else value for key, value in numbers.items()}
    return json.dumps(known, allow_nan=False)


def forecast_from_json(text: str) -> Forecast:
    """Return the forecast of a text that `forecast_to_json` made.

    Raises:
        AttributeError, TypeError, ValueError: the text is not a forecast.
    """
    numbers = json.loads(text)
    probability = numbers.pop("probability", None)
    known: dict[str, Any] = {k: math.inf if v is None else v for k, v in numbers.items()}
    if any(math.isnan(number) for number in known.values()):
        raise ValueError("a number of the forecast is NaN")
    if probability is not None and not 0 <= probability <= 1:
        raise ValueError("the probability of the forecast is none")
    return Forecast(**known, probability=probability)
