"""Alerts of every detector compared with the breaks: one row a run and behavior."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.harness.preregistration import Preregistration
from experiments.harness.recorded_run import RecordedRun, read_record
from experiments.toy.plan import NULL, Plan
from experiments.toy.simulate import HELD_OUT_EVERY
from riprap.detectors import BehaviorHistory, SlopeDetector, Threshold, reevaluate
from riprap.monitor import ProbeSchedule
from riprap.record import Reader
from riprap.types import Alert, Forecast, Level

FRESH = 0  # age of a protected gradient computed right before the step


@dataclass
class Comparison:
    """Predicted and realized change of one behavior's mean margin, in each compared step.

    Attributes:
        predicted: shape (ages + 1, steps), the freshest gradient first; NaN if none was as old.
        realized: shape (steps,).
    """

    predicted: np.ndarray
    realized: np.ndarray


def comparisons(run: Run) -> dict[str, Comparison]:
    """Return the comparisons of the run by behavior."""
    return {
        name: Comparison(
            np.vstack([run.arrays[f"predicted/{name}"], run.arrays[f"stale/{name}"]]),
            run.arrays[f"realised/{name}"],
        )
        for name in run.histories
        if f"predicted/{name}" in run.arrays
    }


def pooled(comparisons: Iterable[Comparison]) -> Comparison:
    """Concatenate the steps of several seeds."""
    parts = list(comparisons)
    return Comparison(
        np.hstack([part.predicted for part in parts]),
        np.concatenate([part.realized for part in parts]),
    )


Series = dict[str, list[tuple[int, float]]]


def series(run: Run) -> Series:
    """Return readings of the run as a whole: (step, value) by signal, one entry a layer."""
    values: Series = {}
    with Reader(run.folder) as reader:
        for reading in reader.readings():
            if reading.behavior == "" and reading.value is not None:
                values.setdefault(reading.signal, []).append((reading.step, reading.value))
    return values


def cells(runs: Iterable[Run]) -> dict[tuple[str, str], list[Run]]:
    """Group runs by (condition, behavior), in the order of the runs."""
    known = list(runs)
    names = list(dict.fromkeys(name for run in known for name in run.histories))
    conditions = list(dict.fromkeys(run.condition for run in known))
    return {
        (condition, name): [r for r in known if r.condition == condition and name in r.histories]
        for condition, name in product(conditions, names)
    }


@dataclass
class Run(RecordedRun):
    """One finished run, with the comparisons that its monitor did not see.

    Attributes:
        folder: folder of the record.
        arrays: as `simulate` returned them.
        cost: of the monitor's probe evaluations, in forward passes.
    """

    folder: Path
    arrays: Mapping[str, np.ndarray]
    cost: int

    @classmethod
    def load(cls, condition: str, seed: int, folder: Path, arrays: Mapping[str, np.ndarray]) -> Run:
        """Read a run's record; `arrays` are what `simulate` returned."""
        histories, alerts, readings = read_record(folder)
        first = next(iter(histories))
        refresh = ("norm_margin_gradient", first)
        refreshes = sum((r.signal, r.behavior) == refresh for r in readings)
        margins = {name: arrays[f"margins/{name}"] for name in histories}
        cost = len(histories[first].steps) + 2 * refreshes
        return cls(condition, seed, histories, alerts, margins, folder, arrays, cost)

    def broke_held_out(self, name: str) -> int | None:
        """Return the first break on held-out inputs, at most `HELD_OUT_EVERY` steps late."""
        below = np.flatnonzero(self.arrays[f"truth/{name}"] < self.histories[name].floor)
        return int(below[0]) * HELD_OUT_EVERY if len(below) else None


Firsts = dict[Level, int | None]
Row = dict[str, object]


def first_by_level(alerts: list[Alert]) -> Firsts:
    """Return the step of the first alert at each level or above."""
    return {
        level: min((a.step for a in alerts if a.level.rank >= level.rank), default=None)
        for level in Level
    }


def forecast_alerts(run: Run, name: str) -> Firsts:
    """Return the first alerts of the run's own monitor."""
    own = (name, "forecast")
    return first_by_level([a for a in run.alerts if (a.behavior, a.detector) == own])


def trivial_alerts(run: Run, name: str, check: int) -> Firsts:
    """Return the alerts of "alert at the k-th check unless the run is null", a baseline."""
    steps = run.histories[name].steps
    at = steps[check - 1] if run.condition != NULL and len(steps) >= check else None
    return dict.fromkeys(Level, at)


def fixed_alerts(run: Run, name: str, fixed: list[Threshold]) -> Firsts:
    """Return the first alert of fixed thresholds on both signal families; one level only."""
    alerts = [a for detector in fixed for a in reevaluate(detector, run.histories[name])]
    return dict.fromkeys(Level, min((a.step for a in alerts), default=None))


def slope_alerts(
    run: Run, name: str, slope: SlopeDetector, plan: Plan
) -> tuple[Firsts, dict[int, Forecast | None]]:
    """Extrapolate realized margins; probe evaluations are denser since each is cheaper.

    Returns:
        the first alerts, and the forecast at each probe evaluation by step.
    """
    schedule = ProbeSchedule(
        max(plan.every // plan.slope_speedup, 1),
        gap_divisor=ProbeSchedule.gap_divisor * plan.slope_speedup,
        evaluations_before_break=ProbeSchedule.evaluations_before_break * plan.slope_speedup,
    )
    history = BehaviorHistory(name, run.histories[name].floor)
    alerts, forecasts = [], {}
    for step, margins in enumerate(run.margins[name]):
        if step == 0 or schedule.is_due(step, [history]):
            history.add_margins(step, margins)
            alerts.append(slope.check(history))
            forecasts[step] = slope.forecast(history)
            schedule.plan(step, [forecasts[step]])
    return first_by_level([a for a in alerts if a is not None]), forecasts


def detector_rows(run: Run, preregistration: Preregistration) -> pd.DataFrame:
    """Return one row a detector and behavior of one run.

    Columns: detector, condition, seed, behavior, broke, broke_held_out, watch, warning, critical,
    lead, false_alarm, undecided (no break, but the run ended within the alert's horizon),
    half_life, final_margin, cost (forward passes over the probes).
    """
    plan = Plan.of(preregistration)
    forecast = preregistration.detector("forecast")
    terms = forecast.model_dump(exclude={"kind"})
    slope = SlopeDetector(**terms)
    fixed = [Threshold.parse({"level": "critical"} | t, "fixed threshold") for t in plan.fixed]
    rows = []
    horizon = terms["horizon"]
    for name in run.histories:
        by_slope, slope_forecasts = slope_alerts(run, name, slope, plan)
        by_detector = {
            "forecast": (forecast_alerts(run, name), horizon, run.cost),
            "slope": (by_slope, horizon, len(slope_forecasts)),
            "fixed thresholds": (fixed_alerts(run, name, fixed), plan.steps, run.cost),
            "trivial rule": (trivial_alerts(run, name, plan.trivial_check), plan.steps, 0),
        }
        rows += [_row(run, name, detector, *own) for detector, own in by_detector.items()]
    return pd.DataFrame(rows)


def _row(run: Run, name: str, detector: str, firsts: Firsts, horizon: int, cost: int) -> Row:
    broke, critical = run.broke(name), firsts[Level.CRITICAL]
    lead = None if broke is None or critical is None else broke - critical
    return {
        "detector": detector,
        "condition": run.condition,
        "seed": run.seed,
        "behavior": name,
        "broke": broke,
        "broke_held_out": run.broke_held_out(name),
        **{str(level): step for level, step in firsts.items()},
        "lead": lead,
        **_false_alarm(run, name, critical, lead, horizon),
        "half_life": half_life(run.margins[name].mean(1)),
        "final_margin": float(run.margins[name][-1].mean()),
        "cost": cost,
    }


def _false_alarm(
    run: Run, name: str, critical: int | None, lead: int | None, horizon: int
) -> dict[str, bool]:
    """Tell false critical alerts, and those whose horizon lies beyond the end of the run.

    On a null run every alert is false.
    """
    if critical is None:
        return {"false_alarm": False, "undecided": False}
    steps = len(run.margins[name]) - 1
    open_end = lead is None and critical + horizon > steps and run.condition != NULL
    return {
        "false_alarm": not open_end and (lead is None or lead > horizon),
        "undecided": open_end,
    }


def half_life(means: np.ndarray) -> float | None:
    """Fit an exponential to a mean margin while it is positive; return its half-life in steps.

    None if it does not fall, or falls by less than a tenth of its first value.
    """
    positive = means[: int(np.argmax(means <= 0))] if (means <= 0).any() else means
    if len(positive) < 3 or positive[-1] > 0.9 * positive[0]:
        return None
    rate = np.polyfit(np.arange(len(positive)), np.log(positive), 1)[0]
    return float(-np.log(2) / rate) if rate < 0 else None
