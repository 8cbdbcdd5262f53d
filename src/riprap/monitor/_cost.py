"""Cost of a monitor: measured on a given model, and extrapolated to a run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from riprap.monitor._monitor import Monitor
from riprap.monitor._probe_schedule import ProbeSchedule


@dataclass(frozen=True)
class Cost:
    """Seconds of a plain training step, and seconds that a monitor adds.

    Attributes:
        step_seconds: a plain training step.
        hook_seconds: added to each step: norms, inner products, readings.
        forward_seconds: a probe evaluation without gradients.
        refresh_seconds: a probe evaluation with a gradient refresh.
        start_seconds: the evaluation before the first step, with all that signals compute there.
        memory_bytes: memory of the protected gradients and of the copied parameters.
    """

    step_seconds: float
    hook_seconds: float
    forward_seconds: float
    refresh_seconds: float
    start_seconds: float
    memory_bytes: int

    def run_ratio(self, probe_every: int, steps: int) -> float:
        """Return the time of a calm run with a monitor, relative to the run without one."""
        evaluations, refreshes = calm_evaluations(probe_every, steps)
        added = self.start_seconds + steps * self.hook_seconds
        added += (evaluations - refreshes) * self.forward_seconds + refreshes * self.refresh_seconds
        return 1 + added / (steps * self.step_seconds)

    def calm_ratio(self, probe_every: int) -> float:
        """Return the same ratio once the gaps between evaluations are at their longest."""
        period = ProbeSchedule.calm_refresh_period
        evaluations = (period - 1) * self.forward_seconds + self.refresh_seconds
        return 1 + (self.hook_seconds + evaluations / (period * probe_every)) / self.step_seconds


def calm_evaluations(probe_every: int, steps: int) -> tuple[int, int]:
    """Count the probe evaluations after the start of a calm run, and those with a refresh."""
    schedule = ProbeSchedule(probe_every)
    schedule.plan(0, [])
    evaluations = refreshes = last = 0
    for step in range(1, steps + 1):
        if step >= schedule.next_step:
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
    timed = partial(_timed, clock=clock)
    start = timed(lambda: monitor.begin(model, optimizer))
    session = monitor._session
    assert session is not None
    run, probe_runner = session.run, session.probe_runner
    times: dict[str, list[float]] = {name: [] for name in ("plain", "hooked", "forward", "refresh")}
    try:
        for index in range(rounds):
            run.schedule.next_step = run.step + 10  # no evaluation except those below
            # The first step after an evaluation finds cold caches: each kind goes first in turn.
            first, second = ("plain", "hooked") if index % 2 else ("hooked", "plain")
            for kind in (first, second, second, first):
                if kind == "hooked":
                    times[kind].append(timed(take_step))
                else:
                    with session.hooks.disabled():
                        times[kind].append(timed(take_step))
                    session.sample.take()  # else the plain steps count as changes from outside
            run.step += 1
            times["forward"].append(timed(lambda: session.evaluate_probes(refresh=False)))
            run.step += 1
            times["refresh"].append(timed(lambda: session.evaluate_probes(refresh=True)))
            progress()
            if time.monotonic() - began > max_seconds:
                break
    finally:
        monitor.end()
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    copied_bytes = sum(parameter.nbytes for parameter in probe_runner.parameters)
    return Cost(
        step_seconds=medians["plain"],
        hook_seconds=max(medians["hooked"] - medians["plain"], 0.0),
        forward_seconds=medians["forward"],
        refresh_seconds=medians["refresh"],
        start_seconds=start,
        memory_bytes=probe_runner.protected_gradients.nbytes + copied_bytes,
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
