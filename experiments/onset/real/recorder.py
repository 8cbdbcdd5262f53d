"""Recorder: trains under one condition, and keeps what the behaviors did as a trace."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.onset.real.plan import Condition, Schedule
from experiments.onset.real.probes import Measured
from experiments.onset.trace import BehaviorTrace, Trace
from riprap import evaluation
from riprap.linalg import Differences, FlatVector, clone

CORPUS = "real"
EARLY = (0, 1, 2, 3, 4, 6, 8, 12, 16)
EVERY = 4  # steps between later evaluations; the truth at every step is beyond this machine
FIRST_REFRESHES, REFRESH_EVERY = (0, 8), 40
WARM_UP = 0.1


def evaluated_steps(n_steps: int) -> list[int]:
    """Return the steps after which the probes are evaluated, 0 and the last one among them."""
    later = range(EARLY[-1] + EVERY, n_steps + 1, EVERY)
    return sorted({step for step in (*EARLY, *later, n_steps) if step <= n_steps})


def refreshed_steps(n_steps: int) -> list[int]:
    """Return the steps after which the gradients h_b are computed: 0, 8, 48, 88, …"""
    later = range(FIRST_REFRESHES[-1] + REFRESH_EVERY, n_steps, REFRESH_EVERY)
    return [step for step in (*FIRST_REFRESHES, *later) if step < n_steps]


def share_of_rate(schedule: Schedule, step: int, n_steps: int) -> float:
    """Return the learning rate of a step, counted from 0, as a share of the planned one."""
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return 1 - step / n_steps
    warm = max(1, round(WARM_UP * n_steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / (n_steps - warm)))


def record(
    model: nn.Module,
    batches: Iterable[dict[str, Tensor]],
    measured: Sequence[Measured],
    condition: Condition,
) -> Trace:
    """Train on the batches under AdamW, and return the trace of the run."""
    began = time.process_time()
    parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=condition.rate, weight_decay=0.0)
    n_steps, log = condition.steps, _Log(model, parameters, measured, condition.steps)
    log.look(0)
    for step, batch in enumerate(batches, 1):
        share = share_of_rate(condition.schedule, step - 1, n_steps)
        for group in optimizer.param_groups:
            group["lr"] = share * condition.rate
        before = clone(parameters)
        model.train()
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        log.losses.append(float(loss.detach()))
        log.rates.append(share)
        log.note_update(before)
        log.look(step)
    trace = log.trace(condition)
    trace.about["processor_seconds"] = round(time.process_time() - began, 1)
    return trace


class _Log:
    """Readings of a run so far."""

    def __init__(
        self,
        model: nn.Module,
        parameters: list[Tensor],
        measured: Sequence[Measured],
        n_steps: int,
    ) -> None:
        self.model, self.parameters, self.measured = model, parameters, measured
        self.steps, self.refreshed = evaluated_steps(n_steps), refreshed_steps(n_steps)
        self.gradients = evaluation.ProtectedGradients()
        names = [own.behavior.name for own in measured]
        self.margins: dict[str, list[np.ndarray]] = {name: [] for name in names}
        self.interference: dict[str, list[float]] = {name: [] for name in names}
        self.norms: dict[str, list[float]] = {name: [] for name in names}
        self.losses: list[float] = []
        self.rates: list[float] = []

    def look(self, step: int) -> None:
        """Evaluate the probes, and refresh the gradients, where they are due."""
        behaviors = [own.behavior for own in self.measured]
        if step in self.refreshed:
            fresh = evaluation.ProtectedGradients.reserve(step, len(behaviors))
            for behavior in behaviors:
                result = evaluation.evaluate(behavior, self.model, self.parameters)
                self.margins[behavior.name].append(result.margins)
                fresh.take({behavior.name: result})
            self.gradients = fresh
            for name, norms in self.norms.items():
                norms.append(fresh.margin_gradients.norms[name])
        elif step in self.steps:
            for group in evaluation.group_by_forward_pass(behaviors, self.model):
                for name, result in evaluation.evaluate_batch(group, self.model).items():
                    self.margins[name].append(result.margins)

    def note_update(self, before: Sequence[Tensor]) -> None:
        """Keep ⟨h_b, Δθ⟩ of the step."""
        stack = self.gradients.margin_gradients
        update = FlatVector(Differences(self.parameters, before), stack.chunks)
        products = stack.inner_products(update)
        for name, values in self.interference.items():
            values.append(products.get(name, math.nan))

    def trace(self, condition: Condition) -> Trace:
        """Return all of it."""
        behaviors = {
            own.behavior.name: BehaviorTrace(
                np.array(self.margins[own.behavior.name]),
                own.groups,
                np.array(self.interference[own.behavior.name]),
                np.array(self.norms[own.behavior.name]),
                own.behavior.floor,
            )
            for own in self.measured
        }
        rates = np.array(self.rates)
        facts: dict[str, Any] = dict(condition.about)
        return Trace(
            CORPUS,
            condition.name,
            condition.half,
            facts,
            np.array(self.steps),
            rates / rates.max(),
            np.array(self.losses),
            np.array(self.refreshed),
            behaviors,
        )
