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

from riprap.monitor._budget import Budget
from riprap.monitor._cost_meter import CostMeter
from riprap.monitor._monitor import Monitor
from riprap.monitor._probe_schedule import ProbeSchedule

KINDS = ("plain", "hooked", "forward", "refresh", "reading")
CALM_CYCLES = 20  # longest gaps after which a run is taken to be calm


@dataclass(frozen=True)
class Cost:
    """Seconds of a plain training step, and seconds that a monitor adds.

    Attributes:
        step_seconds: a plain training step.
        hook_seconds: added to each step.
        forward_seconds: a probe evaluation without gradients.
        refresh_seconds: a probe evaluation with a gradient refresh.
        start_seconds: the evaluation before the first step, with all that signals compute there.
        memory_bytes: memory of the protected gradients and of the copied parameters.
        reading_seconds: a reading of the interference, between evaluations.
    """

    step_seconds: float
    hook_seconds: float
    forward_seconds: float
    refresh_seconds: float
    start_seconds: float
    memory_bytes: int
    reading_seconds: float = 0.0

    def run_ratio(self, probe_every: int, steps: int, budget: float | None = None) -> float:
        """Return the time of a calm run with a monitor, relative to the run without one."""
        return 1 + self.plan(probe_every, steps, budget).seconds / (steps * self.step_seconds)

    def calm_ratio(self, probe_every: int, budget: float | None = None) -> float:
        """Return the same ratio once the gaps between evaluations are at their longest."""
        if budget is None:
            period = ProbeSchedule.calm_refresh_period
            evaluations = (period - 1) * self.forward_seconds + self.refresh_seconds
            added = self.hook_seconds + self.reading_seconds / ProbeSchedule.read_every
            return 1 + (added + evaluations / (period * probe_every)) / self.step_seconds
        steps = CALM_CYCLES * ProbeSchedule.max_stretch * probe_every
        early, late = (self.plan(probe_every, n, budget).seconds for n in (steps, 2 * steps))
        return 1 + (late - early) / (steps * self.step_seconds)

    def plan(self, probe_every: int, steps: int, budget: float | None = None) -> PlannedRun:
        """Plan a calm run as a monitor would that finds these prices."""
        clock = _Clock()
        meter = CostMeter(clock)
        paid = None if budget is None else Budget(budget, meter)
        schedule = ProbeSchedule(probe_every, paid)
        evaluations = refreshes = last_evaluated = last_read = 0
        clock.spend(meter, "start", self.start_seconds)
        schedule.plan(0, [])
        for step in range(1, steps + 1):
            clock.now += self.step_seconds
            clock.spend(meter, "hooks", self.hook_seconds)
            meter.count_step()
            is_due = step >= schedule.next_step
            if is_due or step - last_read >= schedule.read_every:
                last_read = step
                clock.spend(meter, "interference", self.reading_seconds)
            if not is_due:
                continue
            refresh = schedule.should_refresh_gradients(step)
            price = self.refresh_seconds if refresh else self.forward_seconds
            clock.spend(meter, "refreshes" if refresh else "evaluations", price)
            if paid is not None:
                paid.pay(price, "refresh" if refresh else "calm")
            evaluations, refreshes = evaluations + 1, refreshes + refresh
            last_evaluated = step
            schedule.plan(step, [])
        if last_evaluated < steps:  # one more at the end of a watch
            clock.spend(meter, "evaluations", self.forward_seconds)
            evaluations += 1
        return PlannedRun(meter.own_seconds, evaluations, refreshes)


@dataclass(frozen=True)
class PlannedRun:
    """Plan of a calm run.

    Attributes:
        seconds: all that the monitor takes.
        evaluations: probe evaluations after the start.
        refreshes: those of them that refresh the gradients.
    """

    seconds: float
    evaluations: int
    refreshes: int


class _Clock:
    """A clock that goes forward as it is told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def spend(self, meter: CostMeter, part: str, seconds: float) -> None:
        with meter.measure(part):
            self.now += seconds


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
    times: dict[str, list[float]] = {name: [] for name in KINDS}
    try:
        for index in range(rounds):
            run.schedule.next_step = run.step + 10  # no evaluation except those below
            run.schedule.read_every = 10
            # The first step after an evaluation finds cold caches: each kind goes first in turn.
            first, second = ("plain", "hooked") if index % 2 else ("hooked", "plain")
            for kind in (first, second, second, first):
                if kind == "hooked":
                    times[kind].append(timed(take_step))
                else:
                    with session.hooks.disabled():
                        times[kind].append(timed(take_step))
                    session.sample.take()  # else the plain steps count as changes from outside
                    session.hooks.mark_as_read()
            times["reading"].append(timed(session.read_update))
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
        reading_seconds=medians["reading"],
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
