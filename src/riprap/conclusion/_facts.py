"""What a record says, as far as the conclusion of its run needs it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from riprap._checks import is_number
from riprap._text import shorten
from riprap.conclusion._outcome import BehaviorOutcome, Course, State, judge, not_trained
from riprap.conclusion._restored import Restored, restored_behaviors
from riprap.conclusion._rows import Blame, rows_to_blame
from riprap.detectors import Power
from riprap.record import (
    CHECKPOINT,
    COST,
    GUARD,
    PLAN,
    STOP,
    TRAINING,
    Reader,
    events_that_stand,
    numbers_from_facts,
)
from riprap.types import RUN, Alert, Level, OwnDetector

MAX_REASON = 200  # characters
MAX_DOUBT = 500


@dataclass(frozen=True)
class Checkpoint:
    """A recorded checkpoint: step of the monitor, name of its folder, and if it is still there."""

    step: int
    name: str
    is_kept: bool


@dataclass(frozen=True)
class RunFacts:
    """What the record says, as far as the conclusion needs it.

    Attributes:
        courses: what was measured, by behavior.
        powers: what each set of probes can tell, by behavior.
        idle: the alert that training does nothing, if it stands; None else.
        unchanged: whether all margins are what they were at the start.
        alerts: of `warning` or above about a behavior, each with the step of its withdrawal, or
            None.
        losses: (step, loss) of the training, finite ones, as its integration recorded them.
        diverged: step since which the loss is not finite; None: the last one is finite.
        cost: share of the training time that the monitor took; None: not recorded.
        cost_seconds: the time itself; None: not recorded.
        from_file: whether the run was configured by the YAML file of `riprap watch`.
        stopped: last step at which training was asked to stop; None: it was not.
        stop_reason: beginning of the reason of the last stop, such as "stop_on='warning'".
        planned: last step of the plan that stands; None: none was given.
        exchanged: whether other weights were loaded after the last step.
        guards: names of the guards that changed training.
        idle_guard: name of a guard that was there and never did; empty: there was none.
        idle_reason: what its last action says of why, if there is one.
        doubts: what seemed wrong with a guard's old examples at the start, by behavior.
        asked: first step at which training was asked to stop; None: it was not.
        blames: rows that did most of it, by behavior that broke.
        restored: what brings a behavior back, by behavior, as a diagnosis has measured it.
        unused: sentences on the diagnoses in the run's folder that are not used.
    """

    outcomes: tuple[BehaviorOutcome, ...]
    courses: Mapping[str, Course]
    powers: Mapping[str, Power]
    checkpoints: Sequence[Checkpoint]
    idle: Alert | None
    unchanged: bool
    alerts: Sequence[tuple[Alert, int | None]]
    losses: Sequence[tuple[int, float]]
    diverged: int | None
    cost: float | None
    cost_seconds: float | None
    from_file: bool
    stopped: int | None
    stop_reason: str
    planned: int | None
    exchanged: bool
    first_step: int
    last_step: int
    guards: tuple[str, ...]
    idle_guard: str
    idle_reason: str
    doubts: Mapping[str, str]
    asked: int | None
    finished: bool
    blames: Mapping[str, Blame]
    restored: Mapping[str, Restored]
    unused: Sequence[str]

    @classmethod
    def read(cls, reader: Reader) -> RunFacts:
        """Read them from a record."""
        meta, recorded = reader.meta(), reader.events()
        events = events_that_stand(recorded)
        alerts, withdrawn = reader.alerts(), reader.withdrawals()
        actions = reader.actions()
        pairs = [(alert, withdrawn.get(place)) for place, alert in enumerate(alerts)]
        scores, final = reader.measured("score"), reader.measured("final_score")
        missing = [last for r, _, last in reader.missing() if r.signal == "margin"]
        evaluated = max([*(step for _, step, _ in scores), *missing], default=0)
        gap = meta.get("longest_gap")
        outcomes, courses, powers, unchanged, blames = [], {}, {}, [], {}
        for own in reader.monitored():
            name, floor, margins = shorten(own["name"]), own["floor"], reader.margins(own["name"])
            about = [pair for pair in pairs if pair[0].behavior == own["name"]]
            courses[name] = course = Course(
                name,
                floor,
                [(step, value) for of, step, value in scores if of == own["name"]],
                margins,
                next((value for of, _, value in reversed(final) if of == own["name"]), None),
                bool(final),
                evaluated,
            )
            outcomes.append(judge(course, about, actions))
            if (broke := outcomes[-1].broke) is not None:
                blames[name] = rows_to_blame(reader, own["name"], broke, recorded)
            if margins:
                steps = gap if isinstance(gap, int) and gap > 0 else None
                first, last = margins[min(margins)], margins[max(margins)]
                powers[name] = Power.of(first, floor, own.get("categories"), steps)
                unchanged.append(np.array_equal(first, last))
        about_run = [pair for pair in pairs if pair[0].behavior == RUN]
        idle = [
            a for a, until in about_run if a.detector == OwnDetector.NOT_TRAINING and until is None
        ]
        is_unchanged = bool(unchanged) and all(unchanged)
        if idle and is_unchanged:
            outcomes = [not_trained(own) for own in outcomes]
        losses, diverged = _losses(events)
        guards = tuple(dict.fromkeys(shorten(own.guard) for own in actions if own.applied))
        present = [own["facts"].get("name") for own in events if own["kind"] == GUARD]
        present = [shorten(name) for name in present if isinstance(name, str)]
        present += [shorten(own.guard) for own in actions]
        costs = [event["facts"] for event in events if event["kind"] == COST]
        cost = costs[-1] if costs else {}
        stops = sorted((e for e in events if e["kind"] == STOP), key=lambda e: int(e["step"]))
        reason = str(stops[-1]["facts"].get("reason") or "") if stops else ""
        restored, unused = restored_behaviors(reader)
        return cls(
            tuple(outcomes),
            courses,
            powers,
            _checkpoints(recorded),
            idle[-1] if idle else None,
            is_unchanged,
            [own for own in pairs if own[0].behavior and own[0].level.rank >= Level.WARNING.rank],
            losses,
            diverged,
            cost["share"] if _is_finite(cost.get("share")) else None,
            monitor_seconds(cost),
            _is_from_file(meta),
            stops[-1]["step"] if stops else None,
            shorten(reason.partition(": ")[0]),
            _planned_end(events),
            bool(final),
            min((step for _, step, _ in scores), default=0),
            max([evaluated, *(a.step for a in alerts), *(e["step"] for e in events)]),
            guards,
            "" if guards or not present else present[0],
            shorten(actions[-1].detail, MAX_REASON) if actions else "",
            _doubts(events),
            stops[0]["step"] if stops else None,
            bool(meta.get("ended")),
            blames,
            {shorten(name): own for name, own in restored.items()},
            unused,
        )

    @property
    def ended_early(self) -> bool:
        """True if the run ended before the last step of its plan."""
        return self.finished and self.planned is not None and self.last_step < self.planned

    def of(self, *states: State) -> list[BehaviorOutcome]:
        """Return the outcomes with one of these states."""
        return [own for own in self.outcomes if own.state in states]

    def keep_step(self) -> int | None:
        """Return the last evaluated step at which no watched behavior was under its floor."""
        return max((step for step, is_healthy in self._health() if is_healthy), default=None)

    def healthy_checkpoints(self) -> list[Checkpoint]:
        """Return the recorded checkpoints with healthy evaluations before and after them."""
        health = self._health()
        return [own for own in self.checkpoints if _is_healthy(own.step, health)]

    def _health(self) -> list[tuple[int, bool]]:
        """Return each evaluated step, and whether every watched behavior was above its floor."""
        watched = [own for own in self.outcomes if own.state is not State.NEVER_HAD]
        values = {own.name: dict(self.courses[own.name].scores) for own in watched}
        under: dict[str, bool] = {}
        found = []
        for step in sorted({step for own in values.values() for step in own}):
            for own in watched:
                if step in values[own.name]:
                    under[own.name] = values[own.name][step] < own.floor
            found.append((step, not any(under.values())))
        return found


def _checkpoints(events: Sequence[Mapping[str, Any]]) -> list[Checkpoint]:
    """Return the recorded checkpoints; the last event says which ones were still there.

    What a path holds is of its last event, also if that event is of a step that was taken again.
    """
    found = events_that_stand(events, CHECKPOINT)
    kept = found[-1]["facts"].get("kept") if found else None
    last = {_path(event): event for event in events if event["kind"] == CHECKPOINT}
    checkpoints = []
    for event in found:
        path = _path(event)
        name = "" if path is None else path.name
        is_there = path is None or last[path] is event
        is_kept = is_there and (not isinstance(kept, list) or name in kept)
        text = shorten(name) if name else f"the checkpoint of step {event['step']:,}"
        checkpoints.append(Checkpoint(event["step"], text, is_kept))
    return checkpoints


def _planned_end(events: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the last step of the plan that stands; None: none was given, or the run denied it."""
    plans = [event for event in events if event["kind"] == PLAN]
    steps = plans[-1]["facts"].get("steps") if plans else None
    return int(plans[-1]["step"]) + steps if isinstance(steps, int) else None


def _doubts(events: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return what seemed wrong with the old examples of the last guard, by behavior."""
    told = [event["facts"].get("doubts") for event in events if event["kind"] == GUARD]
    doubts = told[-1] if told and isinstance(told[-1], dict) else {}
    return {shorten(name): shorten(str(text), MAX_DOUBT) for name, text in doubts.items()}


def _losses(events: Sequence[Mapping[str, Any]]) -> tuple[list[tuple[int, float]], int | None]:
    """Return the finite losses, and the step since which there is none."""
    losses: list[tuple[int, float]] = []
    diverged: int | None = None
    for event in events:
        loss = numbers_from_facts(event["facts"]).get("loss") if event["kind"] == TRAINING else None
        if loss is None:
            continue
        if math.isfinite(loss):
            losses.append((event["step"], loss))
            diverged = None
        elif diverged is None:
            diverged = event["step"]
    return losses, diverged


def _path(event: Mapping[str, Any]) -> PurePath | None:
    path = event["facts"].get("path")
    return PurePath(path) if isinstance(path, str) and path else None


def monitor_seconds(cost: Mapping[str, Any]) -> float | None:
    """Return the seconds that the monitor took, from what it recorded of its cost."""
    parts = cost.get("seconds")
    found = list(parts.values()) if isinstance(parts, dict) else []
    return float(sum(found)) if found and all(map(_is_finite, found)) else None


def _is_from_file(meta: Mapping[str, Any]) -> bool:
    """Return whether the record holds the configuration of a `riprap watch`."""
    notes = meta.get("notes")
    config = notes.get("config") if isinstance(notes, dict) else None
    return isinstance(config, dict) and {"run_dir", "training", "data"} <= config.keys()


def _is_healthy(step: int, health: Sequence[tuple[int, bool]]) -> bool:
    before = [is_healthy for at, is_healthy in health if at <= step]
    after = [is_healthy for at, is_healthy in health if at >= step]
    return bool(before) and before[-1] and (not after or after[0])


def _is_finite(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)
