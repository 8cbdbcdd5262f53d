"""What a record says about its run, arranged for reading."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from riprap.report import _formatting as words
from riprap.report._run import Run, Watched
from riprap.types import Reading

_APART = {"behaviors", "protocol", "protocol_hash", "versions", "seeds", "started", "ended"}
_UNSAID = {"format_version", "task"}  # the one is the file's own, the other is the title


@dataclass(frozen=True)
class Lack:
    """Readings that were not measured for one and the same reason."""

    state: str
    behavior: str
    signals: str
    detail: str
    count: int
    steps: str


def lacks(run: Run) -> list[Lack]:
    """Readings that are not MEASURED, one entry for each state, behaviour and reason."""
    groups: dict[tuple[str, str, str], list[Reading]] = defaultdict(list)
    for reading in run.absent:
        groups[str(reading.state), reading.behavior, reading.detail].append(reading)
    order = ["ERROR", "NOT_RUN", "INSUFFICIENT"]
    return [
        Lack(state, behavior, _signals(readings), detail, len(readings), _steps(readings))
        for (state, behavior, detail), readings in sorted(
            groups.items(), key=lambda group: order.index(group[0][0])
        )
    ]


def _signals(readings: list[Reading]) -> str:
    named = [f"{r.signal} at {r.layer}" if r.layer else r.signal for r in readings]
    return ", ".join(dict.fromkeys(named))


def _steps(readings: list[Reading]) -> str:
    first, last = readings[0].step, max(reading.step for reading in readings)
    return f"step {first:,}" if first == last else f"steps {first:,} to {last:,}"


def behaviour_facts(run: Run, watched: Watched) -> str:
    """Score and mean margin from first to last visit, and the number of probes."""
    facts = []
    for signal, name, text in (
        ("score", "score", lambda value: words.score(value, watched.floor)),
        ("margin", "mean margin", words.number),
    ):
        values = list(run.of(watched.name, signal).values())
        if values:
            facts.append(f"{name} {text(values[0])} → {text(values[-1])}")
    probes = max(
        (len(margins) for margins in run.margins.get(watched.name, {}).values()), default=0
    )
    if probes:
        facts.append(f"{probes:,} probes")
    return " · ".join(facts)


def progress(run: Run) -> str:
    """How far the run has come, and when it was made."""
    visits = {step for watched in run.behaviors for step in run.of(watched.name, "score")}
    times = "once" if len(visits) == 1 else f"{len(visits):,} times"
    facts = [words.steps(run.last_step), f"probes visited {times}"]
    if run.running:
        facts.append("the record has no end: the run is still going, or was cut off")
    if run.meta.get("started"):
        facts.append(f"started {_moment(run.meta['started'])}")
    if run.meta.get("ended"):
        facts.append(f"ended {_moment(run.meta['ended'])}")
    return " · ".join(facts)


def _moment(value: Any) -> str:
    try:
        return datetime.fromisoformat(str(value)).strftime("%Y-%m-%d %H:%M:%S %Z").strip()
    except ValueError:
        return str(value)


def policy(run: Run) -> tuple[str, str]:
    """Name and content hash of the protocol."""
    named = run.meta.get("protocol", "not recorded")
    name = named.get("name", "unnamed") if isinstance(named, dict) else named
    return str(name), str(run.meta.get("protocol_hash") or "not recorded")


def tables(run: Run) -> dict[str, dict[str, str]]:
    """Facts by heading: versions, seeds."""
    found = {}
    for heading in ("versions", "seeds"):
        value = run.meta.get(heading)
        pairs = value.items() if isinstance(value, dict) else [("", value)]
        if value:
            found[heading] = {str(key): str(item) for key, item in pairs}
    return found


def documents(run: Run) -> dict[str, str]:
    """Longer facts by heading, as indented JSON: the protocol, the configuration, all the rest."""
    policy = run.meta.get("protocol")
    found = {"protocol": policy} if isinstance(policy, dict) else {}
    found |= {key: value for key, value in run.meta.items() if key not in _APART | _UNSAID}
    return {
        str(key): json.dumps(value, indent=2, ensure_ascii=False)
        for key, value in found.items()
        if value not in (None, {}, [], "")
    }
