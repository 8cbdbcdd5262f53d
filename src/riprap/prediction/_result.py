"""Result of a prediction before training."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from riprap._formatting import format_steps
from riprap.detectors import score, threshold_margin
from riprap.types import Forecast

Array = np.ndarray
DROPPED = 0.10  # share of the rows whose removal is predicted
REPLAYED = (0.10, 0.25)  # shares of each step that are replaced by a behavior's own answers


@dataclass(frozen=True)
class Outlook:
    """What will become of a behavior, with all rows or after a change.

    Attributes:
        drift: first-order prediction of the mean margin's change by one step at full rate.
        forecast: step of the run at which the behavior breaks if it breaks within the planned
            steps, with the 80 % interval; `inf`: it does not fall.
        probability: of a break within the planned steps.
    """

    drift: float
    forecast: Forecast
    probability: float

    @property
    def predicts_break(self) -> bool:
        """Return whether a break within the planned steps is more likely than not."""
        return self.probability > 0.5

    def span(self) -> str:
        """Return when a break would come, if one does: "after 40 to 90 steps"."""
        forecast = self.forecast
        if not math.isfinite(forecast.low):
            return f"not within {format_steps(forecast.horizon)}"
        if not math.isfinite(forecast.high):
            return f"after {format_steps(forecast.low)} or later"
        if forecast.low == forecast.high:
            return f"after {format_steps(forecast.high)}"
        return f"after {forecast.low:,.0f} to {format_steps(forecast.high)}"


@dataclass(frozen=True)
class BehaviorPrediction:
    """Prediction for one behavior; arrays of rows are in the order of `Preflight.rows`.

    Attributes:
        name, floor: of the behavior.
        start_margins: before the warm start, shape (n_probes,).
        margins: after it.
        slopes: measured change of each margin by one step at full rate, towards the end of the
            warm start, shape (n_probes,).
        harm: predicted fall of the mean margin by one step at full rate on this row alone; below 0
            it rises; shape (rows,).
        normalized_harm: the same with each module's part of the gradient scaled to length 1.
        sqsd_like: a score like that of SQSD; see `sqsd_direction`.
        drift: first-order prediction of the mean margin's change by one step on all rows.
        outlook: what all rows will do, at the pace that the warm start has measured.
        ranking: rows by what they add to the fall, the worst first, as indices into the arrays.
        rows_for_half: number of the worst rows that do half of the fall; None: it does not fall.
        without_worst: outlook without the worst tenth of the rows; None: `explained` is False, or
            the behavior broke in the warm start.
        replay: outlook where a share of each step is replaced by the behavior's own answers, by
            share; empty in the same cases, and for a behavior without a protected loss.
    """

    name: str
    floor: float
    start_margins: Array
    margins: Array
    slopes: Array
    harm: Array
    normalized_harm: Array
    sqsd_like: Array
    drift: float
    outlook: Outlook
    ranking: Array
    rows_for_half: int | None
    without_worst: Outlook | None
    replay: dict[float, Outlook] = field(default_factory=dict)

    @property
    def threshold_margin(self) -> float:
        """The margin whose sign decides whether the behavior is broken, after the warm start."""
        return threshold_margin(self.margins, self.floor)

    @property
    def pace(self) -> float:
        """Measured change of the mean margin by one step at full rate."""
        return float(self.slopes.mean())

    @property
    def explained(self) -> bool:
        """Return whether the drift of the rows has the sign of the measured pace.

        If not, later terms outweigh the first order, and nothing is said of other mixes of rows.
        """
        return self.pace * self.drift > 0

    def __repr__(self) -> str:
        return (
            f"BehaviorPrediction({self.name!r}: probability of a break "
            f"{self.outlook.probability:.2f}, {self.outlook.span()})"
        )


@dataclass(frozen=True)
class Preflight:
    """Prediction of what a data set will do to behaviors; made by `riprap.preflight`.

    Attributes:
        behaviors: predictions by name.
        left_out: why a behavior has none, by name.
        rows: number of each scored row in the data set, shape (rows,).
        n_rows: rows of the data set.
        weights: tokens from which each row teaches; 1 with a loss of your own.
        tokens, loss, norm, random: baselines of each row: `weights`, the mean loss, the norm of its
            gradient (both averaged over the checkpoints), and a random number.
        steps: planned steps of the training.
        warm_steps: steps of the warm start, and `checkpoints`: those after which rows were scored.
        clipped: factor by which clipping shortens a step, averaged over the checkpoints.
        seconds: time by stage.
    """

    behaviors: dict[str, BehaviorPrediction]
    left_out: dict[str, str]
    rows: Array
    n_rows: int
    weights: Array
    loss: Array
    norm: Array
    random: Array
    steps: int
    warm_steps: int
    checkpoints: tuple[int, ...]
    clipped: float
    seconds: dict[str, float]

    @property
    def tokens(self) -> Array:
        """Length of each row: the tokens from which it teaches."""
        return self.weights

    @property
    def broken(self) -> list[str]:
        """Names of the behaviors that are predicted to break, the first one first."""
        found = [one for one in self.behaviors.values() if one.outlook.predicts_break]
        return [one.name for one in sorted(found, key=lambda one: one.outlook.forecast.median)]

    @property
    def scored(self) -> str:
        """How many rows were scored, of how many."""
        if len(self.rows) == self.n_rows:
            return f"{self.n_rows:,} rows"
        return f"{len(self.rows):,} of {self.n_rows:,} rows"

    @property
    def verdict(self) -> str:
        """The prediction in one or two sentences."""
        if self.broken:
            breaks = "; ".join(self._break_text(self.behaviors[name]) for name in self.broken)
            return f"This data set is predicted to break {breaks}."
        closest = max(self.behaviors.values(), key=lambda one: one.outlook.probability)
        return (
            f"No break is predicted within the configured {format_steps(self.steps)}; the closest "
            f"is {closest.name}, with a probability of {closest.outlook.probability:.2f}."
        )

    def _break_text(self, one: BehaviorPrediction) -> str:
        half = one.rows_for_half if one.explained else None
        whole = len(self.rows) == self.n_rows
        scored = f"{len(self.rows):,} rows" if whole else f"the {len(self.rows):,} scored rows"
        rows = "" if half is None else f", and {half:,} of {scored} do half of it"
        return f"{one.name} {one.outlook.span()} of the configured {self.steps:,}{rows}"

    def __repr__(self) -> str:
        return f"Preflight({self.scored}, {len(self.behaviors)} behaviors: {self.verdict})"

    def scores(self, name: str) -> dict[str, Array]:
        """Return the scores of the rows for a behavior, and the baselines, by name."""
        one = self.behaviors[name]
        own = {"harm": one.harm, "normalized_harm": one.normalized_harm}
        own |= {"sqsd_like": one.sqsd_like, "length": self.tokens, "loss": self.loss}
        return own | {"gradient_norm": self.norm, "random": self.random}

    def to_dict(self) -> dict[str, Any]:
        """Return everything as numbers, texts, lists and dicts; `inf` and NaN as None."""
        behaviors = {
            name: {
                "floor": one.floor,
                "score_at_start": score(one.start_margins),
                "score": score(one.margins),
                "threshold_margin": one.threshold_margin,
                "mean_margin_at_start": float(one.start_margins.mean()),
                "mean_margin": float(one.margins.mean()),
                "all_rows": _outlook(one.outlook),
                "rows_for_half": one.rows_for_half,
                "without_worst_tenth": None
                if one.without_worst is None
                else _outlook(one.without_worst),
                "pace_per_step": one.pace,
                "explained": one.explained,
                "replay": {f"{share:g}": _outlook(other) for share, other in one.replay.items()},
                "worst_rows": [int(self.rows[index]) for index in one.ranking[:20]],
                "rows": {key: _numbers(values) for key, values in self.scores(name).items()},
            }
            for name, one in self.behaviors.items()
        }
        return {
            "verdict": self.verdict,
            "predicted_to_break": self.broken,
            "behaviors": behaviors,
            "left_out": self.left_out,
            "rows": self.rows.tolist(),
            "n_rows": self.n_rows,
            "steps": self.steps,
            "warm_steps": self.warm_steps,
            "checkpoints": list(self.checkpoints),
            "clipped": self.clipped,
            "seconds": self.seconds,
        }


def _outlook(one: Outlook) -> dict[str, Any]:
    steps = {name: getattr(one.forecast, name) for name in ("low", "median", "high")}
    finite = {name: value if math.isfinite(value) else None for name, value in steps.items()}
    return {"drift_per_step": one.drift, "steps_to_break": finite, "probability": one.probability}


def _numbers(values: Array) -> list[float | None]:
    return [float(value) if math.isfinite(value) else None for value in values.tolist()]
