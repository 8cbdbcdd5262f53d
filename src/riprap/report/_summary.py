"""Facts about a run from its record: progress, missing readings, metadata."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from riprap._formatting import (
    FEW_SECONDS,
    format_cost,
    format_number,
    format_score,
    format_steps,
)
from riprap._glossary import signal_words
from riprap.conclusion import BehaviorOutcome, monitor_seconds
from riprap.detectors import Power
from riprap.report._run import BehaviorInfo, Run
from riprap.types import Reading

_SHOWN_ELSEWHERE = {"behaviors", "protocol", "protocol_hash", "versions", "seeds", "task"}
HEADINGS = {  # of facts that the page folds away
    "alert policy": "Rules by which alerts were raised (the alert policy)",
    "id": "Identifier of this run",
    "every": "Longest interval between two evaluations that was asked for, in steps",
    "longest_gap": "Longest interval between two evaluations that was planned, in steps",
    "layer": "Part of the model whose output was read as features",
    "notes": "Configuration and notes that were given with the run",
}
COUNTED = {
    "start": "evaluation at the start",
    "evaluations": "evaluations without gradients",
    "refreshes": "with gradients",
}
_HIDDEN = {"started", "ended", "format_version"}  # in the line of progress; version of the file


@dataclass(frozen=True)
class MissingReadings:
    """Readings that were not measured, all with the same status, behavior and reason."""

    state: str
    behavior: str
    signals: str
    detail: str
    count: int
    steps: str


def missing_readings(run: Run) -> list[MissingReadings]:
    """Group the readings that are not MEASURED by status, behavior and reason."""
    groups: dict[tuple[str, str, str], list[tuple[Reading, int, int]]] = defaultdict(list)
    for reading, count, last in run.missing:
        group = groups[str(reading.state), reading.behavior, reading.detail]
        group.append((reading, count, last))
    order = ["ERROR", "NOT_RUN", "INSUFFICIENT"]
    return [
        MissingReadings(
            state,
            behavior,
            _signals([reading for reading, _, _ in group]),
            detail,
            sum(count for _, count, _ in group),
            _step_range(group[0][0].step, max(last for _, _, last in group)),
        )
        for (state, behavior, detail), group in sorted(
            groups.items(), key=lambda item: order.index(item[0][0])
        )
    ]


def _signals(readings: list[Reading]) -> str:
    names = [signal_words(r.signal) + (f" at {r.layer}" if r.layer else "") for r in readings]
    return ", ".join(dict.fromkeys(names))


def _step_range(first: int, last: int) -> str:
    return f"step {first:,}" if first == last else f"steps {first:,} to {last:,}"


def headline(run: Run, own: BehaviorOutcome) -> str:
    """State, first alerts and lead of one behavior in one line."""
    parts = [str(own.state) if own.broke is None else f"broke at step {own.broke:,}"]
    parts += [
        f"first {level} at {alert.step:,}" + ("" if run.stands(own.name, level) else " (withdrawn)")
        for level, alert in run.first_alerts(own.name).items()
    ]
    if own.lead is not None:
        parts.append(f"lead {own.lead:,}")
    return " · ".join(parts)


def behavior_summary(run: Run, behavior: BehaviorInfo) -> str:
    """First and last score and mean margin, and the number of probes, in one line."""
    parts = []
    for signal, name, text in (
        ("score", "score", lambda value: format_score(value, behavior.floor)),
        ("margin", "mean margin", format_number),
    ):
        values = list(run.values(behavior.name, signal).values())
        if values:
            parts.append(f"{name} {text(values[0])} → {text(values[-1])}")
    margins = run.margins.get(behavior.name, {})
    if margins:
        count = len(margins[max(margins)])
        parts.append("1 probe" if count == 1 else f"{count:,} probes")
    return " · ".join(parts)


def power_text(run: Run, behavior: BehaviorInfo) -> str:
    """Return what the probes of a behavior could tell before training; empty without margins."""
    margins = run.margins.get(behavior.name, {})
    if not margins:
        return ""
    first = margins[min(margins)]
    power = Power.of(first, behavior.floor, behavior.categories, run.longest_gap)
    return f"At the start, {power}."


def run_progress(run: Run) -> str:
    """Steps, probe evaluations, start and end of a run in one line."""
    evaluated = {step for info in run.behaviors for step in run.values(info.name, "score")}
    count = "once" if len(evaluated) == 1 else f"{len(evaluated):,} times"
    parts = [format_steps(run.last_step), f"probes evaluated {count}"]
    if run.is_running:
        parts.append("no end recorded: the run is still in progress, or was interrupted")
    times = {key: run.meta.get(key) for key in ("started", "ended")}
    parts += [f"{key} {_format_time(value)}" for key, value in times.items() if value]
    return " · ".join(parts)


def cost_line(run: Run) -> str:
    """Time of the monitor, and where it matters its share, in one line; empty if not recorded."""
    share, budget = _number(run.cost.get("share")), _number(run.cost.get("budget"))
    if share is None:
        return ""
    seconds = monitor_seconds(run.cost)
    text = f"the monitor took {format_cost(share, seconds)}"
    if budget is not None and (seconds is None or seconds >= FEW_SECONDS):
        text += f" (budget: {budget:.1%})"
    parts = [
        f"{part} {format_number(seconds)} s"
        for part, value in _facts(run.cost.get("seconds"))
        if (seconds := _number(value))
    ]
    text += f": {', '.join(parts)}" if parts else ""
    counts = [
        f"{number:,.0f} {COUNTED[part]}"
        for part, value in _facts(run.cost.get("counts"))
        if part in COUNTED and (number := _number(value))
    ]
    cut = _number(run.cost.get("cut_urgency"))
    counts += [f"{cut:,.0f} times the budget could not pay for an urgent evaluation"] if cut else []
    return " · ".join([text, *counts])


def _facts(value: Any) -> list[tuple[str, Any]]:
    return [(str(key), item) for key, item in value.items()] if isinstance(value, dict) else []


def _number(value: Any) -> float | None:
    """Return a finite number of the record; None if it is something else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def _format_time(value: Any) -> str:
    try:
        return datetime.fromisoformat(str(value)).strftime("%Y-%m-%d %H:%M:%S %Z").strip()
    except ValueError:
        return str(value)


def policy_name_and_hash(run: Run) -> tuple[str, str]:
    """Name and content hash of the alert policy."""
    policy = run.meta.get("protocol", "not recorded")
    name = policy.get("name", "unnamed") if isinstance(policy, dict) else policy
    return str(name), str(run.meta.get("protocol_hash") or "not recorded")


def metadata_tables(run: Run) -> dict[str, dict[str, str]]:
    """Short metadata by heading: versions, seeds."""
    tables = {heading: run.meta.get(heading) for heading in ("versions", "seeds")}
    return {
        heading: {str(key): str(item) for key, item in value.items()}
        if isinstance(value, dict)
        else {"": str(value)}
        for heading, value in tables.items()
        if value
    }


def metadata_documents(run: Run) -> dict[str, str]:
    """Long metadata by heading, as indented JSON: alert policy, configuration, everything else."""
    policy = run.meta.get("protocol")
    documents = {"alert policy": policy} if isinstance(policy, dict) else {}
    shown = _SHOWN_ELSEWHERE | _HIDDEN
    documents |= {key: value for key, value in run.meta.items() if key not in shown}
    return {
        HEADINGS.get(key, str(key).replace("_", " ")): json.dumps(
            value, indent=2, ensure_ascii=False
        )
        for key, value in documents.items()
        if value not in (None, {}, [], "")
    }
