"""A recorded run under the real monitor: its schedule, its budget and its alerts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.onset.replay import Outcome
from experiments.onset.trace import Trace
from riprap import AlertPolicy, Behavior, Monitor
from riprap.types import Level


class StepClock:
    """Time in steps of training.

    Attributes:
        price: what a forward pass over all probes takes. With four sets of 24 short probes about
            0.9 if a step trains on 1,500 tokens, and 0.1 if it trains on 16,000.
    """

    def __init__(self, price: float) -> None:
        self.now, self.price = 0.0, price

    def __call__(self) -> float:
        """Return the time."""
        return self.now


class RecordedModel(nn.Module):
    """A model whose margins are those of a record, and whose updates have its interference."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace, self.step = trace, 0
        self.weight = nn.Parameter(torch.zeros(len(trace.behaviors), dtype=torch.float64))
        self.n_probes = sum(own.margins.shape[1] for own in trace.behaviors.values())

    def margins_of(
        self, place: int, name: str, clock: StepClock
    ) -> Callable[[nn.Module, Any], Tensor]:
        """Return the margins of one behavior, at the present step; time passes with each pass."""
        own = self.trace.behaviors[name].margins

        def margins(_model: nn.Module, _probes: Any) -> Tensor:
            at = int(np.searchsorted(self.trace.steps, self.step))
            passes = 3 if torch.is_grad_enabled() else 1
            clock.now += passes * clock.price * own.shape[1] / self.n_probes
            update = self.weight[place] - self.weight[place].detach()
            return torch.from_numpy(own[at].astype(np.float64)) + update

        return margins


def watch(
    trace: Trace, policy: AlertPolicy, budget: float | None, price: float = 0.9
) -> list[Outcome]:
    """Run the monitor along a record; return one outcome per behavior that starts healthy.

    Args:
        price: see `StepClock`.
    """
    model, clock = RecordedModel(trace), StepClock(price)
    behaviors = [
        Behavior(
            name, range(own.margins.shape[1]), model.margins_of(place, name, clock), floor=own.floor
        )
        for place, (name, own) in enumerate(trace.behaviors.items())
    ]
    optimizer = torch.optim.SGD(model.parameters(), lr=float(trace.rates[0]))
    changes = np.array([own.interference for own in trace.behaviors.values()])
    monitor = Monitor(behaviors, policy=policy, budget=budget)
    monitor.use_clock(clock)
    logger = logging.getLogger("riprap")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with redirect_stderr(StringIO()), monitor.watch(
            model,
            optimizer,
            steps=trace.n_steps,
            scheduler=lambda step: float(trace.rates[step]),
        ):  # fmt: skip
            for step, rate in enumerate(trace.rates.tolist()):
                optimizer.param_groups[0]["lr"] = rate
                change = np.nan_to_num(changes[:, step])
                model.weight.grad = torch.from_numpy(-change / rate if rate else 0 * change)
                model.step, clock.now = step + 1, clock.now + 1.0
                optimizer.step()
    finally:
        logger.setLevel(level)
    return _outcomes(trace, monitor)


def _outcomes(trace: Trace, monitor: Monitor) -> list[Outcome]:
    found = []
    for name, history in monitor.behavior_histories.items():
        if not history.healthy_at_start:
            continue
        first: dict[Level, int] = {}
        own: list[Any] = [alert for alert in monitor.alerts if alert.behavior == name]
        for alert in own:
            for level in Level:
                if alert.level.rank >= level.rank:
                    first.setdefault(level, alert.step)
        broke = trace.break_step(name)
        found.append(Outcome(trace, name, broke, first, len(history.steps), trace.n_steps))
    return found
