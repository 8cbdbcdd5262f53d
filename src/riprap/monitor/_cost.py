"""What a monitor costs: its parts measured on the model at hand, and added up over a run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from riprap.monitor._hooks import StepHooks
from riprap.monitor._monitor import Monitor
from riprap.monitor._probe_schedule import REFRESH_CALM, ProbeSchedule


@dataclass(frozen=True)
class Cost:
    """Seconds of a plain training step, and those that a monitor adds.

    Attributes:
        step: a plain training step.
        hooks: added to each step: norms, inner products, readings.
        forward: a visit to the probes by forward passes alone.
        gradients: a visit that also takes fresh protected gradients.
        start: the visit before the first step, with all that signals fix there.
        kept_bytes: memory of the kept gradients and of the parameters as they were.
    """

    step: float
    hooks: float
    forward: float
    gradients: float
    start: float
    memory_bytes: int

    def run_ratio(self, every: int, steps: int) -> float:
        """Time of a calm run of so many steps with a monitor, as a ratio to that without one."""
        visits, fresh = calm_evaluations(every, steps)
        added = self.start + steps * self.hooks
        added += (visits - fresh) * self.forward + fresh * self.gradients
        return 1 + added / (steps * self.step)

    def calm_ratio(self, every: int) -> float:
        """The same ratio once visits are as far apart as they get."""
        visits = (REFRESH_CALM - 1) * self.forward + self.gradients
        return 1 + (self.hooks + visits / (REFRESH_CALM * every)) / self.step


def calm_evaluations(every: int, steps: int) -> tuple[int, int]:
    """Visits after the start in a run that stays calm, and how many of them take gradients."""
    cadence = ProbeSchedule(every)
    cadence.plan(0, [])
    visits = fresh = 0
    last = 0
    for step in range(1, steps + 1):
        if step >= cadence.due:
            visits, last = visits + 1, step
            fresh += cadence.should_refresh_gradients(step)
            cadence.plan(step, [])
    return visits + (last < steps), fresh  # the end of a watch visits once more


def measure_cost(
    monitor: Monitor,
    model: nn.Module,
    optimizer: Any,
    take_step: Callable[[], None],
    rounds: int = 5,
    progress: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
    max_seconds: float = float("inf"),
) -> Cost:
    """Measure a new monitor's parts, in interleaved rounds; medians.

    Args:
        step: takes one training step of `model` by `optimizer`; called 4·rounds + 1 times, so give
            it a model that may be trained on.
        rounds: how often each part is timed.
        progress: called after each round.
        clock: what tells the time, in seconds; on the CPU `time.process_time` is disturbed less by
            what else the machine does.
        patience: seconds after which no further round is begun; what takes long varies little.
    """
    begun = time.monotonic()
    take_step()

    def timed(call: Callable[[], Any]) -> float:
        return _timed(call, clock)

    def resting(hooks: StepHooks, call: Callable[[], None]) -> float:
        with hooks.disabled():
            return timed(call)

    start = timed(lambda: monitor.begin(model, optimizer))
    watchman, hooks = monitor._watchman, monitor._hooks
    visitor = watchman.visitor
    assert visitor is not None and hooks is not None
    parts: dict[str, list[float]] = {name: [] for name in ("plain", "hooked", "forward", "fresh")}
    try:
        for index in range(rounds):
            watchman.cadence.due = monitor.step + 10  # no visit but those asked for here
            # The first step after a visit finds cold caches: each kind goes first in turn.
            first, second = ("plain", "hooked") if index % 2 else ("hooked", "plain")
            for kind in (first, second, second, first):
                parts[kind].append(timed(take_step) if kind == "hooked" else resting(hooks, take_step))
            watchman.step += 1
            parts["forward"].append(
                timed(lambda: watchman.process_probe_results(visitor.run(watchman.step, False)))
            )
            watchman.step += 1
            parts["fresh"].append(
                timed(lambda: watchman.process_probe_results(visitor.run(watchman.step, True)))
            )
            progress()
            if time.monotonic() - begun > max_seconds:
                break
    finally:
        monitor.end()
    middle = {name: statistics.median(seconds) for name, seconds in parts.items()}
    held = visitor.protected_gradients
    copies = sum(parameter.nbytes for parameter in visitor.parameters)
    return Cost(
        step=middle["plain"],
        hooks=max(middle["hooked"] - middle["plain"], 0.0),
        forward=middle["forward"],
        gradients=middle["fresh"],
        start=start,
        memory_bytes=held.margin_gradients.nbytes + held.loss_gradients.nbytes + copies,
    )


def _timed(call: Callable[[], Any], clock: Callable[[], float]) -> float:
    _synchronize()
    before = clock()
    call()
    _synchronize()
    return clock() - before


def _synchronize() -> None:
    """Wait for what an accelerator still has to do."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
