"""Reading a record piece by piece: what a window of new rows holds, thinned where it is much."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from riprap.record._layout import LOGS
from riprap.record._reader import TRAINING, Reader

TABLES = (*LOGS, "events", "superseded", "meta")


def position(reader: Reader) -> dict[str, int]:
    """Return the number of the last row of each table; tables that do not exist have 0."""
    known = {name for (name,) in reader._rows("SELECT name FROM sqlite_master")}
    found = dict.fromkeys(TABLES, 0)
    for table in TABLES:
        if table in known:
            found[table] = reader._rows(f"SELECT coalesce(max(rowid), 0) FROM {table}")[0][0]
    return found


@dataclass(frozen=True)
class Window:
    """The rows of a record between two positions, thinned by stretches of steps.

    A line drawn through the first, last, smallest and largest value of each stretch loses no spike.

    Args:
        after, until: numbers of the rows before the first and of the last, by table; see
            `position`.
        size: number of steps of a stretch; 1 leaves nothing out.
    """

    reader: Reader
    after: Mapping[str, int]
    until: Mapping[str, int]
    size: int = 1

    def last_step(self) -> int:
        """Return the last step of its rows; 0 without any."""
        steps = [self._rows(f"SELECT max(step) FROM {t} {self._where(t)}") for t in LOGS]
        events = "SELECT max(step) FROM events WHERE id > :after AND id <= :until"
        steps.append(self._events(events))
        return max((rows[0][0] for rows in steps if rows and rows[0][0] is not None), default=0)

    def readings(self, signals: Sequence[str]) -> dict[tuple[str, str], dict[int, float]]:
        """Return measured values by step of signals without layers, by behavior and signal."""
        names = ", ".join(f"'{name}'" for name in signals)
        own = (
            "SELECT readings.id AS id, behavior || char(0) || signal AS line, step, value, "
            f"step / {self.size} AS part FROM readings {self._where('readings')} "
            f"AND state = 'MEASURED' AND layer = '' AND signal IN ({names})"
        )
        lines = _extremes(self._rows(_M4.format(own=own)))
        found: dict[tuple[str, str], dict[int, float]] = {}
        for line, values in lines.items():  # a behavior's name may be any text
            behavior, _, signal = line.rpartition("\0")
            found[behavior, signal] = values
        return found

    def sums(self, signals: Sequence[str]) -> dict[tuple[str, str, str], dict[int, float]]:
        """Return the sums of measured values over each stretch, by behavior, signal and layer.

        Each sum stands at the last step of its stretch that has a value.
        """
        names = ", ".join(f"'{name}'" for name in signals)
        rows = self._rows(
            "SELECT behavior, signal, layer, max(step), sum(value) FROM readings "
            f"{self._where('readings')} AND state = 'MEASURED' AND signal IN ({names}) "
            f"GROUP BY behavior, signal, layer, step / {self.size} ORDER BY min(readings.id)"
        )
        found: dict[tuple[str, str, str], dict[int, float]] = {}
        for behavior, signal, layer, step, value in rows:
            found.setdefault((behavior, signal, layer), {})[step] = value
        return found

    def training(self, names: Sequence[str]) -> dict[str, dict[int, float]]:
        """Return numbers of the training by step, such as its loss, by their names.

        NaN where a number was not finite; the first one of each stretch is never left out.
        """
        found: dict[str, dict[int, float]] = {}
        # What was told of steps after the one from which a run was resumed does not stand.
        resumed = self._events("SELECT id, step FROM events WHERE kind = 'resumed'")
        stands = "".join(f" AND NOT (id < {at} AND step > {step})" for at, step in resumed)
        for name in names:
            own = (
                f"SELECT id, '{name}' AS line, step, json_extract(facts, '$.{name}') AS value, "
                f"step / {self.size} AS part FROM ({_TRAINING}) WHERE json_valid(facts) "
                f"AND json_type(facts, '$.{name}') IN ('real', 'integer', 'null') "
                f"AND (value IS NOT NULL OR is_old OR "
                f"json_type(facts, '$.not_finite.{name}') = 'text'){stands}"
            )
            found |= _extremes(self._events(_M4.format(own=own)))
        return found

    def margins(self) -> list[tuple[str, int, np.ndarray]]:
        """Return behavior, step and margins of the last evaluation of each stretch."""
        rows = self._rows(
            f"SELECT behavior, step, margins, max(margins.id) FROM margins "
            f"{self._where('margins')} GROUP BY behavior, step / {self.size} ORDER BY step"
        )
        with self.reader._wrap_damage():
            return [(b, int(step), np.frombuffer(blob, "<f4")) for b, step, blob, _ in rows]

    def alerts(self) -> list[dict[str, Any]]:
        """Return number, step, behavior and level of each alert."""
        query = f"SELECT alerts.id, step, behavior, level FROM alerts {self._where('alerts')}"
        rows = self._rows(f"{query} ORDER BY alerts.id")
        return [{"id": i, "step": s, "behavior": b, "level": v} for i, s, b, v in rows]

    def actions(self) -> list[dict[str, Any]]:
        """Return what the guards did: by stretch, how often each of them acted or did not."""
        rows = self._rows(
            "SELECT guard, applied, min(step), max(step), count(*) FROM actions "
            f"{self._where('actions')} GROUP BY guard, applied, step / {self.size} ORDER BY 3"
        )
        return [
            {"guard": g, "applied": bool(a), "step": s, "end": e, "count": n}
            for g, a, s, e, n in rows
        ]

    def _where(self, table: str) -> str:
        start, end = self.after[table], self.until[table]
        current = self.reader._current(table)
        return f"WHERE {table}.id > {start} AND {table}.id <= {end}{current}"

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        return self.reader._rows(query)

    def _events(self, query: str) -> list[tuple[Any, ...]]:
        """Ask the table of events, which a record of version 1 does not have."""
        start, end = self.after["events"], self.until["events"]
        query = query.replace(":after", str(start)).replace(":until", str(end))
        return self._rows(query) if end else []


# Records of before 0.1 name numbers that are not finite as JSON does not know them.
_TRAINING = (
    "SELECT id, step, NOT json_valid(facts) AS is_old, CASE WHEN json_valid(facts) THEN facts "
    "ELSE replace(replace(replace(facts, '-Infinity', 'null'), 'Infinity', 'null'), 'NaN', 'null') "
    f"END AS facts FROM events WHERE id > :after AND id <= :until AND kind = '{TRAINING}'"
)
# First, last, smallest and largest of each stretch. SQLite takes the other columns from the row of
# the minimum or the maximum. And the first one without a value.
_M4 = (
    "WITH own AS MATERIALIZED ({own}) SELECT line, step, value, id FROM ("
    + " UNION ALL ".join(
        f"SELECT line, step, value, id, {pick} FROM own GROUP BY line, part"
        for pick in ("min(id)", "max(id)", "min(value)", "max(value)")
    )
    + " UNION ALL SELECT line, step, value, id, min(id) FROM own WHERE value IS NULL "
    "GROUP BY line, part) ORDER BY id"
)


def _extremes(rows: list[tuple[Any, ...]]) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for line, step, value, _ in rows:  # of two values of one step, the later one counts
        found.setdefault(line, {})[step] = math.nan if value is None else value
    return {line: dict(sorted(values.items())) for line, values in found.items()}


def margins_at(reader: Reader, behavior: str, step: int) -> list[tuple[int, np.ndarray]]:
    """Return step and margins of the first evaluation, and of the last one up to `step`."""
    found = []
    current = reader._current("margins")
    for condition, order in (("1", "ASC"), (f"step <= {int(step)}", "DESC")):
        rows = reader._rows(
            f"SELECT step, margins FROM margins WHERE behavior = ? AND {condition}{current} "
            f"ORDER BY step {order}, margins.id DESC LIMIT 1",
            behavior,
        )
        found += rows
    with reader._wrap_damage():
        return [(int(at), np.frombuffer(blob, "<f4")) for at, blob in found]
