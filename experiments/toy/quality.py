"""The forecast judged as a forecast, and beside its rival that takes no gradient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from pydantic import PrivateAttr

from experiments.harness import markdown
from experiments.harness.markdown import number, share, spread
from experiments.harness.preregistration import Preregistration
from experiments.toy.analysis import Run, says_slope
from experiments.toy.plan import Plan
from riprap.detectors import ForecastDetector, SlopeDetector, Track
from riprap.types import Forecast, Level


class _Listening(SlopeDetector):
    """A slope detector that remembers what it forecast at each visit."""

    _said: dict[int, Forecast | None] = PrivateAttr(default_factory=dict)

    def forecast(self, track: Track) -> Forecast | None:
        self._said[track.step] = super().forecast(track)
        return self._said[track.step]


def said_by_forecast(run: Run, name: str, detector: ForecastDetector) -> dict[int, Forecast | None]:
    """The forecast that stood after each visit of the monitor."""
    track = run.tracks[name]
    return {step: detector.forecast(track.until(step)) for step in track.steps}


def said_by_slope(
    run: Run, name: str, detector: ForecastDetector, plan: Plan
) -> dict[int, Forecast | None]:
    """What the slope would have forecast at each of its own visits."""
    slope = _Listening(**detector.model_dump(exclude={"kind"}))
    says_slope(run, name, slope, plan)
    return slope._said


def forecasts(runs: Sequence[Run], preregistration: Preregistration) -> pd.DataFrame:
    """One row a visit before the break, or any visit where none came.

    Columns: detector, condition, seed, behavior, step, low, median, high (steps; NaN where nothing
    was forecast, inf beyond the horizon), remaining (steps until the break; NaN without one).
    """
    detector, plan = preregistration.detector("forecast"), Plan.of(preregistration)
    assert isinstance(detector, ForecastDetector)  # by its kind
    rows = []
    for run in runs:
        for name in run.tracks:
            broke = run.broke(name)
            said = {
                "forecast": said_by_forecast(run, name, detector),
                "slope": said_by_slope(run, name, detector, plan),
            }
            for kind, by_step in said.items():
                rows += [
                    (kind, run.condition, run.seed, name, step, *_numbers(forecast), broke)
                    for step, forecast in by_step.items()
                    if broke is None or step < broke
                ]
    columns = ["detector", "condition", "seed", "behavior", "step", "low", "median", "high"]
    frame = pd.DataFrame(rows, columns=[*columns, "broke"])
    frame["remaining"] = pd.to_numeric(frame.pop("broke")) - frame.step
    return frame


def _numbers(forecast: Forecast | None) -> tuple[float, float, float]:
    if forecast is None:
        return (float("nan"),) * 3
    return forecast.low, forecast.median, forecast.high


def measure(frame: pd.DataFrame, horizon: int) -> dict[str, float]:
    """How good forecasts were, over visits from which the break was within the horizon.

    A break can only be seen at a whole step, so forecasts are rounded up to one.

    Returns:
        breaks, visits, silent (nothing forecast yet), inside and closed (intervals that held the
        break; that end within the horizon), error and absolute (medians of forecast − true, in
        steps); critical and kept (forecasts inside the horizon; those followed by a break there).
    """
    near = frame[frame.remaining <= horizon]
    told = near[near["median"].notna()]
    low, median, high = (np.ceil(told[c].to_numpy(float)) for c in ("low", "median", "high"))
    true = told.remaining.to_numpy(float)
    error = median - true
    critical = frame[frame.high <= horizon]
    return {
        "breaks": float(len(near[["condition", "seed", "behavior"]].drop_duplicates())),
        "visits": float(len(near)),
        "silent": float(len(near) - len(told)),
        "inside": float(((low <= true) & (true <= high)).sum()),
        "closed": float(np.isfinite(high).sum()),
        "error": float(np.median(error)) if len(error) else float("nan"),
        "absolute": float(np.median(np.abs(error))) if len(error) else float("nan"),
        "critical": float(len(critical)),
        "kept": float((critical.remaining <= horizon).sum()),
    }


def forecast_quality(runs: Sequence[Run], preregistration: Preregistration) -> str:
    """Coverage and error of the 80 % interval, for the forecast and the slope."""
    frame = forecasts(runs, preregistration)
    detector = preregistration.detector("forecast")
    assert isinstance(detector, ForecastDetector)
    rows = []
    for kind in dict.fromkeys(frame.detector):
        own = frame[frame.detector == kind]
        parts = {"all": own} | {n: own[own.behavior == n] for n in dict.fromkeys(own.behavior)}
        rows += [_quality_row(kind, n, measure(p, detector.horizon)) for n, p in parts.items()]
    note = (
        f"\n\nOver every visit before a break from which the break was at most {detector.horizon} "
        "steps away. Error: median forecast minus true, ∞ where half of the forecasts said "
        '"not within the horizon". A closed interval ends within the horizon; an open one holds '
        "every later break, so coverage is to be read beside their share. Last column: over all "
        "visits before a break, or in runs without one."
    )
    return markdown.table(rows) + note


def _quality_row(kind: str, name: str, found: dict[str, float]) -> dict[str, object]:
    visits = int(found["visits"] - found["silent"])
    return {
        "detector": kind,
        "behaviour": name,
        "breaks": int(found["breaks"]),
        "forecasts": visits,
        "nothing said yet": int(found["silent"]),
        "break inside the 80 % interval": share(int(found["inside"]), visits),
        "intervals closed": share(int(found["closed"]), visits),
        "median error": number(found["error"], 1),
        "median absolute error": number(found["absolute"], 1),
        "critical forecasts kept": share(int(found["kept"]), int(found["critical"])),
    }


def interference_gain(frame: pd.DataFrame, runs: Sequence[Run]) -> str:
    """What interference adds over realised margins alone, paired by run and behaviour.

    Args:
        frame: rows of `judge`, of all runs.
    """
    pairs = paired(frame)
    broken = pairs[pairs.broke.notna()]
    rows = [_gain_row(broken, level) for level in (Level.WARNING, Level.CRITICAL)]
    false = [int(pairs[f"false_alarm_{kind}"].sum()) for kind in ("forecast", "slope")]
    costs = [frame[frame.detector == kind].cost.mean() for kind in ("forecast", "slope")]
    visits = np.mean([len(next(iter(run.tracks.values())).steps) for run in runs])
    text = (
        f"\n\nGain: steps by which the forecast alerted before the slope, in the {len(broken)} "
        f"pairs of run and behaviour that broke. False criticals in all {len(pairs)} pairs: "
        f"forecast {false[0]}, slope {false[1]}. Cost of a run in forward passes over the probes: "
        f"forecast {costs[0]:.0f} ({visits:.0f} visits and {costs[0] - visits:.0f} for "
        f"gradients), slope {costs[1]:.0f}.\n\n"
    )
    gain = float(gains(broken, Level.CRITICAL).median()) if len(broken) else float("nan")
    return markdown.table(rows) + text + conclusion(gain, false[0] - false[1])


def paired(frame: pd.DataFrame) -> pd.DataFrame:
    """Forecast and slope side by side: one row a run and behaviour."""
    keys = ["condition", "seed", "behavior"]
    forecast, slope = (frame[frame.detector == kind] for kind in ("forecast", "slope"))
    shared = slope.drop(columns=["detector", "broke"])
    return forecast.merge(shared, on=keys, suffixes=("_forecast", "_slope"), validate="1:1")


def gains(pairs: pd.DataFrame, level: Level) -> pd.Series:
    """Steps by which the forecast's first alert came before the slope's; NaN unless both did."""
    slope, forecast = (pairs[f"{level}_{kind}"].astype(float) for kind in ("slope", "forecast"))
    return (slope - forecast).dropna()


def _gain_row(pairs: pd.DataFrame, level: Level) -> dict[str, object]:
    found = gains(pairs, level)
    leads = {
        kind: pairs.broke.astype(float) - pairs[f"{level}_{kind}"].astype(float)
        for kind in ("forecast", "slope")
    }
    return {
        "level": str(level),
        "pairs": len(found),
        "gain, median [min, max]": spread(found.to_numpy()),
        "forecast earlier": int((found > 0).sum()),
        "same step": int((found == 0).sum()),
        "slope earlier": int((found < 0).sum()),
        **{f"before the break, {k}": share(int((v >= 1).sum()), len(v)) for k, v in leads.items()},
    }


def conclusion(gain: float, more_false: int) -> str:
    """What the numbers say, in words.

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
