"""Schedule of probe evaluations: dense at the start, immediate when urgent, sparse while calm."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from riprap.detectors import BehaviorHistory
from riprap.monitor._budget import Budget
from riprap.record import check_fields
from riprap.types import Forecast


@dataclass
class ProbeSchedule:
    """Schedule of probe evaluations, and of the gradient refreshes in some of them.

    A gradient costs twice a forward pass and is stale within a few steps. So in calm phases most
    evaluations do not refresh it.

    With a budget, evaluations come no earlier than without one, and as late as it takes to pay for
    them. Gradients are refreshed as in calm phases, or later.

    Attributes:
        probe_every: longest gap between two evaluations, in steps, as far as the budget reaches.
        budget: prices and what is affordable; None: every evaluation is.
        next_step: step of the next evaluation.
        read_every: gap between two readings of the interference, in steps.
        gap_divisor: the gap is the number of steps taken, divided by this; with 4, each of the
            first eight steps is evaluated.
        budget_gap_divisor: the same with a budget.
        evaluations_before_break: number of evaluations before the earliest predicted break.
        dense_steps: early steps with frequent gradient refreshes, because most damage is early.
        refresh_period: evaluations per gradient refresh in early and in urgent phases.
        calm_refresh_period: evaluations per gradient refresh in calm phases.
        max_spent: fraction of the threshold margin that interference may use up between two
            evaluations.
        max_stretch: longest gap with a budget, as a multiple of `probe_every`.
        cut_urgency: how often the budget could not pay for an urgent evaluation.
    """

    probe_every: int
    budget: Budget | None = None
    next_step: int = 0
    read_every: int = 4
    gap_divisor: int = 4
    budget_gap_divisor: int = 2
    evaluations_before_break: int = 4
    dense_steps: int = 8
    refresh_period: int = 2
    calm_refresh_period: int = 8
    max_spent: float = 0.5
    max_stretch: int = 5
    cut_urgency: int = 0
    _evaluations_since_refresh: int = 0
    _urgent: bool = False
    _next_urgent_step: int = 0  # from which on the budget can pay for an urgent evaluation
    _refresh_affordable: bool = True

    @property
    def longest_gap(self) -> int:
        """The largest number of steps between two evaluations."""
        return self.probe_every * (1 if self.budget is None else self.max_stretch)

    def plan(self, step: int, forecasts: Iterable[Forecast | None]) -> None:
        """Plan the next evaluation after one at `step`, given the current forecasts."""
        divisor = self.gap_divisor if self.budget is None else self.budget_gap_divisor
        gap = min(max(step // divisor, 1), self.probe_every)
        bounds = [f.low for f in forecasts if f is not None and _is_near(f)]
        urgent_gap = max(int(min(bounds, default=gap)) // self.evaluations_before_break, 1)
        self._urgent = bool(bounds)
        self.read_every = type(self).read_every
        self._next_urgent_step = step
        if self.budget is not None:
            gap = self._affordable_gap(self.budget, step, gap, min(gap, urgent_gap))
        elif self._urgent:
            gap = min(gap, urgent_gap)
        self.next_step = step + gap

    def _affordable_gap(self, budget: Budget, step: int, gap: int, urgent_gap: int) -> int:
        """Delay the next evaluation until it can be paid for."""
        longest = self.longest_gap
        if not self._urgent:
            self.read_every = min(max(self.read_every, budget.reading_gap()), self.probe_every)
        wait = budget.steps_until(budget.forward_price(), "urgent")
        self._next_urgent_step = step + min(wait, longest)
        self._refresh_affordable = budget.steps_until(budget.refresh_price(), "refresh") == 0
        if self._urgent and wait <= urgent_gap:
            return urgent_gap
        self.cut_urgency += self._urgent
        self._urgent = False
        wait = budget.steps_until(budget.forward_price(), "calm")
        return min(max(wait, gap), longest)

    def postpone(self, step: int) -> None:
        """Plan the next evaluation after one at `step` that failed."""
        self.next_step = step + self.probe_every

    def is_due(self, step: int, histories: Iterable[BehaviorHistory]) -> bool:
        """Return whether to evaluate after this step: planned, or urgent by interference."""
        if step >= self.next_step:
            return True
        return step >= self._next_urgent_step and any(map(self._is_used_up, histories))

    def is_urgent(
        self, step: int, histories: Iterable[BehaviorHistory], is_declining: bool
    ) -> bool:
        """Return whether the evaluation after this step is urgent.

        Args:
            is_declining: whether a behavior has an active alert and is not broken.
        """
        if self._urgent:
            return True
        is_suspect = is_declining or any(map(self._is_used_up, histories))
        return step >= self._next_urgent_step and is_suspect

    def _is_used_up(self, history: BehaviorHistory) -> bool:
        """Return whether updates have used up too much of a behavior's threshold margin."""
        interference = history.interference_since_last_probe()
        if interference >= 0 or not history.steps:
            return False
        margin = history.threshold_margin
        return margin > 0 and interference < -self.max_spent * margin

    def should_refresh_gradients(self, step: int) -> bool:
        """Return whether this evaluation refreshes gradients; call once per evaluation."""
        period = self.calm_refresh_period
        if self.budget is None and (step < self.dense_steps or self._urgent):
            period = self.refresh_period
        refresh = self._evaluations_since_refresh + 1 >= period and self._refresh_affordable
        self._evaluations_since_refresh = 0 if refresh else self._evaluations_since_refresh + 1
        return refresh

    def agree(self, device: torch.device) -> None:
        """Take over the plan of the first rank: ranks that evaluate together must plan alike."""
        names = ("next_step", "read_every", "_next_urgent_step")
        own = [int(getattr(self, name)) for name in names]
        own += [int(self._urgent), int(self._refresh_affordable)]
        plan = torch.tensor(own, device=device)
        dist.broadcast(plan, src=0)
        *numbers, urgent, affordable = plan.tolist()
        for name, number in zip(names, numbers, strict=True):
            setattr(self, name, number)
        self._urgent, self._refresh_affordable = bool(urgent), bool(affordable)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the schedule."""
        return {
            "due": self.next_step,
            "read_every": self.read_every,
            "evaluations_since_refresh": self._evaluations_since_refresh,
            "urgent": self._urgent,
            "next_urgent_step": self._next_urgent_step,
            "refresh_affordable": self._refresh_affordable,
            "cut_urgency": self.cut_urgency,
            "budget": None if self.budget is None else self.budget.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: the state is malformed.
        """
        check_fields(
            state,
            due=int,
            read_every=int,
            evaluations_since_refresh=int,
            urgent=bool,
            next_urgent_step=int,
            refresh_affordable=bool,
            cut_urgency=int,
            budget=dict | None,
        )
        self.next_step, self._urgent = state["due"], state["urgent"]
        self.read_every = state["read_every"]
        self._evaluations_since_refresh = state["evaluations_since_refresh"]
        self._next_urgent_step = state["next_urgent_step"]
        self._refresh_affordable = state["refresh_affordable"]
        self.cut_urgency = state["cut_urgency"]
        if self.budget is not None and state["budget"] is not None:
            self.budget.load_state_dict(state["budget"])


def _is_near(forecast: Forecast | None) -> bool:
    """Return whether a behavior may break soon; one that is broken cannot."""
    return forecast is not None and 0 < forecast.low < float("inf")
