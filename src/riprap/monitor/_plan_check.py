"""Comparison of a run with its plan: the learning rates, and the number of steps."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from riprap._formatting import format_number, format_steps
from riprap.detectors import RateSchedule

FACTOR = 1.25  # between a rate and the planned one
SLACK = 0.02  # difference that counts for nothing, as a share of the largest planned rate
SHIFT = 3  # steps by which a plan may be early or late, as where a scaler skips the first steps
SEVERAL = 5  # steps in a row with other rates, after which the plan is wrong


class PlanCheck:
    """Check that the steps of a run, and their learning rates, are those of its plan.

    Args:
        plan: planned steps; None: unknown.
        n_optimizers: with several, the plan may be that of one of them: then its rates count up to
            a common factor.
    """

    def __init__(self, plan: RateSchedule | None, n_optimizers: int = 1) -> None:
        self._plan = plan
        sums = np.zeros(1) if plan is None or plan.sums is None else plan.sums
        self._largest = float(np.diff(sums).max(initial=0.0))
        self._scale = 1.0 if n_optimizers == 1 else None
        self._new: list[tuple[int, float | Tensor]] = []  # step and rate, not compared yet
        self._n_other = 0  # steps in a row with other rates

    def note(self, step: int, rate: float | Tensor) -> None:
        """Note the rate of a step; a rate on an accelerator stays there for now."""
        if self._plan is not None:
            self._new.append((step, rate))

    def contradiction(self) -> str:
        """Compare the rates that were noted since the last call.

        Returns:
            one sentence, once, if the run has had other rates than the planned ones for several
            steps, or goes on after the last planned step; else "".
        """
        new, self._new = self._new, []
        for step, noted in new:
            if self._plan is not None and (text := self._compare(self._plan, step, float(noted))):
                self._plan = None
                return text
        return ""

    def _compare(self, plan: RateSchedule, step: int, rate: float) -> str:
        if step > plan.first + plan.n_steps:
            return (
                f"training goes on after the {format_steps(plan.n_steps)} that were planned: "
                "forecasts now expect the present learning rate"
            )
        if self._agrees(plan, step, rate):
            self._n_other = 0
            return ""
        self._n_other += 1
        if self._n_other < SEVERAL:
            return ""
        planned = plan.rate(step) * (self._scale or 1.0)
        return (
            f"the learning rate of step {step} is {format_number(rate)}, and the plan says "
            f"{format_number(planned)}: forecasts no longer follow the plan, they expect the "
            "present rate; the scheduler of a watch must tell the rate of each optimizer step"
        )

    def _agrees(self, plan: RateSchedule, step: int, rate: float) -> bool:
        """Return whether a rate is about one of those that are planned around this step."""
        near = plan.rates_around(step, SHIFT)
        if not len(near) or math.isnan(rate):
            return True
        if self._scale is None:
            if not (near.max() > 0 and rate > 0):
                return True
            self._scale = rate / float(near.max())
        slack = SLACK * self._largest
        low, high = near.min() / FACTOR - slack, near.max() * FACTOR + slack
        return bool(low <= rate / self._scale <= high)
