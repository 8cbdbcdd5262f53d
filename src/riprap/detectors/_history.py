"""What has been measured of one behaviour so far: all that a detector may know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor


def threshold_rank(n: int, floor: float) -> int:
    """Index, among n sorted margins, of the one whose sign decides whether the score is under.

    The score falls under the floor once more than (1 − floor)·n of the margins are at or below 0.
    """
    return min(int(np.floor((1 - floor) * n + 1e-9)), n - 1)


def threshold_margin(margins: np.ndarray, floor: float) -> float:
    """The deciding margin: the (⌊(1 − floor)·n⌋ + 1)-th smallest.

    Args:
        margins: shape (n,).
        floor: a score in (0, 1].
    """
    rank = threshold_rank(len(margins), floor)
    return float(np.partition(margins, rank)[rank])


def score(margins: np.ndarray) -> float:
    """Share of margins above 0."""
    return float((margins > 0).mean())


@dataclass
class BehaviorHistory:
    """The measured history of one behaviour.

    Attributes:
        steps, margins: steps of the visits, from 0, and the margins of all probes at each, (n,).
        predicted: r_b by step, for the steps at which it could be read.
        signals: other readings by signal name, as (step, value).
        looked_at: step of the last visit, also of one that brought no margins.
        lost_at: first visited step at which margins were no longer finite.
        fell_at: first visited step at which it was broken, where later steps were taken back.
        watched: how many behaviours the run watches; error rates of a run are split over them.
        lows: deciding margins worked out so far, so that none is worked out twice.
    """

    behavior: str
    floor: float
    steps: list[int] = field(default_factory=list)
    margins: list[np.ndarray] = field(default_factory=list)
    predicted: dict[int, float] = field(default_factory=dict)
    signals: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    last_probe_step: int = 0
    diverged_step: int | None = None
    first_failure_step: int | None = None
    n_behaviors: int = 1
    threshold_margin_cache: list[float] = field(default_factory=list, repr=False, compare=False)

    def add_margins(self, step: int, margins: np.ndarray) -> None:
        """Add one visit."""
        self.last_probe_step = step
        self.steps.append(step)
        self.margins.append(np.asarray(margins, dtype=np.float64))

    @property
    def step(self) -> int:
        """Step of the last visit."""
        return self.steps[-1]

    @property
    def threshold_margin(self) -> float:
        """The deciding margin at the last visit."""
        return threshold_margin(self.margins[-1], self.floor)

    @property
    def healthy_at_start(self) -> bool:
        """Whether there was something to lose."""
        return score(self.margins[0]) >= self.floor

    @property
    def broken_at(self) -> int | None:
        """First visited step whose score was under the floor, or whose margins were not finite."""
        under = [
            step
            for step, margins in zip(self.steps, self.margins, strict=True)
            if score(margins) < self.floor
        ]
        known = [step for step in (self.diverged_step, self.first_failure_step) if step is not None]
        return min(under[:1] + known, default=None)

    def predicted_since_last_probe(self) -> float:
        """Σ r_b over the steps after the last visit."""
        last = next(reversed(self.predicted), 0)  # steps come in their order
        return sum(self.predicted.get(step, 0.0) for step in range(self.last_probe_step + 1, last + 1))

    def series(self, signal: str) -> list[tuple[int, float]]:
        """A signal as it stood at the visits, as (step, value).

        Args:
            signal: name of a reading; "score", "margin" and "margin_low" always exist.
        """
        own: dict[str, Callable[[np.ndarray], float]] = {
            "score": score,
            "margin": lambda margins: float(np.mean(margins)),
            "margin_low": lambda margins: threshold_margin(margins, self.floor),
        }
        if signal in own:
            read = own[signal]
            return [(s, read(m)) for s, m in zip(self.steps, self.margins, strict=True)]
        visited = set(self.steps)  # signals of every step count at visits, live as in a record
        return [(s, value) for s, value in self.signals.get(signal, []) if s in visited]

    def truncated(self, step: int) -> BehaviorHistory:
        """The same history as it was known right after `step`."""
        count = sum(visited <= step for visited in self.steps)
        lost = None if self.diverged_step is None or self.diverged_step > step else self.diverged_step
        return BehaviorHistory(
            self.behavior,
            self.floor,
            self.steps[:count],
            self.margins[:count],
            {at: value for at, value in self.predicted.items() if at <= step},
            {
                name: [reading for reading in readings if reading[0] <= step]
                for name, readings in self.signals.items()
            },
            last_probe_step=self.steps[count - 1] if count else 0,
            diverged_step=lost,
            first_failure_step=None if self.first_failure_step is None or self.first_failure_step > step else self.first_failure_step,
            n_behaviors=self.n_behaviors,
            threshold_margin_cache=self.threshold_margin_cache[:count],
        )

    def state_dict(self) -> dict[str, Any]:
        """The history as plain values and tensors."""
        return {
            "steps": list(self.steps),
            "margins": [torch.from_numpy(margins.copy()) for margins in self.margins],
            "predicted": _pairs_to_tensor(list(self.predicted.items())),
            "signals": {name: _pairs_to_tensor(readings) for name, readings in self.signals.items()},
            "looked_at": self.last_probe_step,
            "lost_at": self.diverged_step,
            "fell_at": self.first_failure_step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a history that `state_dict` gave."""
        self.steps = list(state["steps"])
        self.margins = [margins.numpy().copy() for margins in state["margins"]]
        self.threshold_margin_cache = []
        self.predicted = dict(_tensor_to_pairs(state["predicted"]))
        self.signals = {name: _tensor_to_pairs(pairs) for name, pairs in state["signals"].items()}
        self.last_probe_step, self.diverged_step = state["looked_at"], state["lost_at"]
        self.first_failure_step = state.get("fell_at")


def _pairs_to_tensor(readings: list[tuple[int, float]]) -> Tensor:
    """(step, value) as a tensor of shape (n, 2), float64."""
    return torch.tensor(readings, dtype=torch.float64).reshape(-1, 2)


def _tensor_to_pairs(pairs: Tensor) -> list[tuple[int, float]]:
    return [(int(step), value) for step, value in pairs.tolist()]
