"""Budget of a monitor: which probe evaluations a share of the training time can pay for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from riprap.monitor._cost_meter import CostMeter
from riprap.record import check_fields

DEFAULT_BUDGET = 0.03
# What each allowance grows by, as a share of the budget, and what it has in advance, in
# evaluations: early ones, because most damage is early, and the one at the end.
RATES = {"calm": 0.35, "refresh": 0.1, "urgent": 0.45}
ADVANCES = {"calm": 2.5, "refresh": 0.0, "urgent": 8.0}
ADVANCE_SECONDS = 0.25  # at least, of an allowance with an advance, so that short runs are watched
READING_SHARE = 0.1  # of the budget, for readings of the interference
NEVER = 10**9
FIRST_GUESS = 1 / 3  # of the start's price: a forward pass, beside a backward pass and checks


@dataclass
class Budget:
    """Prices of probe evaluations, and what of them is affordable.

    Three allowances grow while training goes on, each by a share of the budget: "calm", for most
    evaluations; "refresh", for gradient refreshes; "urgent", for behaviors that may break soon. Two
    have an advance. Readings of the interference have a share of their own. The start, and the
    hooks at each step, which take less than a millisecond, are in no allowance.

    Attributes:
        share: time of the monitor, as a share of the time of training.
        meter: what was measured so far.
        forward: seconds of an evaluation by forward passes; None before the first.
        refresh: seconds of a gradient refresh; None before the first.
        spent: seconds that were paid from each allowance.
    """

    share: float
    meter: CostMeter = field(default_factory=CostMeter)
    forward: float | None = None
    refresh: float | None = None
    spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(RATES, 0.0))

    def pay(self, seconds: float, allowance: str, new: bool = True) -> None:
        """Take the seconds of an evaluation from an allowance.

        Args:
            new: whether these seconds are the price of an evaluation; else they are of its sequel.
        """
        self.spent[allowance] += seconds
        if not new:
            return
        if allowance == "refresh":
            self.refresh = seconds
        else:
            self.forward = seconds

    def forward_price(self) -> float:
        """Return the seconds of an evaluation by forward passes."""
        guess = FIRST_GUESS * self.meter.seconds["start"]
        return guess if self.forward is None else self.forward

    def refresh_price(self) -> float:
        """Return the seconds of a gradient refresh."""
        return self.meter.seconds["start"] if self.refresh is None else self.refresh

    def advance(self, allowance: str) -> float:
        """Return the seconds that an allowance has before training."""
        evaluations = ADVANCES[allowance]
        return max(evaluations * self.forward_price(), ADVANCE_SECONDS if evaluations else 0.0)

    def steps_until(self, seconds: float, allowance: str) -> int:
        """Return the number of steps after which `seconds` are within an allowance; 0: now."""
        meter = self.meter
        needed = self.spent[allowance] + seconds
        if allowance == "calm":
            needed += self.forward_price()  # the one at the end
        rate = self.share * RATES[allowance]
        missing = needed - self.advance(allowance) - rate * meter.training_seconds
        if missing <= 0:
            return 0
        earned = rate * meter.step_seconds
        return math.ceil(min(missing / earned, NEVER)) if earned else NEVER

    def reading_gap(self) -> int:
        """Return the gap between readings of the interference that keeps to their share."""
        meter = self.meter
        count, earned = meter.counts["interference"], self.share * meter.step_seconds
        if not count or not earned:
            return 1
        return math.ceil(meter.seconds["interference"] / count / (READING_SHARE * earned))

    def state_dict(self) -> dict[str, Any]:
        """Return what was measured."""
        return {
            "forward": self.forward,
            "refresh": self.refresh,
            "spent": dict(self.spent),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: the state is malformed.
        """
        check_fields(state, forward=float | None, refresh=float | None, spent=dict)
        check_fields(state["spent"], **dict.fromkeys(RATES, float))
        self.forward, self.refresh = state["forward"], state["refresh"]
        self.spent = dict(state["spent"])
