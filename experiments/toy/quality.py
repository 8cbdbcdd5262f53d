"""Calibration of the forecast, compared with the slope detector that needs no gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from experiments.harness.markdown import count_of_total, median_range, number
from experiments.harness.preregistration import Preregistration
from experiments.toy.analysis import Run, slope_alerts
from experiments.toy.plan import Plan
from riprap.detectors import ForecastDetector, SlopeDetector
from riprap.types import Level


def forecasts(runs: Sequence[Run], preregistration: Preregistration) -> pd.DataFrame:
    """Return one row a probe evaluation before the break, if there is a break.

    Columns: detector, condition, seed, behavior, step, low, median, high (steps; NaN without a
    forecast, inf beyond the horizon), remaining (steps until the break; NaN without one).
    """
    detector, plan = preregistration.detector("forecast"), Plan.of(preregistration)
    assert isinstance(detector, ForecastDetector)  # by its kind
    slope = SlopeDetector(**detector.model_dump(exclude={"kind"}))
    rows = []
    for run in runs:
        for name, history in run.histories.items():
            broke = run.broke(name)
            by_detector = {
                "forecast": {s: detector.forecast(history.truncated(s)) for s in history.steps},
                "slope": slope_alerts(run, name, slope, plan)[1],
            }
            for kind, by_step in by_detector.items():
                for step, f in by_step.items():
                    if broke is None or step < broke:
                        steps = (np.nan,) * 3 if f is None else (f.low, f.median, f.high)
                        rows.append((kind, run.condition, run.seed, name, step, *steps, broke))
    columns = ["detector", "condition", "seed", "behavior", "step", "low", "median", "high"]
    frame = pd.DataFrame(rows, columns=[*columns, "broke"])
    frame["remaining"] = pd.to_numeric(frame.pop("broke")) - frame.step
    return frame


def measure(frame: pd.DataFrame, horizon: int) -> dict[str, float]:
    """Measure forecasts over probe evaluations with the break within the horizon.

    A break is only seen at a whole step, so forecasts are rounded up.

    Returns:
        breaks, visits (probe evaluations), silent (no forecast yet), inside (intervals that hold
        the break), closed (intervals that end within the horizon), error and absolute (medians of
        forecast − true and of its absolute value, in steps), critical (forecasts inside the
        horizon) and kept (those followed by a break there).
    """
    near = frame[frame.remaining <= horizon]
    known = near[near["median"].notna()]
    low, median, high = (np.ceil(known[c].to_numpy(float)) for c in ("low", "median", "high"))
    true = known.remaining.to_numpy(float)
    error = median - true
    critical = frame[frame.high <= horizon]
    return {
        "breaks": float(len(near[["condition", "seed", "behavior"]].drop_duplicates())),
        "visits": float(len(near)),
        "silent": float(len(near) - len(known)),
        "inside": float(((low <= true) & (true <= high)).sum()),
        "closed": float(np.isfinite(high).sum()),
        "error": float(np.median(error)) if len(error) else float("nan"),
        "absolute": float(np.median(np.abs(error))) if len(error) else float("nan"),
        "critical": float(len(critical)),
        "kept": float((critical.remaining <= horizon).sum()),
    }


def forecast_quality(runs: Sequence[Run], preregistration: Preregistration) -> dict[str, Any]:
    """Return the rows of coverage and error of the 80 % interval, and the horizon."""
    frame = forecasts(runs, preregistration)
    detector = preregistration.detector("forecast")
    assert isinstance(detector, ForecastDetector)
    rows = []
    for kind in dict.fromkeys(frame.detector):
        own = frame[frame.detector == kind]
        parts = {"all": own} | {n: own[own.behavior == n] for n in dict.fromkeys(own.behavior)}
        rows += [_quality_row(kind, n, measure(p, detector.horizon)) for n, p in parts.items()]
    return {"quality": rows, "horizon": detector.horizon}


def _quality_row(kind: str, name: str, measured: dict[str, float]) -> dict[str, object]:
    visits = int(measured["visits"] - measured["silent"])
    return {
        "detector": kind,
        "behavior": name,
        "breaks": int(measured["breaks"]),
        "forecasts": visits,
        "nothing said yet": int(measured["silent"]),
        "break inside the 80 % interval": count_of_total(int(measured["inside"]), visits),
        "intervals closed": count_of_total(int(measured["closed"]), visits),
        "median error": number(measured["error"], 1),
        "median absolute error": number(measured["absolute"], 1),
        "critical forecasts kept": count_of_total(int(measured["kept"]), int(measured["critical"])),
    }


def interference_gain(frame: pd.DataFrame, runs: Sequence[Run]) -> dict[str, Any]:
    """Return what interference adds to realized margins, paired by run and behavior.

    Args:
        frame: `detector_rows` of all runs.
    """
    pairs = paired(frame)
    broken = pairs[pairs.broke.notna()]
    rows = [_gain_row(broken, level) for level in (Level.WARNING, Level.CRITICAL)]
    kinds = ("forecast", "slope")
    false = tuple(int(pairs[f"false_alarm_{kind}"].sum()) for kind in kinds)
    costs = tuple(frame[frame.detector == kind].cost.mean() for kind in kinds)
    visits = np.mean([len(next(iter(run.histories.values())).steps) for run in runs])
    gain = float(gains(broken, Level.CRITICAL).median()) if len(broken) else float("nan")
    return {
        "gains": rows,
        "n_broken": len(broken),
        "n_pairs": len(pairs),
        "false": false,
        "costs": costs,
        "visits": visits,
        "refreshes": costs[0] - visits,
        "conclusion": conclusion(gain, false[0] - false[1]),
    }


def paired(frame: pd.DataFrame) -> pd.DataFrame:
    """Join forecast and slope: one row a run and behavior."""
    keys = ["condition", "seed", "behavior"]
    forecast, slope = (frame[frame.detector == kind] for kind in ("forecast", "slope"))
    shared = slope.drop(columns=["detector", "broke"])
    return forecast.merge(shared, on=keys, suffixes=("_forecast", "_slope"), validate="1:1")


def gains(pairs: pd.DataFrame, level: Level) -> pd.Series:
    """Return by how many steps the forecast alerted before the slope, where both alerted."""
    slope, forecast = (pairs[f"{level}_{kind}"].astype(float) for kind in ("slope", "forecast"))
    return (slope - forecast).dropna()


def _gain_row(pairs: pd.DataFrame, level: Level) -> dict[str, object]:
    measured = gains(pairs, level)
    leads = {
        kind: pairs.broke.astype(float) - pairs[f"{level}_{kind}"].astype(float)
        for kind in ("forecast", "slope")
    }
    return {
        "level": str(level),
        "pairs": len(measured),
        "gain, median [min, max]": median_range(measured.to_numpy()),
        "forecast earlier": int((measured > 0).sum()),
        "same step": int((measured == 0).sum()),
        "slope earlier": int((measured < 0).sum()),
        **{
            f"before the break, {k}": count_of_total(int((v >= 1).sum()), len(v))
            for k, v in leads.items()
        },
    }


def conclusion(gain: float, more_false: int) -> str:
    """Return the conclusion in words.

    Args:
        gain: median gain at `critical`, in steps.
        more_false: false criticals of the forecast beyond those of the slope.
    """
    false = "as many false criticals as"
    if more_false:
        false = f"{abs(more_false)} {'more' if more_false > 0 else 'fewer'} false criticals than"
    if np.isnan(gain):
        return "Nothing broke with alerts of both, so nothing can be said about the gain."
    if gain > 0:
        return (
            f"At `critical`, interference is worth a median of {number(gain, 1)} steps of lead, "
            f"with {false} the slope."
        )
    if more_false < 0:
        return (
            f"Interference adds no lead to an alarm (median gain {number(gain, 1)} steps); "
            f"it had {false} the slope."
        )
    return (
        f"Interference adds nothing for an alarm: median gain {number(gain, 1)} steps, with "
        f"{false} the slope. What it is then good for is attribution and guards."
    )
