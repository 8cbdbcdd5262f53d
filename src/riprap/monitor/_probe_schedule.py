"""Schedule of probe evaluations: dense at the start, immediate when urgent, sparse while calm."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from riprap.detectors import BehaviorHistory
from riprap.record import check_fields
from riprap.types import Forecast


@dataclass
class ProbeSchedule:
    """Schedule of probe evaluations, and of the gradient refreshes in some of them.

    A gradient costs twice a forward pass and is stale within a few steps. So in calm phases most
    evaluations do not refresh it.

    Attributes:
        probe_every: longest gap between two evaluations, in steps.
        next_step: step of the next evaluation.
        gap_divisor: the gap is the number of steps taken, divided by this; with 4, each of the
            first eight steps is evaluated.
        evaluations_before_break: number of evaluations before the earliest predicted break.
        dense_steps: early steps with frequent gradient refreshes, because most damage is early.
        refresh_period: evaluations per gradient refresh in early and in urgent phases.
        calm_refresh_period: evaluations per gradient refresh in calm phases.
        max_spent: fraction of the threshold margin that interference may use up between two
            evaluations.
    """

    probe_every: int
    next_step: int = 0
    gap_divisor: int = 4
    evaluations_before_break: int = 4
    dense_steps: int = 8
    refresh_period: int = 2
    calm_refresh_period: int = 8
    max_spent: float = 0.5
    _evaluations_since_refresh: int = 0
    _urgent: bool = False

    def plan(self, step: int, forecasts: Iterable[Forecast | None]) -> None:
        """Plan the next evaluation after one at `step`, given the current forecasts."""
        gap = min(max(step // self.gap_divisor, 1), self.probe_every)
        early_bounds = [f.low for f in forecasts if f is not None and f.low > 0]
        earliest = min(early_bounds, default=float("inf"))
        self._urgent = earliest < float("inf")
        if self._urgent:
            gap = min(gap, max(int(earliest) // self.evaluations_before_break, 1))
        self.next_step = step + gap

    def is_due(self, step: int, histories: Iterable[BehaviorHistory]) -> bool:
        """Return whether to evaluate after this step: planned, or urgent by interference."""
        return step >= self.next_step or any(map(self.is_urgent, histories))

    def is_urgent(self, history: BehaviorHistory) -> bool:
        """Return whether updates have used up too much of a behavior's threshold margin."""
        interference = history.interference_since_last_probe()
        if interference >= 0 or not history.steps:
            return False
        margin = history.threshold_margin
        return margin > 0 and interference < -self.max_spent * margin

    def should_refresh_gradients(self, step: int) -> bool:
        """Return whether this evaluation refreshes gradients; call once per evaluation."""
        frequent = step < self.dense_steps or self._urgent
        period = self.refresh_period if frequent else self.calm_refresh_period
        refresh = self._evaluations_since_refresh + 1 >= period
        self._evaluations_since_refresh = 0 if refresh else self._evaluations_since_refresh + 1
        return refresh

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the schedule."""
        return {
            "due": self.next_step,
            "evaluations_since_refresh": self._evaluations_since_refresh,
            "urgent": self._urgent,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: the state is malformed.
        """
        check_fields(state, due=int, evaluations_since_refresh=int, urgent=bool)
        self.next_step, self._urgent = state["due"], state["urgent"]
        self._evaluations_since_refresh = state["evaluations_since_refresh"]
