"""When to visit the probes: densely at the start, at once when it is urgent, seldom while calm."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from riprap.detectors import BehaviorHistory
from riprap.types import Forecast

GROWTH = 4  # the gap grows to a quarter of the steps already taken: the first eight are all visited
DENSE = 8  # during these first steps gradients are refreshed often, for most damage is done early
PATIENCE = 4  # visits to fit in before the forecast's earliest break
USED_UP = 0.5  # share of the deciding margin that may be predicted away between visits
REFRESH = 2  # at the start and when urgent, every second visit takes fresh gradients
REFRESH_CALM = 8  # and while it is calm every eighth: by then a gradient is stale in any case


@dataclass
class ProbeSchedule:
    """Plans visits, and which of them take fresh protected gradients.

    A gradient costs twice a forward pass and goes stale within steps, so while all is calm most
    visits do without.

    Attributes:
        every: the longest gap between two visits, in steps.
        due: step of the next visit.
        growth, patience: see `GROWTH` and `PATIENCE`.
    """

    every: int
    due: int = 0
    growth: int = GROWTH
    patience: int = PATIENCE
    _evaluations_since_refresh: int = 0
    _urgent: bool = False

    def plan(self, step: int, forecasts: Iterable[Forecast | None]) -> None:
        """Plan the next visit after one at `step`, given what is forecast now."""
        gap = min(max(step // self.growth, 1), self.every)
        to_come = [f.low for f in forecasts if f is not None and f.low > 0]
        earliest = min(to_come, default=float("inf"))
        self._urgent = earliest < float("inf")
        if self._urgent:
            gap = min(gap, max(int(earliest) // self.patience, 1))
        self.due = step + gap

    def is_due(self, step: int, tracks: Iterable[BehaviorHistory]) -> bool:
        """Whether to visit after this step: planned, or interference says it cannot wait."""
        return step >= self.due or any(is_urgent(track) for track in tracks)

    def should_refresh_gradients(self, step: int) -> bool:
        """Whether this visit takes fresh gradients; asked once a visit."""
        period = REFRESH if step < DENSE or self._urgent else REFRESH_CALM
        fresh = self._evaluations_since_refresh + 1 >= period
        self._evaluations_since_refresh = 0 if fresh else self._evaluations_since_refresh + 1
        return fresh

    def state_dict(self) -> dict[str, Any]:
        """Where the plan stands."""
        return {"due": self.due, "without": self._evaluations_since_refresh, "urgent": self._urgent}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a plan that `state_dict` gave."""
        self.due, self._evaluations_since_refresh, self._urgent = state["due"], state["without"], state["urgent"]


def is_urgent(track: BehaviorHistory) -> bool:
    """Whether the updates since the last visit have used up too much of the deciding margin."""
    predicted = track.predicted_since_last_probe()
    if predicted >= 0 or not track.steps:
        return False
    return track.threshold_margin > 0 and predicted < -USED_UP * track.threshold_margin
