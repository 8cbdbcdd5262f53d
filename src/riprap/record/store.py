"""The record of one run: a single SQLite file in WAL mode, appended to and never rewritten.

One process writes, any number read; what was committed survives the death of the writer.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from riprap.evidence import Alert, EvidenceState, Forecast, Level, Reading, RecordError

VERSION = 1
FILE_NAME = "record.sqlite"
FLUSH_SECONDS = 0.5

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE readings (id INTEGER PRIMARY KEY, step INTEGER NOT NULL, behavior TEXT NOT NULL,
  signal TEXT NOT NULL, value REAL, unit TEXT NOT NULL, state TEXT NOT NULL,
  layer TEXT NOT NULL, detail TEXT NOT NULL);
CREATE TABLE margins (id INTEGER PRIMARY KEY, step INTEGER NOT NULL, behavior TEXT NOT NULL,
  margins BLOB NOT NULL);
CREATE TABLE alerts (id INTEGER PRIMARY KEY, step INTEGER NOT NULL, behavior TEXT NOT NULL,
  level TEXT NOT NULL, detector TEXT NOT NULL, message TEXT NOT NULL, readings TEXT NOT NULL,
  forecast TEXT);
CREATE TABLE actions (id INTEGER PRIMARY KEY, step INTEGER NOT NULL, guard TEXT NOT NULL,
  applied INTEGER NOT NULL, detail TEXT NOT NULL);
"""
_TABLES = {"meta": "key", "readings": "id", "margins": "id", "alerts": "id", "actions": "id"}
# REPLACE deletes the old row without firing a delete trigger, hence the third one.
_APPEND_ONLY = """
CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table}
BEGIN SELECT RAISE(ABORT, 'the record is append-only'); END;
CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table}
BEGIN SELECT RAISE(ABORT, 'the record is append-only'); END;
CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table}
WHEN EXISTS (SELECT 1 FROM {table} WHERE {key} = NEW.{key})
BEGIN SELECT RAISE(ABORT, 'the record is append-only'); END;
"""
_READING_COLUMNS = "step, behavior, signal, value, unit, state, layer, detail"


def locate(path: str | Path) -> Path:
    """The record file that `path` names: a run's folder, or the file itself.

    Raises:
        RecordError: there is no record.
    """
    file = Path(path)
    file = file / FILE_NAME if file.is_dir() else file
    if not file.is_file():
        raise RecordError(f"no record at {path}: expected a run's folder with {FILE_NAME} in it")
    return file


def _address(file: Path) -> str:
    """The file as SQLite is to open it for reading.

    A closed record in a folder that may not be written to (a colleague's, an archive) has no
    write-ahead log, and SQLite could not make one: it is safe to read as immutable.
    """
    log = file.with_name(file.name + "-wal")
    closed = not log.exists() and not os.access(file.parent, os.W_OK)
    return f"{file.absolute().as_uri()}?mode=ro" + "&immutable=1" * closed


class Writer:
    """Appends to a new record. Rows are buffered for at most half a second.

    Args:
        folder: the run's folder, made where missing; None keeps the record in memory.

    Raises:
        RecordError: the folder already holds a record, or cannot be written.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.path = None if folder is None else Path(folder) / FILE_NAME
        if self.path is not None and self.path.exists():
            raise RecordError(
                f"{self.path} already holds a record, and a record is never overwritten: "
                "name another run"
            )
        try:
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            self.connection = sqlite3.connect(
                self.path or ":memory:", isolation_level=None, check_same_thread=False
            )
            self._create()
        except (OSError, sqlite3.Error) as error:
            raise RecordError(f"cannot write a record at {self.path}: {error}") from error
        self._pending: list[tuple[str, tuple[Any, ...]]] = []
        self._flushed = time.monotonic()

    def _create(self) -> None:
        self.connection.execute("PRAGMA journal_mode=WAL")
        self.connection.execute("PRAGMA synchronous=NORMAL")
        triggers = [_APPEND_ONLY.format(table=table, key=key) for table, key in _TABLES.items()]
        version = f"INSERT INTO meta VALUES ('format_version', '{VERSION}');"
        self.connection.executescript("BEGIN;" + _SCHEMA + "".join(triggers) + version + "COMMIT;")

    def meta(self, **facts: Any) -> None:
        """Write facts about the run, each name once, and commit at once.

        Raises:
            RecordError: a fact of that name is already written, or the disk is full.
        """
        known = Reader(self).meta()
        for key in facts:
            if key in known:
                raise RecordError(
                    f"the record {self.path} already holds {key!r} = {known[key]!r}, "
                    "and what is written stays"
                )
        rows = [(key, json.dumps(value, default=str)) for key, value in facts.items()]
        self._pending += [("INSERT INTO meta VALUES (?, ?)", row) for row in rows]
        self.flush()

    def readings(self, readings: Iterable[Reading]) -> None:
        """Append readings."""
        statement = f"INSERT INTO readings ({_READING_COLUMNS}) VALUES (?,?,?,?,?,?,?,?)"
        self._pending += [(statement, _row(reading)) for reading in readings]
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def margins(self, step: int, behavior: str, margins: np.ndarray) -> None:
        """Append the margins of all probes of a behaviour, shape (n_probes,)."""
        blob = np.asarray(margins, dtype="<f4").tobytes()
        statement = "INSERT INTO margins (step, behavior, margins) VALUES (?,?,?)"
        self._pending.append((statement, (step, behavior, blob)))

    def alert(self, alert: Alert) -> None:
        """Append an alert, and commit at once."""
        readings = json.dumps([asdict(reading) for reading in alert.readings])
        forecast = None if alert.forecast is None else _plain(alert.forecast)
        statement = (
            "INSERT INTO alerts (step, behavior, level, detector, message, readings, forecast) "
            "VALUES (?,?,?,?,?,?,?)"
        )
        row = (alert.step, alert.behavior, str(alert.level), alert.detector, alert.message)
        self._pending.append((statement, (*row, readings, forecast)))
        self.flush()

    def flush(self) -> None:
        """Commit what is pending.

        Raises:
            RecordError: the disk is full, the file locked or gone; nothing pending is dropped.
        """
        self._flushed = time.monotonic()
        if not self._pending:
            return
        try:
            self.connection.execute("BEGIN")
            for statement, row in self._pending:
                self.connection.execute(statement, row)
            self.connection.execute("COMMIT")
        except sqlite3.Error as error:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise RecordError(f"cannot write to the record {self.path}: {error}") from error
        self._pending.clear()

    def close(self) -> None:
        """Commit and close the file."""
        self.flush()
        self.connection.close()


class Reader:
    """Reads a record, also while another process writes it.

    Args:
        source: a run's folder or record file, or a `Writer` of this process.

    Raises:
        RecordError: no record there, not a record, or one of another version.
    """

    def __init__(self, source: str | Path | Writer) -> None:
        self._owned = not isinstance(source, Writer)
        if isinstance(source, Writer):
            source.flush()
            self.path, self.connection = source.path, source.connection
            return
        self.path = locate(source)
        try:
            self.connection = sqlite3.connect(_address(self.path), uri=True)
        except sqlite3.Error as error:
            raise RecordError(f"cannot open {self.path}: {error}") from error
        try:
            self._check_version()
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

    def _check_version(self) -> None:
        rows = self._rows("SELECT value FROM meta WHERE key = 'format_version'")
        version = rows[0][0] if rows else None
        if version != str(VERSION):
            raise RecordError(
                f"{self.path} has record format {version}; this Riprap reads {VERSION}"
            )

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        try:
            return self.connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise RecordError(f"{self.path} is not a record that can be read: {error}") from error

    def meta(self) -> dict[str, Any]:
        """Facts about the run."""
        return {key: json.loads(value) for key, value in self._rows("SELECT key, value FROM meta")}

    def readings(self) -> list[Reading]:
        """All readings, in the order they were made."""
        rows = self._rows(f"SELECT {_READING_COLUMNS} FROM readings ORDER BY id")
        return [_reading(*row) for row in rows]

    def margins(self, behavior: str) -> dict[int, np.ndarray]:
        """Margins of all probes by step, each of shape (n_probes,)."""
        query = "SELECT step, margins FROM margins WHERE behavior = ? ORDER BY id"
        rows = self._rows(query, behavior)
        return {step: np.frombuffer(blob, dtype="<f4") for step, blob in rows}

    def alerts(self) -> list[Alert]:
        """All alerts, in the order they were raised."""
        rows = self._rows(
            "SELECT step, behavior, level, detector, message, readings, forecast "
            "FROM alerts ORDER BY id"
        )
        return [_alert(row) for row in rows]


def _row(reading: Reading) -> tuple[Any, ...]:
    """A reading as SQLite takes it: numpy's numbers would be refused, and only at the commit."""
    value = None if reading.value is None else float(reading.value)
    named = (int(reading.step), reading.behavior, reading.signal, value)
    return (*named, reading.unit, str(reading.state), reading.layer, reading.detail)


def _plain(forecast: Forecast) -> str:
    """A forecast as JSON that any reader takes: "not within the horizon" is null."""
    numbers = asdict(forecast)
    known = {key: None if math.isinf(value) else value for key, value in numbers.items()}
    return json.dumps(known, allow_nan=False)


def _forecast(text: str) -> Forecast:
    numbers = json.loads(text)
    known: dict[str, Any] = {k: math.inf if v is None else v for k, v in numbers.items()}
    return Forecast(**known)


def _reading(
    step: int,
    behavior: str,
    signal: str,
    value: float | None,
    unit: str,
    state: str,
    layer: str,
    detail: str,
) -> Reading:
    return Reading(step, behavior, signal, value, unit, EvidenceState(state), layer, detail)


def _alert(row: tuple[Any, ...]) -> Alert:
    step, behavior, level, detector, message, readings, forecast = row
    caused = tuple(
        Reading(**(fields | {"state": EvidenceState(fields["state"])}))
        for fields in json.loads(readings)
    )
    return Alert(
        step,
        behavior,
        Level(level),
        detector,
        message,
        caused,
        None if forecast is None else _forecast(forecast),
    )
