"""Re-evaluation of a recorded history: any detector, on exactly what a monitor measured."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from riprap.detectors._base import Detector
from riprap.detectors._history import BehaviorHistory
from riprap.detectors._rate_schedule import RateSchedule
from riprap.record import PLAN, events_that_stand
from riprap.types import Alert, Reading

RATE_SUM = "rate_sum"  # signal of the run: the sum of the learning rates of all steps so far


def history_from_record(
    behavior: str,
    floor: float,
    margins: Mapping[int, np.ndarray],
    readings: Iterable[Reading],
    n_behaviors: int = 1,
    plans: Mapping[int, RateSchedule | None] | None = None,
) -> BehaviorHistory:
    """Rebuild the history of a behavior from its record.

    Args:
        margins: by step of the probe evaluation, shape (n_probes,).
        readings: all readings of the run; those of other behaviors are ignored.
        n_behaviors: number of behaviors that the run monitored.
        plans: what `plans_from_record` returns; None: judge without the rates to come.
    """
    history = BehaviorHistory(behavior, floor, n_behaviors=n_behaviors, plans=dict(plans or {}))
    readings = list(readings)
    rate_sums = {
        reading.step: reading.value
        for reading in readings
        if reading.signal == RATE_SUM and reading.value is not None
    }
    for step, values in margins.items():
        history.add_margins(step, values, rate_sums.get(step, math.nan))
    for reading in readings:
        if reading.behavior != behavior:
            continue
        if reading.signal == "interference":
            history.add_interference(reading.step, reading.value)
        elif reading.value is not None:
            history.signals.setdefault(reading.signal, []).append((reading.step, reading.value))
    history.schedule = history.schedule_at(max(history.steps, default=0))
    return history


def plans_from_record(events: Iterable[Mapping[str, Any]]) -> dict[int, RateSchedule | None]:
    """Return the plans of a run by the step from which each holds; None: from then on no plan.

    Args:
        events: those of `Reader.events`.
    """
    told = [(event["step"], event["facts"]) for event in events_that_stand(events, PLAN)]
    return {
        step: None if facts["steps"] is None else RateSchedule.from_facts(step, facts)
        for step, facts in told
    }


def reevaluate(detector: Detector, history: BehaviorHistory) -> list[Alert]:
    """Return the alert after each probe evaluation, where there was one."""
    alerts = [detector.check(known) for known in as_it_grew(history)]
    return [alert for alert in alerts if alert is not None]


def as_it_grew(history: BehaviorHistory) -> Iterator[BehaviorHistory]:
    """Yield what was known after each probe evaluation: one history, which grows.

    Equal to `history.truncated` at each step, in time that is linear in the length of the run.
    """
    known = BehaviorHistory(history.behavior, history.floor, n_behaviors=history.n_behaviors)
    interference = deque(sorted(history.interference.items()))
    readings = {name: deque(sorted(all_of, key=_step)) for name, all_of in history.signals.items()}
    evaluations = zip(history.steps, history.margins, history.rate_sums, strict=True)
    for step, margins, rate_sum in evaluations:
        while interference and interference[0][0] <= step:
            known.add_interference(*interference.popleft())
        for name, waiting in readings.items():
            while waiting and waiting[0][0] <= step:
                known.signals.setdefault(name, []).append(waiting.popleft())
        known.add_margins(step, margins, rate_sum)
        known.schedule = history.schedule_at(step)
        for event in ("diverged_step", "first_failure_step"):
            at = getattr(history, event)
            setattr(known, event, at if at is not None and at <= step else None)
        yield known


def _step(reading: tuple[int, float]) -> int:
    return reading[0]
