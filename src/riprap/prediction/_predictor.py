"""Prediction of what a data set will do, by a warm start and passes over rows and probes."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from riprap._checks import check_count
from riprap._formatting import format_steps
from riprap.behaviors import Behavior, require_behaviors
from riprap.detectors import fewest_rows_for, score
from riprap.errors import ConfigError
from riprap.evaluation import calibrate, evaluate, loss_gradient
from riprap.linalg import Vector, clone, dot
from riprap.prediction._break_forecast import (
    Course,
    measured_slopes,
    without_rows,
)
from riprap.prediction._directions import by_module, harm_direction, sqsd_direction
from riprap.prediction._optimizer_response import OptimizerResponse
from riprap.prediction._result import (
    DROPPED,
    REPLAYED,
    BehaviorPrediction,
    Outlook,
    Preflight,
)
from riprap.prediction._row_pass import RowPass, pass_over_rows, score_batch
from riprap.prediction._training import Training

Array = np.ndarray
Progress = Callable[[str, int, int], None]  # name of a stage, how much is done, of how much
DEFAULT_WARM_STEPS, DEFAULT_CHECKPOINTS = 16, 2
RAMP = 4  # steps in which the rate of the warm start rises to its largest
PER_BEHAVIOR = 3  # directions with which the rows' gradients are multiplied
EVALUATIONS = 4  # of the probes in the warm start, beside the one before it
PACED = 3  # last of them, through which the pace is fitted
GRADIENT_COST = 3  # of a pass over probes with a gradient, in passes without


@dataclass
class _Checkpoint:
    """Rows scored after some steps of the warm start; lists are in the order of the behaviors."""

    rows: RowPass
    clipped: float
    replayed: list[float | None]  # change of the mean margin by a step on the behavior's answers


class Predictor:
    """Predictor of what a data set will do to behaviors; `run` trains `training.model`.

    Args:
        behaviors: those that start under their floor are left out, and named in the result.
        warm_steps: steps before the last checkpoint; at most half of the planned ones.
        checkpoints: how many times the rows are scored; the last time at the end.

    Attributes:
        behaviors: those that are predicted.
        left_out: why others are not, by name.
        notes: what is done otherwise than asked, in sentences.

    Raises:
        ConfigError: there are no rows or no behaviors, none of them can be predicted, the model has
            no gradients by row, or the optimizer cannot be read.
    """

    def __init__(
        self,
        training: Training,
        behaviors: Sequence[Behavior],
        warm_steps: int = DEFAULT_WARM_STEPS,
        checkpoints: int = DEFAULT_CHECKPOINTS,
    ) -> None:
        behaviors = require_behaviors(
            behaviors,
            "there are no behaviors whose harm could be predicted",
            "preflight(model, batches, [{}])",
        )
        if not len(training.batches):
            raise ConfigError("there are no rows whose harm could be predicted: give some")
        check_count("warm_steps", warm_steps)
        check_count("checkpoints", checkpoints)
        check_count("steps", len(training.schedule))
        self._training, self._model = training, training.model
        named = {n: p for n, p in self._model.named_parameters() if p.requires_grad}
        self._named: dict[str, Tensor] = dict(named)
        self._parameters: list[Tensor] = list(named.values())
        if not self._parameters:
            raise ConfigError("the model has no trainable parameter, so no row can harm it")
        largest = float(np.max(training.schedule))
        self._shares = np.asarray(training.schedule, dtype=float) / largest
        self._response = OptimizerResponse(training.optimizer, largest)
        planned = len(training.schedule)
        self._warm_steps = min(warm_steps, max(1, planned // 2))
        shares = np.arange(1, checkpoints + 1) / checkpoints
        self._checkpoints = sorted({max(1, round(self._warm_steps * share)) for share in shares})
        self._evaluated = sorted(
            {max(1, round(self._warm_steps * at / EVALUATIONS)) for at in range(1, EVALUATIONS + 1)}
        )
        self.notes: list[str] = []
        if self._warm_steps < warm_steps:
            self.notes.append(
                f"the warm start has {format_steps(self._warm_steps)}, not {warm_steps}: it takes "
                f"at most half of the {planned} planned ones"
            )
        if len(self._checkpoints) < checkpoints:
            self.notes.append(
                f"the rows are scored {_times(len(self._checkpoints))}, not {_times(checkpoints)}: "
                "at most once in each step of the warm start"
            )
        self.seconds: dict[str, float] = {}
        self.left_out: dict[str, str] = {}
        self._done, self._sum = 0, 0.0
        self._try_rows()
        self.behaviors, start = self._measurable(behaviors)
        self._sums, self._margins = [0.0], [start]  # at the evaluations of the probes

    def _try_rows(self) -> None:
        """Score one batch, so that a model without gradients by row is refused at the start."""
        training = self._training
        unused: Vector = [torch.zeros_like(parameter) for parameter in self._parameters]
        with self._timed("a batch of rows"):
            try:
                score_batch(
                    self._model, training.batches[0], [unused] * PER_BEHAVIOR, training.loss
                )
            except ConfigError as error:
                raise ConfigError(
                    f"the harm of single rows cannot be predicted: {error}; or train under a "
                    "Monitor, which needs no gradients by row"
                ) from error

    def _measurable(self, behaviors: Sequence[Behavior]) -> tuple[list[Behavior], list[Array]]:
        kept, margins = [], []
        with self._timed("the probes"):
            for given in behaviors:
                behavior = copy.copy(given)  # `calibrate` writes into its margins
                behavior.margins = copy.copy(given.margins)
                calibrate(behavior, self._model)
                found = evaluate(behavior, self._model)
                value = score(found.margins)
                if found.insufficient:
                    self.left_out[behavior.name] = found.insufficient
                elif value < behavior.floor:
                    self.left_out[behavior.name] = (
                        f"starts broken: its score {value:.2f} is under its floor "
                        f"{behavior.floor:.2f}"
                    )
                else:
                    kept.append(behavior)
                    margins.append(found.margins)
        if not kept:
            reasons = "; ".join(f"{name} {why}" for name, why in self.left_out.items())
            raise ConfigError(f"no behavior can be predicted to break: {reasons}")
        return kept, margins

    def estimate(self) -> dict[str, float]:
        """Take the first step of the warm start, and estimate the time of each stage in seconds."""
        if self._done == 0:
            self._step()
        n_batches, times = len(self._training.batches), len(self._checkpoints)
        probes = self.seconds["the probes"]
        return {
            "warm start": self.seconds["warm start"] / self._done * self._warm_steps,
            "rows": self.seconds["a batch of rows"] * n_batches * times,
            "probes": probes * (2 * GRADIENT_COST * times + EVALUATIONS),
        }

    def run(self, progress: Progress = lambda stage, done, total: None) -> Preflight:
        """Take the warm start, score the rows at its checkpoints, and predict."""
        found = []
        for step in range(1, self._warm_steps + 1):
            if self._done < step:  # `estimate` has taken the first one
                self._step()
            progress("warm start", step, self._warm_steps)
            if step in self._evaluated:
                with self._timed("probes"):
                    self._sums.append(self._sum)
                    self._margins.append([evaluate(b, self._model).margins for b in self.behaviors])
            if step in self._checkpoints:
                found.append(self._measure(progress))
        return self._result(found)

    def _step(self) -> None:
        rate = min(1.0, (self._done + 1) / min(RAMP, self._warm_steps))
        self._response.set_rate(rate)
        before = clone(self._parameters) if self._done == 0 else None
        with self._timed("warm start"):
            self._training.take_step()
        if before is not None and all(map(torch.equal, before, self._parameters)):
            raise ConfigError(
                "the first step of the warm start moved no weight: give an optimizer of the "
                "model's trainable parameters, a rate above 0 and rows with tokens to learn"
            )
        self._done += 1
        self._sum += rate

    def _measure(self, progress: Progress) -> _Checkpoint:
        training, scales = self._training, self._response.scales(self._parameters)
        directions: list[Vector] = []
        replayed: list[float | None] = []
        for at, behavior in enumerate(self.behaviors):
            progress("gradients of the probes", at, len(self.behaviors))
            own, answers = self._directions(behavior, scales)
            directions += own
            replayed.append(answers)
        with self._timed("rows"):
            rows = pass_over_rows(
                self._model,
                training.batches,
                directions,
                training.loss,
                lambda done, total: progress("rows", done, total),
            )
        if not (np.isfinite(rows.products).all() and np.isfinite(rows.loss).all()):
            raise ConfigError(
                f"losses or gradients are not finite after {self._done} steps of the warm start: "
                "the training would diverge; lower the learning rate, or look at the rows"
            )
        clipped = 1.0
        if training.max_grad_norm:
            length = rows.step_gradient_norm(training.rows_per_step)
            clipped = min(1.0, training.max_grad_norm / length) if length > 0 else 1.0
        return _Checkpoint(
            rows, clipped, [None if one is None else one * clipped for one in replayed]
        )

    def _directions(self, behavior: Behavior, scales: Vector) -> tuple[list[Vector], float | None]:
        """Return the three directions of a behavior, and the effect of its own answers."""
        with self._timed("probes"):
            gradient = evaluate(behavior, self._model, self._parameters).gradient
            if gradient is None:
                raise ConfigError(
                    f"behavior {behavior.name!r} has no gradient in the trainable parameters, so "
                    "its harm cannot be predicted: give a margin that is differentiable in them"
                )
            answers = loss_gradient(behavior, self._model, self._parameters)
        harm = harm_direction(gradient, scales)
        danger: Vector = [-part for part in gradient]
        safety = gradient if answers is None else [-part for part in answers]
        own = [
            harm,
            by_module(harm, gradient, list(self._named)),
            sqsd_direction(self._named, danger, safety),
        ]
        return own, None if answers is None else -float(dot(harm, answers))

    def _result(self, found: list[_Checkpoint]) -> Preflight:
        training = self._training
        weights = found[-1].rows.weights
        predictions = {}
        with self._timed("probes"):
            for at, behavior in enumerate(self.behaviors):
                predictions[behavior.name] = self._predict(at, behavior, found, weights)
        rng = np.random.default_rng(0)
        return Preflight(
            predictions,
            self.left_out,
            training.rows,
            training.n_rows,
            weights,
            np.mean([one.rows.loss for one in found], axis=0),
            np.mean([one.rows.norm for one in found], axis=0),
            rng.random(len(weights)),
            len(training.schedule),
            self._warm_steps,
            tuple(self._checkpoints),
            float(np.mean([one.clipped for one in found])),
            dict(self.seconds),
            tuple(self.notes),
        )

    def _predict(
        self, at: int, behavior: Behavior, found: list[_Checkpoint], weights: Array
    ) -> BehaviorPrediction:
        first = PER_BEHAVIOR * at
        harm, normalized, sqsd = (
            np.array([one.rows.products[first + place] for one in found])
            for place in range(PER_BEHAVIOR)
        )
        clipped = np.array([one.clipped for one in found])[:, None]
        harm, normalized = (harm * clipped).mean(0), (normalized * clipped).mean(0)
        course, broke_at = self._course(at, behavior)
        falls = weights * harm
        drift = -float(falls.sum() / weights.sum())
        ranking = np.argsort(-falls, kind="stable")
        kept = without_rows(weights, ranking[: round(DROPPED * len(ranking))])
        without_worst, replay = None, {}
        # Else the rows do not explain what was measured, or nothing is left to forecast.
        if course.slopes.mean() * drift > 0 and course.broke is None:
            without_worst = outlook(course, drift, -float(kept @ harm / kept.sum()))
            answers = [one.replayed[at] for one in found]
            if all(one is not None for one in answers):
                effect = float(np.mean(np.array(answers, dtype=float)))
                mixed = {share: (1 - share) * drift + share * effect for share in REPLAYED}
                replay = {share: outlook(course, drift, to) for share, to in mixed.items()}
        return BehaviorPrediction(
            behavior.name,
            behavior.floor,
            self._margins[0][at],
            self._margins[-1][at],
            course.slopes,
            harm,
            normalized,
            sqsd.mean(0),
            drift,
            outlook(course, drift, drift),
            ranking,
            fewest_rows_for(0.5, falls),
            without_worst,
            replay,
            broke_at,
        )

    def _course(self, at: int, behavior: Behavior) -> tuple[Course, int | None]:
        """Return the course of a behavior's margins in the warm start, and the step of a break."""
        margins = [one[at] for one in self._margins]
        broken = [score(one) < behavior.floor for one in margins]
        first = broken.index(True) if any(broken) else None
        course = Course(
            margins[-1],
            measured_slopes(self._sums[-PACED:], margins[-PACED:]),
            behavior.floor,
            self._shares,
            self._sum,
            None if first is None else (self._sums[first - 1], self._sums[first]),
        )
        return course, None if first is None else self._evaluated[first - 1]

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def outlook(course: Course, drift: float, changed: float) -> Outlook:
    """Return what will become of a behavior if the rows' drift is changed from `drift`."""
    forecast, probability = course.forecast(1.0 if changed == drift else changed / drift)
    return Outlook(changed, forecast, probability)
