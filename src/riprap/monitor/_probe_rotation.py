"""Parts of the probes in turn: each evaluation takes those whose last evaluation is oldest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from riprap.behaviors import Behavior, MarginFunction
from riprap.evaluation import ProbeResult, can_be_cut
from riprap.record import check_fields

MIN_PROBES = 4  # of a behavior, in a part
MAX_KEPT = 32  # parts of a behavior that are kept, to be evaluated again


class ProbeRotation:
    """The latest margin of each probe, when it was evaluated, and the parts that are due next.

    A behavior that is not divisible is evaluated as a whole each time.

    Attributes:
        results: latest margins of all probes, by behavior; of different steps, it may be.
        last_steps: step of the last evaluation of each probe, shape (n_probes,), by behavior.
    """

    def __init__(self) -> None:
        self.results: dict[str, ProbeResult] = {}
        self.last_steps: dict[str, np.ndarray] = {}
        self._parts: dict[str, dict[tuple[int, ...], Behavior]] = {}

    def note(
        self, step: int, name: str, result: ProbeResult, indices: np.ndarray | None = None
    ) -> ProbeResult:
        """Note the result of some probes, or of all; return the latest margins of all."""
        margins, known = result.margins, self.results.get(name)
        if indices is None or known is None:
            self.last_steps[name] = np.full(len(margins), step)
        else:
            margins = known.margins.copy()
            margins[indices] = result.margins
            self.last_steps[name][indices] = step
        self.results[name] = ProbeResult(margins, result.insufficient)
        return self.results[name]

    def whole_results(self, step: int) -> dict[str, ProbeResult]:
        """Return the results of the behaviors of which all probes were evaluated at a step."""
        return {
            name: self.results[name]
            for name, steps in self.last_steps.items()
            if (steps == step).all()
        }

    def next_parts(self, behaviors: Sequence[Behavior], n_parts: int) -> dict[str, np.ndarray]:
        """Return the indices of the probes to evaluate now, by behavior."""
        chosen = {}
        for behavior in behaviors:
            name = behavior.name
            last = self.last_steps.get(name)
            if last is None:
                continue
            if is_divisible(behavior):
                size = max(-(-len(last) // n_parts), min(MIN_PROBES, len(last)))
                # Probes of equal age are spread over the probe set, which may be sorted.
                order = np.lexsort((np.arange(len(last)) % n_parts, last))
                chosen[name] = np.sort(order[:size])
            else:
                chosen[name] = np.arange(len(last))
        return chosen

    def rest(self, step: int, name: str) -> np.ndarray:
        """Return the indices of the probes that were not evaluated at this step."""
        return np.flatnonzero(self.last_steps[name] != step)

    def n_new(self, step: int, name: str) -> int:
        """Return how many probes of a behavior were evaluated at a step."""
        return int((self.last_steps[name] == step).sum()) if name in self.last_steps else 0

    def part(self, behavior: Behavior, indices: np.ndarray) -> Behavior:
        """Return the behavior on some of its probes; the same object each time."""
        if len(indices) == len(self.last_steps[behavior.name]):
            return behavior
        parts = self._parts.setdefault(behavior.name, {})
        key = tuple(indices.tolist())
        if len(parts) > MAX_KEPT:
            parts.clear()
        if key not in parts:
            parts[key] = behavior.subset(key)
        return parts[key]

    def state_dict(self) -> dict[str, Any]:
        """Return the steps of the last evaluations, as plain values."""
        steps = {name: own.tolist() for name, own in self.last_steps.items()}
        margins = {name: own.margins.tolist() for name, own in self.results.items()}
        return {"last_steps": steps, "margins": margins}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: the state is malformed.
        """
        check_fields(state, last_steps=dict, margins=dict)
        self.results = {
            name: ProbeResult(np.array(margins, dtype=np.float64))
            for name, margins in state["margins"].items()
        }
        self.last_steps = {
            name: np.array(steps, dtype=np.int64) for name, steps in state["last_steps"].items()
        }


def is_divisible(behavior: Behavior) -> bool:
    """Return whether some of a behavior's probes can be evaluated without the others.

    Not where the margins say from all probes together whether they measure the behavior.
    """
    kind = type(behavior.margins)
    return can_be_cut(behavior) and kind.insufficiency is MarginFunction.insufficiency
