"""Parts of the probes in turn: each evaluation takes those whose last evaluation is oldest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from riprap.behaviors import Behavior, PlainMargin, ProbeSet
from riprap.record import check_fields

MIN_PROBES = 4  # of a behavior, in a part


class ProbeRotation:
    """The step at which each probe was evaluated last, and the parts that are due next.

    A behavior whose probes cannot be selected, or whose margins are a plain function, is evaluated
    as a whole, once in so many evaluations.

    Attributes:
        last_steps: step of the last evaluation of each probe, shape (n_probes,), by behavior.
    """

    def __init__(self) -> None:
        self.last_steps: dict[str, np.ndarray] = {}
        self._waiting: dict[str, int] = {}  # evaluations that left a behavior out, in a row
        self._parts: dict[str, dict[tuple[int, ...], Behavior]] = {}

    def note(self, step: int, name: str, n_probes: int, indices: np.ndarray | None = None) -> None:
        """Note that probes were evaluated; None: all of them."""
        known = self.last_steps.get(name)
        if indices is None or known is None or len(known) != n_probes:
            self.last_steps[name] = np.full(n_probes, step)
        else:
            known[indices] = step
        self._waiting[name] = 0

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
            elif self._waiting[name] + 1 >= n_parts:
                chosen[name] = np.arange(len(last))
            else:
                self._waiting[name] += 1
        return chosen

    def rest(self, step: int, name: str) -> np.ndarray:
        """Return the indices of the probes that were not evaluated at this step."""
        return np.flatnonzero(self.last_steps[name] != step)

    def is_partial(self, step: int) -> bool:
        """Return whether some of the probes were evaluated at this step, and others before."""
        at = [steps == step for steps in self.last_steps.values()]
        return any(own.any() for own in at) and not all(own.all() for own in at)

    def part(self, behavior: Behavior, indices: np.ndarray) -> Behavior:
        """Return the behavior on some of its probes; the same object each time."""
        if len(indices) == len(self.last_steps[behavior.name]):
            return behavior
        parts = self._parts.setdefault(behavior.name, {})
        key = tuple(indices.tolist())
        if key not in parts:
            parts[key] = behavior.subset(key)
        return parts[key]

    def state_dict(self) -> dict[str, Any]:
        """Return the steps of the last evaluations, as plain values."""
        steps = {name: own.tolist() for name, own in self.last_steps.items()}
        return {"last_steps": steps, "waiting": dict(self._waiting)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: the state is malformed.
        """
        check_fields(state, last_steps=dict, waiting=dict)
        self.last_steps = {
            name: np.array(steps, dtype=np.int64) for name, steps in state["last_steps"].items()
        }
        self._waiting = dict(state["waiting"])


def is_divisible(behavior: Behavior) -> bool:
    """Return whether some of a behavior's probes can be evaluated without the others."""
    return isinstance(behavior.probes, ProbeSet) and not isinstance(behavior.margins, PlainMargin)
