"""History of the measurements of one behavior, and the numbers derived from margins."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from riprap.detectors._derived import FROM_MARGINS, Derived, score
from riprap.detectors._rate_schedule import RateSchedule
from riprap.record import check_fields


@dataclass
class BehaviorHistory:
    """Measured history of one behavior.

    Attributes:
        steps, margins: step of each probe evaluation, from 0, and its margins, shape (n_probes,).
        rate_sums: sum of the learning rates of all steps until each evaluation; NaN: unknown.
        interference: r_b by step, in ascending order. An entry covers the steps since the entry
            before, or since the last probe evaluation before it; NaN: it could not be measured.
        signals: other readings by signal name, as (step, value).
        last_probe_step: step of the last probe evaluation, also of one that gave no margins.
        diverged_step: first evaluated step with margins that are not finite; None if there is none.
        first_failure_step: `broken_at` before the last rollback, which removed later measurements.
        n_behaviors: number of behaviors in the run, over which error rates are split.
        schedule: planned learning rates of the run; None: nobody knows.
        plans: of a recorded run: the schedule from each of these steps on; see `schedule_at`.
    """

    behavior: str
    floor: float
    steps: list[int] = field(default_factory=list)
    margins: list[np.ndarray] = field(default_factory=list)
    rate_sums: list[float] = field(default_factory=list)
    interference: dict[int, float] = field(default_factory=dict)
    signals: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    last_probe_step: int = 0
    diverged_step: int | None = None
    first_failure_step: int | None = None
    n_behaviors: int = 1
    schedule: RateSchedule | None = None
    plans: dict[int, RateSchedule | None] = field(default_factory=dict)
    _derived: Derived = field(default_factory=Derived, init=False, repr=False, compare=False)

    def add_margins(self, step: int, margins: np.ndarray, rate_sum: float = math.nan) -> None:
        """Append the margins of a probe evaluation; those of the same step are replaced.

        Args:
            rate_sum: sum of the learning rates of all steps so far; NaN: unknown.
        """
        if self.steps[-1:] == [step]:
            self._derived = self.derived.truncated(len(self.steps) - 1)
            del self.steps[-1], self.margins[-1], self.rate_sums[-1]
        self.last_probe_step = step
        self.steps.append(step)
        self.rate_sums.append(rate_sum)
        self.margins.append(np.asarray(margins, dtype=np.float64))

    @property
    def step(self) -> int:
        """Step of the last probe evaluation that gave margins."""
        return self.steps[-1]

    @property
    def threshold_margin(self) -> float:
        """Threshold margin at the last probe evaluation."""
        return self.series("margin_low")[-1][1]

    @property
    def steps_since_peak(self) -> int:
        """Number of steps since the threshold margin was last at its maximum."""
        return self.step - self.derived.peaks[-1][0]

    @property
    def derived(self) -> Derived:
        """Numbers that follow from the evaluations so far."""
        if len(self._derived.peaks) > len(self.margins):  # evaluations were taken away
            self._derived = Derived()
        self._derived.add_margins(self.steps, self.margins, self.floor)
        return self._derived

    @property
    def healthy_at_start(self) -> bool:
        """True if the score was at or above the floor before training."""
        return score(self.margins[0]) >= self.floor

    @property
    def broken_at(self) -> int | None:
        """First step with a score under the floor or margins not finite, even if rolled back.

        None if the behavior started under its floor: it had nothing to lose.
        """
        if self.steps and not self.healthy_at_start:
            return None
        known = (self.derived.first_under, self.diverged_step, self.first_failure_step)
        return min((step for step in known if step is not None), default=None)

    def add_interference(self, step: int, value: float | None) -> None:
        """Add r_b of the steps that end with `step`; None: it could not be measured.

        An entry that exists is kept, if there is no number to replace it.
        """
        if value is not None:
            self.interference[step] = value
        else:
            self.interference.setdefault(step, math.nan)

    def interference_since_last_probe(self) -> float:
        """Sum r_b over the steps after the last probe evaluation, where it was measured."""
        since = itertools.takewhile(
            lambda step: step > self.last_probe_step, reversed(self.interference)
        )
        values = [self.interference[step] for step in since]
        return float(sum([value for value in reversed(values) if not math.isnan(value)]))

    def latest_interference_per_step(self) -> float:
        """Return the last entry of r_b, divided by the steps it covers; NaN if it is unknown."""
        entries = itertools.islice(reversed(self.interference), 2)
        last, before = next(entries, 0), next(entries, 0)
        if not last:
            return math.nan
        evaluated = next((step for step in reversed(self.steps) if step < last), 0)
        return self.interference[last] / (last - max(before, evaluated))

    def series(self, signal: str) -> Sequence[tuple[int, float]]:
        """Return a signal at the probe evaluations, as (step, value).

        Args:
            signal: name of a reading; "score", "margin" and "margin_low" always exist.
        """
        if signal in FROM_MARGINS:
            return self.derived.series[signal]
        return self.derived.add_readings(signal, self.signals.get(signal, []))

    def schedule_at(self, step: int) -> RateSchedule | None:
        """Return the schedule that was known at an evaluation after `step`."""
        begun = [first for first in self.plans if first <= step]
        return self.plans[max(begun)] if begun else self.schedule

    def truncated(self, step: int) -> BehaviorHistory:
        """Return the history as it was right after `step`."""
        count = sum(evaluated <= step for evaluated in self.steps)

        def until(event: int | None) -> int | None:
            return None if event is None or event > step else event

        earlier = BehaviorHistory(
            self.behavior,
            self.floor,
            self.steps[:count],
            self.margins[:count],
            self.rate_sums[:count],
            {at: value for at, value in self.interference.items() if at <= step},
            {
                name: [reading for reading in readings if reading[0] <= step]
                for name, readings in self.signals.items()
            },
            last_probe_step=self.steps[count - 1] if count else 0,
            diverged_step=until(self.diverged_step),
            first_failure_step=until(self.first_failure_step),
            n_behaviors=self.n_behaviors,
            schedule=self.schedule_at(step),
            plans=self.plans,
        )
        earlier._derived = self._derived.truncated(count)
        return earlier

    def state_dict(self) -> dict[str, Any]:
        """Return the history as plain values and tensors."""
        return {
            "steps": list(self.steps),
            "margins": [torch.from_numpy(margins.copy()) for margins in self.margins],
            "rate_sums": torch.tensor(self.rate_sums, dtype=torch.float64),
            "predicted": _pairs_to_tensor(list(self.interference.items())),
            "signals": {name: _pairs_to_tensor(series) for name, series in self.signals.items()},
            "last_probe_step": self.last_probe_step,
            "diverged_step": self.diverged_step,
            "first_failure_step": self.first_failure_step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a history that `state_dict` returned.

        Raises:
            AttributeError, TypeError, ValueError: the state is malformed.
        """
        check_fields(
            state,
            steps=list,
            margins=list,
            rate_sums=Tensor,
            predicted=Tensor,
            signals=dict,
            last_probe_step=int,
            diverged_step=int | None,
            first_failure_step=int | None,
        )
        steps, margins = state["steps"], state["margins"]
        if not all(type(step) is int for step in steps) or sorted(set(steps)) != steps:
            raise ValueError("the steps of probe evaluations must be ascending integers")
        shapes = {tuple(part.shape) for part in margins}
        if len(margins) != len(steps) or len(shapes) > 1 or not all(map(_is_vector, shapes)):
            raise ValueError("every probe evaluation needs margins of shape (n_probes,)")
        if state["rate_sums"].shape != (len(steps),):
            raise ValueError("every probe evaluation needs a sum of learning rates, or NaN")
        series = [state["predicted"], *state["signals"].values()]
        if any(part.ndim != 2 or part.shape[1] != 2 for part in series):
            raise ValueError("the readings of a signal need shape (n, 2): step and value")
        if bool(state["predicted"].isinf().any()) or bool(state["predicted"][:, 0].isnan().any()):
            raise ValueError("interference must be a number or NaN, at a step")
        if not all(bool(part.isfinite().all()) for part in (*margins, *series[1:])):
            raise ValueError("a number is not finite")
        self.steps = list(steps)
        self.margins = [part.numpy().copy() for part in margins]
        self.rate_sums = state["rate_sums"].tolist()
        self._derived = Derived()
        self.interference = dict(_tensor_to_pairs(state["predicted"]))
        self.signals = {name: _tensor_to_pairs(pairs) for name, pairs in state["signals"].items()}
        self.last_probe_step, self.diverged_step = state["last_probe_step"], state["diverged_step"]
        self.first_failure_step = state["first_failure_step"]


def _is_vector(shape: tuple[int, ...]) -> bool:
    return len(shape) == 1 and shape[0] > 0


def _pairs_to_tensor(pairs: list[tuple[int, float]]) -> Tensor:
    """Return (step, value) pairs as a tensor of shape (n, 2), float64."""
    return torch.tensor(pairs, dtype=torch.float64).reshape(-1, 2)


def _tensor_to_pairs(pairs: Tensor) -> list[tuple[int, float]]:
    return [(int(step), value) for step, value in pairs.tolist()]
