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

    @property
    def probability_text(self) -> str:
        """The probability with two digits; no forecast is certain, so none is 1.00."""
        return "> 0.99" if self.probability > 0.995 else f"{self.probability:.2f}"

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
        broke_at: step of the warm start at which an evaluation found the behavior broken; None: it
            did not break there. Then `outlook` has no forecast: its steps are those of the plan
            whose rates sum to as much, and its probability is 1 if the plan has them, else 0.
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
    broke_at: int | None = None

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

    @property
    def probability_text(self) -> str:
        """The probability of a break in the planned steps; "seen" is no forecast."""
        return self.outlook.probability_text if self.broke_at is None else "seen"

    @property
    def break_text(self) -> str:
        """When the behavior breaks if it does, or when the warm start has seen it break."""
        if self.broke_at is None:
            return self.outlook.span()
        return f"broke within the warm start, at step {self.broke_at}"

    def __repr__(self) -> str:
        return (
            f"BehaviorPrediction({self.name!r}: probability of a break {self.probability_text}, "
            f"{self.break_text})"
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
        notes: what was done otherwise than asked, in sentences.
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
    notes: tuple[str, ...] = ()

    @property
    def tokens(self) -> Array:
        """Length of each row: the tokens from which it teaches."""
        return self.weights

    @property
    def broken(self) -> list[str]:
        """Names of the behaviors that are predicted to break within the configured steps.

        A break seen in the warm start counts if the learning rates of the configured steps sum to
        as much. The first one comes first.
        """
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
        seen = [one for one in self.behaviors.values() if one.broke_at is not None]
        texts = [self._seen_text(one) for one in seen]
        expected = [self.behaviors[name] for name in self.broken]
        breaks = "; ".join(self._break_text(one) for one in expected if one.broke_at is None)
        if breaks:
            texts.append(f"This data set is predicted to break {breaks}.")
        others = [one for one in self.behaviors.values() if one.broke_at is None]
        if others and not breaks:
            closest = max(others, key=lambda one: one.outlook.probability)
            of = " of another behavior" if seen else ""
            texts.append(
                f"No break{of} is predicted within the configured {format_steps(self.steps)}; the "
                f"closest is {closest.name}, with a probability of "
                f"{closest.outlook.probability_text}."
            )
        return " ".join(texts)

    def _break_text(self, one: BehaviorPrediction) -> str:
        return f"{one.name} {one.outlook.span()} of the configured {self.steps:,}{self._half(one)}"

    def _seen_text(self, one: BehaviorPrediction) -> str:
        """Say that a behavior broke in the warm start: that was seen, and is no forecast."""
        text = f"{one.name} {one.break_text} of {self.warm_steps}"
        if math.isfinite(one.outlook.forecast.low):
            text += f": in the configured training that is {one.outlook.span()}"
        else:
            text += f"; the learning rates of the configured {format_steps(self.steps)} sum to less"
        return f"{text}{self._half(one)}."

    def _half(self, one: BehaviorPrediction) -> str:
        half = one.rows_for_half if one.explained else None
        whole = len(self.rows) == self.n_rows
        scored = f"{len(self.rows):,} rows" if whole else f"the {len(self.rows):,} scored rows"
        return "" if half is None else f", and {half:,} of {scored} do half of it"

    def __repr__(self) -> str:
        return f"Preflight({self.scored}, {len(self.behaviors)} behaviors: {self.verdict})"

    def scores(self, name: str) -> dict[str, Array]:
        """Return the scores of the rows for a behavior, and the baselines, by name."""
        one = self.behaviors[name]
        own = {"harm": one.harm, "normalized_harm": one.normalized_harm}
        own |= {"sqsd_like": one.sqsd_like, "length": self.tokens, "loss": self.loss}
        return own | {"gradient_norm": self.norm, "random": self.random}

    def to_dict(self) -> dict[str, Any]:
        """Return everything as numbers, texts, lists and dicts; `inf` and NaN as None.

        A break that the warm start has seen has its step as `broke_in_warm_start`, and None as
        probability.
        """
        behaviors = {
            name: {
                "floor": one.floor,
                "score_at_start": score(one.start_margins),
                "score": score(one.margins),
                "threshold_margin": one.threshold_margin,
                "mean_margin_at_start": float(one.start_margins.mean()),
                "mean_margin": float(one.margins.mean()),
                "broke_in_warm_start": one.broke_at,
                "all_rows": _outlook(one.outlook, one.broke_at),
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
            "notes": list(self.notes),
            "seconds": self.seconds,
        }


def _outlook(one: Outlook, broke_at: int | None = None) -> dict[str, Any]:
    steps = {name: getattr(one.forecast, name) for name in ("low", "median", "high")}
    finite = {name: value if math.isfinite(value) else None for name, value in steps.items()}
    probability = one.probability if broke_at is None else None  # what was seen is no forecast
    return {"drift_per_step": one.drift, "steps_to_break": finite, "probability": probability}


def _numbers(values: Array) -> list[float | None]:
    return [float(value) if math.isfinite(value) else None for value in values.tolist()]
