"""The record of one run, loaded for display."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from riprap._text import escape_control_chars, escape_nested, shorten
from riprap.conclusion import BehaviorOutcome, Blame, Conclusion, conclude, rows_to_blame
from riprap.evals import RunEvals, evals_of
from riprap.record import (
    COST,
    DEFAULT_FLOOR,
    FILE_NAME,
    TRAINING,
    Instructions,
    Reader,
    Series,
    Writer,
    instructions_of,
    numbers_from_facts,
)
from riprap.types import RUN, Action, Alert, BrokenProbe, Forecast, Level, OwnDetector, Reading

FORECASTS = ("forecast_median", "forecast_low", "forecast_high")
MAX_SIGNAL_LENGTH = 500  # a signal's name may contain the names of two behaviors


@dataclass(frozen=True)
class BehaviorInfo:
    """A behavior as described in the record, with the unit of its margins."""

    name: str
    floor: float = DEFAULT_FLOOR
    unit: str = ""
    categories: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Run:
    """Data of one run that a report shows.

    Attributes:
        margins: behavior → step → margins of all probes, shape (n_probes,).
        series: (behavior, signal, layer) → measured values by step.
        missing: readings that are not MEASURED: the first of each kind, count, last step.
        actions: actions of the guard.
        broken: behavior → probes that passed at the start and fail now.
        withdrawn: step at which an alert was withdrawn, by its place in `alerts`.
        cost: what the monitor cost, as its last event of this kind says; empty if there is none.
        evals: of the run's base and checkpoints.
        instructions: of fast–slow training; None: there were no cycles.
        blames: behavior that broke, or about which a warning was raised → rows that did most of it.
    """

    name: str
    conclusion: Conclusion
    meta: dict[str, Any]
    behaviors: list[BehaviorInfo]
    alerts: list[Alert]
    margins: dict[str, dict[int, np.ndarray]]
    series: dict[tuple[str, str, str], Series] = field(default_factory=dict)
    missing: list[tuple[Reading, int, int]] = field(default_factory=list)
    last_step: int = 0
    actions: list[Action] = field(default_factory=list)
    broken: dict[str, list[BrokenProbe]] = field(default_factory=dict)
    withdrawn: dict[int, int] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    blames: dict[str, Blame] = field(default_factory=dict)
    evals: RunEvals = field(default_factory=RunEvals)
    instructions: Instructions | None = None

    @property
    def title(self) -> str:
        """Title of the task, or the name of the run."""
        return str(self.meta.get("task") or self.notes.get("task") or self.name)

    @property
    def notes(self) -> dict[str, Any]:
        """Metadata that the user gave."""
        notes = self.meta.get("notes")
        return notes if isinstance(notes, dict) else {}

    @property
    def longest_gap(self) -> int | None:
        """The largest number of steps between two evaluations; None: the record does not say it."""
        gap = self.meta.get("longest_gap")
        return gap if isinstance(gap, int) and gap > 0 else None

    @property
    def is_running(self) -> bool:
        """True if no end of the run is recorded."""
        return not self.meta.get("ended")

    @property
    def has_readings(self) -> bool:
        """True if the record has readings or alerts."""
        return bool(self.series or self.missing or self.alerts)

    def outcome(self, behavior: str) -> BehaviorOutcome:
        """Outcome for one behavior."""
        return next(own for own in self.conclusion.outcomes if own.name == behavior)

    def values(self, behavior: str, signal: str) -> Series:
        """Measured values by step, of a signal without layers."""
        return self.series.get((behavior, signal, ""), Series())

    def forecast_at(self, behavior: str, step: int) -> Forecast | None:
        """Forecast of the probe evaluation at `step`; None if there is none.

        The `horizon` is 0 because readings do not contain it.
        """
        median, low, high = (self.values(behavior, name).get(step, math.inf) for name in FORECASTS)
        probability = self.values(behavior, "forecast_probability").get(step)
        if low == math.inf and probability is None:
            return None
        return Forecast(median, low, high, 0, probability)

    @property
    def warnings(self) -> list[tuple[Alert, int | None]]:
        """Last alert of each kind that concerns the run itself, or a behavior nobody measures.

        With the step at which it was withdrawn; None: it stands.
        """
        last = {
            (alert.detector, alert.behavior): (alert, self.withdrawn.get(place))
            for place, alert in enumerate(self.alerts)
            if alert.behavior == RUN or alert.detector == OwnDetector.UNMEASURED
        }
        return list(last.values())

    def alerts_of(self, behavior: str) -> list[Alert]:
        """Alerts about one behavior, in the order in which they were raised."""
        return [alert for alert in self.alerts if alert.behavior == behavior]

    def first_alerts(self, behavior: str) -> dict[Level, Alert]:
        """First alert of each level about one behavior."""
        first: dict[Level, Alert] = {}
        for alert in sorted(self.alerts_of(behavior), key=lambda alert: alert.step):
            first.setdefault(alert.level, alert)
        return first

    def stands(self, behavior: str, level: Level) -> bool:
        """True if an alert of this level about a behavior was not withdrawn."""
        return any(
            alert.level is level and alert.behavior == behavior and place not in self.withdrawn
            for place, alert in enumerate(self.alerts)
        )

    def broken_at(self, behavior: BehaviorInfo) -> int | None:
        """First evaluated step with a score under the floor; None if it started under the floor."""
        scores = self.values(behavior.name, "score")
        if self.below_floor_at_start(behavior):
            return None
        return next((step for step, score in scores.pairs() if score < behavior.floor), None)

    def below_floor_at_start(self, behavior: BehaviorInfo) -> bool:
        """True if the first score was already under the floor: there was nothing to lose."""
        return next(iter(self.values(behavior.name, "score").values()), 1.0) < behavior.floor


def load_run(source: str | Path | Writer) -> Run:
    """Read the whole record; control characters in its texts are escaped.

    Raises:
        RecordError: there is no readable record at `source`.
    """
    with Reader(source) as reader:
        conclusion = conclude(reader)
        meta, alerts, events = reader.meta(), reader.alerts(), reader.events()
        read, missing = reader.series(), reader.missing()
        actions, broken = reader.actions(), reader.broken_probes()
        withdrawn = reader.withdrawals()
        evals = RunEvals() if reader.path is None else evals_of(reader.path, meta)
        behaviors = _behaviors(reader.monitored(), reader.units("margin"))
        margins = {shorten(info.name): reader.margins(info.name) for info in behaviors}
        warned = {own.behavior for own in alerts if own.level.rank >= Level.WARNING.rank}
        blames = {
            shorten(info.name): rows_to_blame(reader, info.name, events=events)
            for info in behaviors
            if info.name in warned
        }
    last_steps = [max(series, default=0) for series in read.values()]
    last_steps += [last for _, _, last in missing] + [alert.step for alert in alerts]
    for event in events:
        if event["kind"] == TRAINING:
            for name, value in numbers_from_facts(event["facts"]).items():
                shown = value if math.isfinite(value) else math.nan  # a gap in the line
                read.setdefault((RUN, name, ""), Series()).add(event["step"], shown)
    return Run(
        name=shorten(_run_name(source)),
        conclusion=conclusion,
        meta=escape_nested(meta),
        behaviors=[
            replace(info, name=shorten(info.name), unit=shorten(info.unit)) for info in behaviors
        ],
        alerts=[_escape_texts(alert) for alert in alerts],
        margins=margins,
        series={
            (shorten(behavior), shorten(signal, MAX_SIGNAL_LENGTH), shorten(layer)): series
            for (behavior, signal, layer), series in read.items()
        },
        missing=[(_escape_texts(reading), n, last) for reading, n, last in missing],
        last_step=max(last_steps, default=0),
        actions=[
            replace(a, guard=shorten(a.guard), detail=escape_control_chars(a.detail))
            for a in actions
        ],
        broken={shorten(name): [*map(_escape_probe, own)] for name, own in broken.items()},
        withdrawn=withdrawn,
        blames=blames | dict(conclusion.blames),
        evals=evals,
        instructions=instructions_of(events),
        cost=next((event["facts"] for event in reversed(events) if event["kind"] == COST), {}),
    )


def _escape_probe(probe: BrokenProbe) -> BrokenProbe:
    texts = {"text": probe.text, "now": probe.now, "before": probe.before}
    escaped = {key: None if text is None else shorten(str(text)) for key, text in texts.items()}
    return replace(probe, **escaped)  # type: ignore[arg-type]


def _escape_texts(item: Any) -> Any:
    """Escape control characters in the texts of a reading or an alert."""
    texts: dict[str, Any] = {"behavior": shorten(item.behavior)}
    if isinstance(item, Reading):
        texts |= {"signal": shorten(item.signal, MAX_SIGNAL_LENGTH), "layer": shorten(item.layer)}
        return replace(item, **texts, detail=escape_control_chars(item.detail))
    texts |= {"detector": shorten(item.detector), "message": escape_control_chars(item.message)}
    return replace(item, **texts, readings=tuple(map(_escape_texts, item.readings)))


def _behaviors(named: list[dict[str, Any]], units: dict[str, str]) -> list[BehaviorInfo]:
    """Behaviors of a record, with the units of their margins."""
    return [
        BehaviorInfo(
            facts["name"],
            float(facts["floor"]),
            units.get(facts["name"], ""),
            tuple(facts["categories"]) if facts.get("categories") else None,
        )
        for facts in named
    ]


def _run_name(source: str | Path | Writer) -> str:
    path = source.path if isinstance(source, Writer) else Path(source).absolute()
    if path is None:
        return "Run"
    return path.parent.name if path.name == FILE_NAME else path.stem
