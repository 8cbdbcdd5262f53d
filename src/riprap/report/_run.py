"""One record, loaded for viewing."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from riprap._text import escape_control_chars, escape_nested, shorten
from riprap.record import FILE_NAME, FLOOR, Reader, Writer
from riprap.types import RUN, Alert, Forecast, Level, Reading, ReadingStatus

FORECASTS = ("forecast_median", "forecast_low", "forecast_high")
SIGNAL = 500  # characters of a signal's name, which may hold the names of two behaviours

Series = dict[int, float]  # a measured value by step


@dataclass(frozen=True)
class Watched:
    """A behaviour as its record describes it.

    Attributes:
        floor: the score under which it is broken.
        unit: of its margins.
    """

    name: str
    floor: float = FLOOR
    unit: str = ""


@dataclass(frozen=True)
class Run:
    """All that a report shows of one run.

    Attributes:
        margins: for each behaviour, the margins of all probes by step, each of shape (n_probes,).
        series: measured values by step, for each (behavior, signal, layer).
        absent: readings that are not MEASURED.
    """

    name: str
    meta: dict[str, Any]
    behaviors: list[Watched]
    alerts: list[Alert]
    margins: dict[str, dict[int, np.ndarray]]
    series: dict[tuple[str, str, str], Series] = field(default_factory=dict)
    absent: list[Reading] = field(default_factory=list)
    last_step: int = 0

    @property
    def title(self) -> str:
        """The task's title, or the name of the run."""
        return str(self.meta.get("task") or self.notes.get("task") or self.name)

    @property
    def notes(self) -> dict[str, Any]:
        """What the user noted about the run."""
        notes = self.meta.get("notes")
        return notes if isinstance(notes, dict) else {}

    @property
    def running(self) -> bool:
        """Whether the run has not said that it ended."""
        return not self.meta.get("ended")

    @property
    def measured(self) -> bool:
        """Whether there is anything to show at all."""
        return bool(self.series or self.absent or self.alerts)

    def of(self, behavior: str, signal: str) -> Series:
        """Measured values by step of a signal that belongs to no layer."""
        return self.series.get((behavior, signal, ""), {})

    def forecast_at(self, behavior: str, step: int) -> Forecast | None:
        """What the visit at `step` forecast; None where no break is in sight.

        Its `horizon` is 0: readings do not carry it.
        """
        median, low, high = (self.of(behavior, name).get(step, math.inf) for name in FORECASTS)
        return Forecast(median, low, high, horizon=0) if low < math.inf else None

    def alerts_of(self, behavior: str) -> list[Alert]:
        """Alerts about one behaviour, in the order they were raised."""
        return [alert for alert in self.alerts if alert.behavior == behavior]

    def first_alerts(self, behavior: str) -> dict[Level, Alert]:
        """The earliest alert of each level about one behaviour."""
        first: dict[Level, Alert] = {}
        for alert in sorted(self.alerts_of(behavior), key=lambda alert: alert.step):
            first.setdefault(alert.level, alert)
        return first

    def broken_at(self, watched: Watched) -> int | None:
        """First visited step whose score was under the floor, if it had been above it before."""
        scores = self.of(watched.name, "score")
        if self.under_at_start(watched):
            return None
        return next((step for step, score in scores.items() if score < watched.floor), None)

    def under_at_start(self, watched: Watched) -> bool:
        """Whether its first score was under the floor already: there was nothing to lose."""
        return next(iter(self.of(watched.name, "score").values()), 1.0) < watched.floor


def load(source: str | Path | Writer) -> Run:
    """Read the whole record, with its texts made harmless to show.

    Raises:
        RecordError: no record there, or not one that can be read.
    """
    with Reader(source) as reader:
        meta, readings, alerts = reader.meta(), reader.readings(), reader.alerts()
        behaviors = _behaviors(reader.behaviors(), readings)
        margins = {shorten(watched.name): reader.margins(watched.name) for watched in behaviors}
    raw: dict[tuple[str, str, str], Series] = defaultdict(dict)
    for reading in readings:
        if reading.value is not None:
            raw[reading.behavior, reading.signal, reading.layer][reading.step] = reading.value
    return Run(
        name=shorten(_name(source)),
        meta=escape_nested(meta),
        behaviors=[
            replace(watched, name=shorten(watched.name), unit=shorten(watched.unit))
            for watched in behaviors
        ],
        alerts=[_shown(alert) for alert in alerts],
        margins=margins,
        series={
            (shorten(behavior), shorten(signal, SIGNAL), shorten(layer)): series
            for (behavior, signal, layer), series in raw.items()
        },
        absent=[_shown(r) for r in readings if r.state is not ReadingStatus.MEASURED],
        last_step=max([r.step for r in readings] + [a.step for a in alerts], default=0),
    )


def _shown(what: Any) -> Any:
    """A reading or an alert with its texts made harmless to show."""
    texts: dict[str, Any] = {"behavior": shorten(what.behavior)}
    if isinstance(what, Reading):
        texts |= {"signal": shorten(what.signal, SIGNAL), "layer": shorten(what.layer)}
        return replace(what, **texts, detail=escape_control_chars(what.detail))
    texts |= {"detector": shorten(what.detector), "message": escape_control_chars(what.message)}
    return replace(what, **texts, readings=tuple(map(_shown, what.readings)))


def _behaviors(known: list[dict[str, Any]], readings: list[Reading]) -> list[Watched]:
    """The behaviours that the record names, or else those it has margins of."""
    margins = {r.behavior: r.unit for r in readings if r.signal == "margin"}
    named = known or [{"name": name, "floor": FLOOR} for name in margins if name != RUN]
    return [
        Watched(facts["name"], float(facts["floor"]), margins.get(facts["name"], ""))
        for facts in named
    ]


def _name(source: str | Path | Writer) -> str:
    path = source.path if isinstance(source, Writer) else Path(source).absolute()
    if path is None:
        return "Run"
    return path.parent.name if path.name == FILE_NAME else path.stem
