"""What each detector would have said, beside what happened: one row a run and behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.harness.preregistration import Preregistration
from experiments.toy.plan import NULL, Plan
from experiments.toy.simulate import TRUTH
from experiments.toy.tracker import HELD_OUT_EVERY
from riprap.detectors import SlopeDetector, Threshold, Track, judge_again, rebuild, score
from riprap.monitor import GROWTH, PATIENCE, Cadence
from riprap.record import Reader
from riprap.types import Alert, Level


@dataclass
class Run:
    """One finished run: its tracks as the monitor knew them, its alerts, and the truth.

    Attributes:
        folder: where its record lies.
        margins: (steps + 1, n_probes) by behaviour, at every step.
        truth: by behaviour, score on inputs that are no probes, every `HELD_OUT_EVERY` steps.
        costs: passes over the probes that the monitor made, in forward passes.
    """

    folder: Path
    condition: str
    seed: int
    tracks: dict[str, Track]
    alerts: list[Alert]
    margins: dict[str, np.ndarray]
    truth: dict[str, np.ndarray]
    costs: int

    @classmethod
    def load(cls, folder: Path, condition: str, seed: int) -> Run:
        """Read a run's record and truth."""
        reader = Reader(folder)
        readings = reader.readings()
        arrays = np.load(folder / TRUTH)
        floors = {b["name"]: b["floor"] for b in reader.meta()["behaviors"]}
        tracks = {
            name: rebuild(name, floor, reader.margins(name), readings, watched=len(floors))
            for name, floor in floors.items()
        }
        first = next(iter(floors))
        refreshed = sum(
            r.signal == "norm_margin_gradient" and r.behavior == first for r in readings
        )
        return cls(
            folder,
            condition,
            seed,
            tracks,
            reader.alerts(),
            {name: arrays[f"margins/{name}"] for name in floors},
            {name: arrays[f"truth/{name}"] for name in floors},
            len(tracks[first].steps) + 2 * refreshed,
        )

    def broke(self, name: str) -> int | None:
        """First step whose score on the probes was under the floor."""
        return _first([score(m) < self.tracks[name].floor for m in self.margins[name]])

    def broke_held_out(self, name: str) -> int | None:
        """As `broke`, on inputs that are no probes: to within `HELD_OUT_EVERY` steps, late."""
        index = _first(list(self.truth[name] < self.tracks[name].floor))
        return None if index is None else index * HELD_OUT_EVERY


def _first(hits: list[bool]) -> int | None:
    return next((step for step, hit in enumerate(hits) if hit), None)


Firsts = dict[Level, int | None]
Row = dict[str, object]


def first_by_level(alerts: list[Alert]) -> Firsts:
    """Step of the first alert at each level or above."""
    return {
        level: min((a.step for a in alerts if a.level.rank >= level.rank), default=None)
        for level in Level
    }


def says_forecast(run: Run, name: str) -> Firsts:
    """What the monitor itself said during the run."""
    return first_by_level(
        [a for a in run.alerts if a.behavior == name and a.detector == "forecast"]
    )


def says_trivial(run: Run, name: str, check: int) -> Firsts:
    """ "Alert at the k-th check unless the run is null." Knows the answer; a row to be beaten."""
    steps = run.tracks[name].steps
    at = steps[check - 1] if run.condition != NULL and len(steps) >= check else None
    return dict.fromkeys(Level, at)


def says_fixed(run: Run, name: str, fixed: list[Threshold]) -> Firsts:
    """Fixed thresholds on both signal families, whichever comes first; one level only."""
    alerts = [a for detector in fixed for a in judge_again(detector, run.tracks[name])]
    return dict.fromkeys(Level, min((a.step for a in alerts), default=None))


def says_slope(run: Run, name: str, slope: SlopeDetector, plan: Plan) -> tuple[Firsts, int]:
    """Realised margins extrapolated, by visits that are as many times denser as they are cheaper.

    Returns:
        what it said, and how many forward passes that took.
    """
    cadence = Cadence(
        max(plan.every // plan.slope_speedup, 1),
        growth=GROWTH * plan.slope_speedup,
        patience=PATIENCE * plan.slope_speedup,
    )
    track = Track(name, run.tracks[name].floor)
    alerts = []
    for step, margins in enumerate(run.margins[name]):
        if step == 0 or cadence.is_due(step, [track]):
            track.visit(step, margins)
            alerts.append(slope.check(track))
            cadence.plan(step, [slope.forecast(track)])
    said = first_by_level([alert for alert in alerts if alert is not None])
    return said, len(track.steps)


def judge(run: Run, preregistration: Preregistration) -> pd.DataFrame:
    """Rows of all detectors on one run.

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
    for name in run.tracks:
        by_slope, slope_cost = says_slope(run, name, slope, plan)
        said = {
            "forecast": (says_forecast(run, name), horizon, run.costs),
            "slope": (by_slope, horizon, slope_cost),
            "fixed thresholds": (says_fixed(run, name, fixed), plan.steps, run.costs),
            "trivial rule": (says_trivial(run, name, plan.trivial_check), plan.steps, 0),
        }
        rows += [_row(run, name, detector, *words) for detector, words in said.items()]
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
        **_verdict(run, name, critical, lead, horizon),
        "half_life": half_life(run.margins[name].mean(1)),
        "final_margin": float(run.margins[name][-1].mean()),
        "cost": cost,
    }


def _verdict(
    run: Run, name: str, critical: int | None, lead: int | None, horizon: int
) -> dict[str, bool]:
    """Whether a critical alert was false, or the run ended before its horizon could tell.

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
    """Steps in which the mean margin halves, from an exponential fitted while it is positive.

    None where it does not fall, or never moves by a tenth of its first value.
    """
    positive = means[: int(np.argmax(means <= 0))] if (means <= 0).any() else means
    if len(positive) < 3 or positive[-1] > 0.9 * positive[0]:
        return None
    rate = np.polyfit(np.arange(len(positive)), np.log(positive), 1)[0]
    return float(-np.log(2) / rate) if rate < 0 else None
