"""Cost of a monitor: measured on a given model, and extrapolated to a run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from riprap.monitor._monitor import Monitor
from riprap.monitor._probe_schedule import ProbeSchedule


@dataclass(frozen=True)
class Cost:
    """Seconds of a plain training step, and seconds that a monitor adds.

    Attributes:
        step: a plain training step.
        hooks: added to each step: norms, inner products, readings.
        forward: a probe evaluation without gradients.
        gradients: a probe evaluation with a gradient refresh.
        start: the evaluation before the first step, with all that signals compute there.
        memory_bytes: memory of the protected gradients and of the copied parameters.
    """

    step: float
    hooks: float
    forward: float
    gradients: float
    start: float
    memory_bytes: int

    def run_ratio(self, every: int, steps: int) -> float:
        """Return the time of a calm run with a monitor, relative to the run without one."""
        evaluations, refreshes = calm_evaluations(every, steps)
        added = self.start + steps * self.hooks
        added += (evaluations - refreshes) * self.forward + refreshes * self.gradients
        return 1 + added / (steps * self.step)

    def calm_ratio(self, every: int) -> float:
        """Return the same ratio once the gaps between evaluations are at their longest."""
        period = ProbeSchedule.calm_refresh_period
        evaluations = (period - 1) * self.forward + self.gradients
        return 1 + (self.hooks + evaluations / (period * every)) / self.step


def calm_evaluations(every: int, steps: int) -> tuple[int, int]:
    """Count the probe evaluations after the start of a calm run, and those with a refresh."""
    schedule = ProbeSchedule(every)
    schedule.plan(0, [])
    evaluations = refreshes = last = 0
    for step in range(1, steps + 1):
        if step >= schedule.due:
            evaluations, last = evaluations + 1, step
            refreshes += schedule.should_refresh_gradients(step)
            schedule.plan(step, [])
    return evaluations + (last < steps), refreshes  # one more at the end of a watch


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
    """Measure the parts of a new monitor in interleaved rounds; return medians.

    Args:
        take_step: takes one training step of `model` with `optimizer`; called 4·rounds + 1 times,
            so give a model that may be changed.
        rounds: number of measurements of each part.
        progress: called after each round.
        clock: returns the time in seconds; on the CPU, `time.process_time` is disturbed less by
            other processes.
        max_seconds: no further round starts after this time.
    """
    began = time.monotonic()
    take_step()

    def timed(call: Callable[[], Any]) -> float:
        return _timed(call, clock)

    start = timed(lambda: monitor.begin(model, optimizer))
    session = monitor._session
    assert session is not None
    run, probes = session.run, session.probes
    parts: dict[str, list[float]] = {name: [] for name in ("plain", "hooked", "forward", "refresh")}
    try:
        for index in range(rounds):
            run.schedule.due = run.step + 10  # no evaluation except those below
            # The first step after an evaluation finds cold caches: each kind goes first in turn.
            first, second = ("plain", "hooked") if index % 2 else ("hooked", "plain")
            for kind in (first, second, second, first):
                if kind == "hooked":
                    parts[kind].append(timed(take_step))
                else:
                    with session.hooks.disabled():
                        parts[kind].append(timed(take_step))
            run.step += 1
            parts["forward"].append(timed(lambda: session.evaluate_probes(refresh=False)))
            run.step += 1
            parts["refresh"].append(timed(lambda: session.evaluate_probes(refresh=True)))
            progress()
            if time.monotonic() - began > max_seconds:
                break
    finally:
        monitor.end()
    medians = {name: statistics.median(seconds) for name, seconds in parts.items()}
    copies = sum(parameter.nbytes for parameter in probes.parameters)
    return Cost(
        step=medians["plain"],
        hooks=max(medians["hooked"] - medians["plain"], 0.0),
        forward=medians["forward"],
        gradients=medians["refresh"],
        start=start,
        memory_bytes=probes.protected_gradients.nbytes + copies,
    )


def _timed(call: Callable[[], Any], clock: Callable[[], float]) -> float:
    _synchronize()
    before = clock()
    call()
    _synchronize()
    return clock() - before


def _synchronize() -> None:
    """Wait for the work that an accelerator has not finished."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
