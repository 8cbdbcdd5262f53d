"""Meter of the time that a monitor takes beside training."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from riprap.record import check_fields

RECENT_STEPS = 32  # whose median is the duration of a step
OWN_PARTS = ("start", "hooks", "interference", "evaluations", "refreshes")  # of the monitor
PASSES = frozenset(("start", "interference", "evaluations", "refreshes"))  # they wait for it


@dataclass
class CostMeter:
    """Seconds of training, and of each part of the monitor.

    Everything between the start of the watch and now that is not the monitor's is training, except
    the part "guard": what a guard does belongs to neither.

    Attributes:
        clock: returns the time in seconds.
        seconds: seconds by part; see `OWN_PARTS`.
        counts: how often each part ran.
        steps: optimizer steps seen.
    """

    clock: Callable[[], float] = time.perf_counter
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(OWN_PARTS, 0.0))
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OWN_PARTS, 0))
    steps: int = 0
    _open: list[str] = field(default_factory=list)  # parts that run now, the innermost last
    _since: float | None = None  # when the present part, or training, began
    _training: float = 0.0
    _in_step: float = 0.0  # seconds of training since the last step
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_STEPS))

    @contextmanager
    def measure(self, part: str, new: bool = True) -> Iterator[None]:
        """Add the time of a `with` block to a part; an inner block is not counted in the outer.

        Args:
            new: whether `counts` goes up.
        """
        if part in PASSES:
            _synchronize()
        self._charge()
        self._open.append(part)
        try:
            yield
        finally:
            if part in PASSES:
                _synchronize()
            self._charge()
            self._open.pop()
            self.counts[part] = self.counts.get(part, 0) + new

    def _charge(self) -> None:
        """Add the time since the last call to what ran in it."""
        now = self.clock()
        elapsed = 0.0 if self._since is None else now - self._since
        self._since = now
        if self._open:
            part = self._open[-1]
            self.seconds[part] = self.seconds.get(part, 0.0) + elapsed
        else:
            self._training += elapsed
            self._in_step += elapsed

    def wait(self) -> None:
        """Wait for an accelerator, before something is read from it: that is training's time."""
        if not torch.accelerator.is_available():
            return
        self._charge()
        _synchronize()
        now = self.clock()
        if self._since is not None:
            self._training += now - self._since
            self._in_step += now - self._since
        self._since = now

    def count_step(self) -> None:
        """Note that a step of training has ended."""
        self._charge()
        self.steps += 1
        self._recent.append(self._in_step)
        self._in_step = 0.0

    def pause(self) -> None:
        """Count nothing until the next part begins: the watch has ended."""
        self._charge()
        self._since = None

    @property
    def own_seconds(self) -> float:
        """Seconds that the monitor took."""
        return sum(self.seconds[part] for part in OWN_PARTS)

    @property
    def training_seconds(self) -> float:
        """Seconds of training."""
        return self._training

    @property
    def step_seconds(self) -> float:
        """Median duration of the last steps; 0 before the first."""
        return statistics.median(self._recent) if self._recent else 0.0

    @property
    def share(self) -> float:
        """Time of the monitor, as a share of the time of training; 0 before the first step."""
        return self.own_seconds / self._training if self.steps and self._training else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return what was measured."""
        return {
            "seconds": dict(self.seconds),
            "counts": dict(self.counts),
            "steps": self.steps,
            "training": self._training,
            "recent": list(self._recent),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: the state is malformed.
        """
        check_fields(state, seconds=dict, counts=dict, steps=int, training=float, recent=list)
        self.seconds = dict.fromkeys(OWN_PARTS, 0.0) | state["seconds"]
        self.counts = dict.fromkeys(OWN_PARTS, 0) | state["counts"]
        self.steps, self._training = state["steps"], state["training"]
        self._recent = deque(state["recent"], maxlen=RECENT_STEPS)


def _synchronize() -> None:
    """Wait for the work that an accelerator has not finished, so that it is counted where it is."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
