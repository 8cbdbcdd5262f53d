"""Reading a record, also while another process writes it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from riprap.errors import RecordError
from riprap.record._layout import READABLE_VERSIONS, VERSION, locate_record, sqlite_uri
from riprap.record._rows import (
    ACTION_COLUMNS,
    ALERT_COLUMNS,
    READING_COLUMNS,
    action_from_row,
    alert_from_row,
    detector_name,
    reading_from_row,
)
from riprap.record._series import Series
from riprap.record._writer import Writer
from riprap.types import RUN, Action, Alert, BrokenProbe, Reading

# A run that was resumed from a checkpoint took some steps twice; the second time counts.
_NOT_SUPERSEDED = (
    " AND NOT EXISTS (SELECT 1 FROM superseded s "
    "WHERE s.name = '{0}' AND {0}.id > s.after AND {0}.id <= s.until)"
)

ANSWERS = "probe_answers"  # event with how the model began to answer probes
CLEARED = "cleared"  # event of a level that was withdrawn
CHECKPOINT = "checkpoint"  # event of a saved one: `path`, and `kept`, the names of all that are
COST = "cost"  # event with what the monitor itself cost
TRAINING = "training"  # event with the loss and other numbers of the training itself
STOP = "stop_asked"  # event of the wish of `stop_on` or of a guard that training stops: `reason`
GUARD = "guard"  # event of a watch that has a guard: its `name`, and `doubts` by behavior
PLAN = "plan"  # event of the steps that are planned from then on, with their learning rates
DEFAULT_FLOOR = 0.90  # of a behavior whose record names no floor


class Reader:
    """Reader of a record, also while another process writes it.

    Args:
        source: a run's folder or record file, or a `Writer` of this process.
        superseded: include rows of steps that were taken again after an interruption.

    Raises:
        RecordError: there is no record, the file is not a record, or it has an unknown version.
    """

    def __init__(self, source: str | Path | Writer, superseded: bool = False) -> None:
        self._owned = not isinstance(source, Writer)
        self._superseded = superseded
        if isinstance(source, Writer):
            source.flush()
            self.path, self.connection, self._version = source.path, source.connection, str(VERSION)
            return
        self.path = locate_record(source)
        try:
            self.connection = sqlite3.connect(sqlite_uri(self.path), uri=True)
        except sqlite3.Error as error:
            raise RecordError(f"cannot open {self.path}: {error}") from error
        try:
            self._version = self._read_version()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the connection of a `Writer` stays open."""
        if self._owned:
            self.connection.close()

    def _read_version(self) -> str:
        rows = self._rows("SELECT value FROM meta WHERE key = 'format_version'")
        version = rows[0][0] if rows else None
        if version not in READABLE_VERSIONS:
            raise RecordError(
                f"{self.path} has record format {version}; this Riprap reads "
                f"{' and '.join(READABLE_VERSIONS)}"
            )
        return str(version)

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        try:
            return self.connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise RecordError(f"{self.path} is not a readable record: {error}") from error

    def _select(
        self, columns: str, table: str, where: str = "1", *values: Any
    ) -> list[tuple[Any, ...]]:
        query = f"SELECT {columns} FROM {table} WHERE {where}{self._current(table)}"
        return self._rows(f"{query} ORDER BY {table}.id", *values)

    def _current(self, table: str) -> str:
        """Return the condition that leaves out superseded rows; empty if there are none."""
        if self._superseded or self._version == "1":
            return ""
        if not self._rows("SELECT 1 FROM superseded WHERE name = ? LIMIT 1", table):
            return ""
        return _NOT_SUPERSEDED.format(table)

    @contextmanager
    def _wrap_damage(self) -> Iterator[None]:
        """Turn errors of content that no `Writer` wrote into a `RecordError`."""
        try:
            yield
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise RecordError(f"{self.path} is damaged: {error}") from error

    def meta(self) -> dict[str, Any]:
        """Return the facts about the run; `ended` only if the run was not continued since."""
        facts = self._rows("SELECT key, value FROM meta")
        events = self._events("ORDER BY id DESC LIMIT 1")
        with self._wrap_damage():
            known = {str(key): json.loads(value) for key, value in facts}
            ended = events and events[-1]["kind"] == "ended"
            return known | (events[-1]["facts"] if ended else {})

    def behaviors(self) -> list[dict[str, Any]]:
        """Return name, floor and other facts of each monitored behavior; empty if none is named."""
        with self._wrap_damage():
            behaviors = [
                {"floor": DEFAULT_FLOOR} | own for own in self.meta().get("behaviors") or []
            ]
            for own in behaviors:
                if not isinstance(own["name"], str) or not 0 < own["floor"] <= 1:
                    raise ValueError(f"it names a behavior {own}")
        return behaviors

    def monitored(self) -> list[dict[str, Any]]:
        """Return the same; if none is named, the behaviors with margins, at the default floor."""
        return self.behaviors() or [
            {"name": name, "floor": DEFAULT_FLOOR} for name in self.units("margin") if name != RUN
        ]

    def events(self) -> list[dict[str, Any]]:
        """Return the run's events, each with step, kind (such as `ended`, `resumed`) and facts."""
        return self._events("ORDER BY id")

    def _events(self, which: str) -> list[dict[str, Any]]:
        if self._version == "1":
            return []
        rows = self._rows(f"SELECT step, kind, facts FROM events {which}")
        with self._wrap_damage():
            return [{"step": s, "kind": k, "facts": json.loads(facts)} for s, k, facts in rows]

    def readings(self) -> list[Reading]:
        """Return all readings, in the order in which they were taken."""
        rows = self._select(READING_COLUMNS, "readings")
        with self._wrap_damage():
            return [reading_from_row(row) for row in rows]

    def series(self) -> dict[tuple[str, str, str], Series]:
        """Return the measured values by step, by behavior, signal and layer.

        Takes 16 bytes a reading, where `readings` takes 500.
        """
        query = (
            "SELECT behavior, signal, layer, step, value FROM readings "
            f"WHERE state = 'MEASURED'{self._current('readings')} ORDER BY readings.id"
        )
        found: dict[tuple[str, str, str], Series] = {}
        with self._wrap_damage():
            try:
                for behavior, signal, layer, step, value in self.connection.execute(query):
                    series = found.get((behavior, signal, layer))
                    if series is None:
                        series = found[behavior, signal, layer] = Series()
                    series.add(step, value)
            except sqlite3.Error as error:
                raise RecordError(f"{self.path} is not a readable record: {error}") from error
            for key, series in found.items():
                if not all(isinstance(name, str) for name in key):
                    raise ValueError(f"it names a series {key}")
                if not np.isfinite(series.value_array).all():
                    raise ValueError(f"a value of {key} is not finite")
        return found

    def measured(self, signal: str) -> list[tuple[str, int, float]]:
        """Return behavior, step and value of each measured reading of a signal, in their order.

        A step at which a guard restored earlier weights has two.
        """
        rows = self._select(
            "behavior, step, value", "readings", "signal = ? AND state = 'MEASURED'", signal
        )
        with self._wrap_damage():
            return [(str(name), int(step), float(value)) for name, step, value in rows]

    def missing(self) -> list[tuple[Reading, int, int]]:
        """Return the readings that are not MEASURED: the first of each kind, count, last step.

        Readings of one kind have behavior, signal, layer, state and detail in common.
        """
        kinds = (
            "SELECT min(id) AS first, count(*) AS number, max(step) AS last, max(value) AS worst "
            f"FROM readings WHERE state <> 'MEASURED'{self._current('readings')} "
            "GROUP BY state, behavior, detail, signal, layer"
        )
        columns = ", ".join(f"r.{name}" for name in READING_COLUMNS.split(", "))
        rows = self._rows(
            f"SELECT {columns.replace('r.value', 'worst')}, number, last FROM ({kinds}) "
            "JOIN readings r ON r.id = first ORDER BY first"
        )
        with self._wrap_damage():
            return [(reading_from_row(tuple(row)), n, int(last)) for *row, n, last in rows]

    def units(self, signal: str) -> dict[str, str]:
        """Return the unit of a signal by behavior, in the order of their first readings."""
        last = "max(CASE WHEN state = 'MEASURED' THEN id END)"
        rows = self._rows(
            f"SELECT behavior, (SELECT unit FROM readings WHERE id = last) FROM (SELECT behavior, "
            f"min(id) AS first, {last} AS last FROM readings WHERE signal = ?"
            f"{self._current('readings')} GROUP BY behavior) ORDER BY first",
            signal,
        )
        with self._wrap_damage():
            if not all(
                isinstance(name, str) and isinstance(unit, str | None) for name, unit in rows
            ):
                raise ValueError("a behavior or a unit is not text")
            return {name: unit or "" for name, unit in rows}

    def margins(self, behavior: str) -> dict[int, np.ndarray]:
        """Return the margins of all probes of a behavior by step, each of shape (n_probes,)."""
        rows = self._select("step, margins", "margins", "behavior = ?", behavior)
        with self._wrap_damage():
            return {int(step): np.frombuffer(blob, dtype="<f4") for step, blob in rows}

    def withdrawals(self) -> dict[int, int]:
        """Return the step at which an alert was withdrawn, by its place in `alerts`.

        An alert that is not among them stood at the end.
        """
        cleared = events_that_stand(self.events(), CLEARED)
        events = [(event["step"], event["facts"]) for event in cleared]
        with self._wrap_damage():
            return withdrawn_alerts(self.alerts(), events)

    def answers(self) -> dict[str, dict[int, dict[int, str]]]:
        """Return how the model began to answer: by behavior, step and number of the probe.

        From the start and the end of the run, and from the first alert of each level.
        """
        found: dict[str, dict[int, dict[int, str]]] = {}
        with self._wrap_damage():
            events = self._events(f"WHERE kind IN ('{ANSWERS}', 'resumed') ORDER BY id")
            for event in events_that_stand(events, ANSWERS):
                for name, said in event["facts"]["answers"].items():
                    own = found.setdefault(name, {}).setdefault(int(event["step"]), {})
                    own |= {int(index): str(text) for index, text in said.items()}
        return found

    def broken_probes(self) -> dict[str, list[BrokenProbe]]:
        """Return, by behavior, the probes that passed at the start and fail at the end.

        With how the model began to answer them then, if that was recorded, and at the last step of
        `answers` after it.
        """
        answers, broken = self.answers(), {}
        for own in self.behaviors():
            recorded = self.margins(own["name"])
            margins = list(recorded.values())
            if not margins or len(margins[0]) != len(margins[-1]):
                continue
            texts, own_answers = own.get("texts") or [], answers.get(own["name"], {})
            start = next(iter(recorded))
            indices = np.flatnonzero((margins[0] > 0) & ~(margins[-1] > 0)).tolist()
            broken[own["name"]] = [
                BrokenProbe(
                    at,
                    texts[at] if at < len(texts) else None,
                    *_before_and_now(at, start, own_answers),
                )
                for at in indices
            ]
        return {name: probes for name, probes in broken.items() if probes}

    def alerts(self) -> list[Alert]:
        """Return all alerts, in the order in which they were raised."""
        rows = self._select(ALERT_COLUMNS, "alerts")
        with self._wrap_damage():
            return [alert_from_row(row) for row in rows]

    def actions(self) -> list[Action]:
        """Return the actions of guards, in the order in which they were taken."""
        if self._version == "1":
            return []
        rows = self._select(ACTION_COLUMNS, "actions")
        with self._wrap_damage():
            return [action_from_row(row) for row in rows]


def _before_and_now(
    probe: int, start: int, answers: Mapping[int, Mapping[int, str]]
) -> tuple[str | None, str | None, int | None]:
    """Return the last answer to a probe, that of the step `start`, and the step of the last one."""
    before = answers.get(start, {}).get(probe)
    step = max((at for at, own in answers.items() if at > start and probe in own), default=None)
    return (None if step is None else answers[step][probe]), before, step


def events_that_stand(
    events: Iterable[Mapping[str, Any]], kind: str | None = None
) -> list[Mapping[str, Any]]:
    """Return the events of a kind, without those of steps that a resumed run took again.

    Args:
        events: those of `Reader.events`.
        kind: None: of all kinds.
    """
    found: list[Mapping[str, Any]] = []
    for event in events:
        if event["kind"] == "resumed":  # the steps after it were taken again
            found = [own for own in found if own["step"] <= event["step"]]
        if kind in (None, event["kind"]):
            found.append(event)
    return found


def withdrawn_alerts(
    alerts: Sequence[Alert], events: Iterable[tuple[int, Mapping[str, Any]]]
) -> dict[int, int]:
    """Return the step at which an alert was withdrawn, by its place.

    Args:
        events: step and facts of each event `cleared`, which name their alerts.
    """
    found: dict[int, int] = {}
    places: dict[tuple[Any, ...], list[int]] = {}
    for place, alert in enumerate(alerts):
        key = (alert.step, alert.behavior, alert.detector, str(alert.level))
        places.setdefault(key, []).append(place)
    for step, facts in events:
        for own in facts.get("alerts") or ():
            key = (own["step"], facts["behavior"], detector_name(facts["detector"]), own["level"])
            if places.get(key):
                found[places[key].pop(0)] = step
    return found
