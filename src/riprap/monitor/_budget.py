"""Budget of a monitor: which probe evaluations a share of the training time can pay for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from riprap.monitor._cost_meter import CostMeter
from riprap.record import check_fields

DEFAULT_BUDGET = 0.03
CALM_SHARE = 0.5  # of the budget, that calm phases use; the rest is for urgent ones
EARLY_EVALUATIONS = 3  # of all probes, that are paid for in advance: most damage is early
URGENT_EVALUATIONS = 8  # of all probes, that urgency may spend beyond the budget
MAX_PARTS = 4  # probe evaluations that together evaluate all probes
READING_SHARE = 0.1  # of the budget, for readings of the interference between evaluations
FIRST_GUESS = 1 / 3  # of the start's price: a forward pass, beside a backward pass and checks


@dataclass
class Budget:
    """Prices of probe evaluations, and what of them is affordable.

    Passes over probes and products with gradients are paid for; the hooks at each step, which take
    less than a millisecond, are not. In calm phases the monitor may have spent, up to now, the
    price of the start, of the evaluation at the end and of `EARLY_EVALUATIONS`, and `CALM_SHARE` of
    the budget; in urgent phases the whole budget and `URGENT_EVALUATIONS` besides.

    Attributes:
        share: time of the monitor, as a share of the time of training.
        meter: what was measured so far.
        forward: seconds of an evaluation of all probes, and of each part of them, by the number of
            parts.
        refresh: seconds of a gradient refresh; None before the first.
    """

    share: float
    meter: CostMeter = field(default_factory=CostMeter)
    forward: dict[int, float] = field(default_factory=dict)
    refresh: float | None = None

    def note_evaluation(self, seconds: float, n_parts: int, refresh: bool) -> None:
        """Note the price of an evaluation of one of `n_parts` parts of the probes."""
        if refresh:
            self.refresh = seconds
        else:
            self.forward[n_parts] = seconds

    def forward_price(self, n_parts: int = 1) -> float:
        """Return the seconds of an evaluation of one of `n_parts` parts of the probes."""
        if n_parts in self.forward:
            return self.forward[n_parts]
        if self.forward:
            known = min(self.forward, key=lambda count: abs(count - n_parts))
            return self.forward[known] * known / n_parts
        return FIRST_GUESS * self.meter.seconds["start"] / n_parts

    def refresh_price(self) -> float:
        """Return the seconds of a gradient refresh."""
        return self.meter.seconds["start"] if self.refresh is None else self.refresh

    def allowance(self, urgent: bool) -> float:
        """Return the seconds that the monitor may have spent by now."""
        in_advance = 1 + EARLY_EVALUATIONS + (URGENT_EVALUATIONS if urgent else 0)
        rate = self._rate(urgent)
        advance = self.meter.seconds["start"] + in_advance * self.forward_price()
        return advance + rate * self.meter.training_seconds

    def advance_share(self) -> float:
        """Return what calm phases may spend in advance, as a share of the training time so far."""
        advance = self.allowance(urgent=False) / (self.meter.training_seconds or 1.0)
        return advance - self._rate(urgent=False)

    def _rate(self, urgent: bool) -> float:
        return self.share if urgent else CALM_SHARE * self.share

    def steps_until(self, seconds: float, urgent: bool) -> int:
        """Return the number of steps after which `seconds` more are affordable; 0: now."""
        spent = self.meter.own_seconds - self.meter.seconds["hooks"]
        needed = spent + seconds + self.forward_price()  # the last one is reserved for the end
        missing = needed - self.allowance(urgent)
        if missing <= 0:
            return 0
        earned = self._rate(urgent) * self.meter.step_seconds
        return math.ceil(min(missing / earned, 1e9)) if earned else 0

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
            "meter": self.meter.state_dict(),
            "forward": {str(count): seconds for count, seconds in self.forward.items()},
            "refresh": self.refresh,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: the state is malformed.
        """
        check_fields(state, meter=dict, forward=dict, refresh=float | None)
        self.meter.load_state_dict(state["meter"])
        self.forward = {int(count): seconds for count, seconds in state["forward"].items()}
        self.refresh = state["refresh"]
