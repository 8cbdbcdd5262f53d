"""Log of each step under a guard, with the data for an independent reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from guards.cases import ANSWERS, OLD, Run, last, lessons, old_loss, start
from riprap.guards import Guard

GROUPS = {"first": slice(0, 12), "second": slice(12, 24)}


@dataclass
class StepLog:
    """One step: θ before it, the task's gradient, what was added to it, θ after it."""

    theta: list[Tensor]
    task: list[Tensor]
    added: list[Tensor]
    after: list[Tensor] = field(default_factory=list)


def log_steps(
    guard: Guard,
    steps: int = 4,
    model: nn.Module | None = None,
    before_step: Callable[[int], None] = lambda step: None,
) -> tuple[list[StepLog], Run]:
    """Train in float64 under a guard, looking at each step."""
    run = Run(guard, (start() if model is None else model).double())
    trained = [p for p in run.model.parameters() if p.requires_grad]
    found: list[StepLog] = []

    def look(*_: object) -> None:
        found[-1].added = [
            p.grad.detach() - part for p, part in zip(trained, found[-1].task, strict=True)
        ]

    with run.monitor.watch(run.model, run.optimizer, guard=guard):
        run.optimizer.register_step_pre_hook(look)
        for step, (ids, targets) in enumerate(lessons(steps), 1):
            before_step(step)
            theta = [p.detach().clone() for p in trained]
            task = torch.autograd.grad(old_loss(run.model, (ids, targets)), trained)
            found.append(StepLog(theta, list(task), []))
            run.step(ids, targets)
            found[-1].after = [p.detach().clone() for p in trained]
    return found, run


def as_model(theta: list[Tensor]) -> Callable[[Tensor], Tensor]:
    """The model of `cases.start` at other weights, attached to them."""
    model = start().double()
    names = [name for name, _ in model.named_parameters()]
    return lambda ids: functional_call(model, dict(zip(names, theta, strict=True)), (ids,))


def gradient(value: Callable[[list[Tensor]], Tensor], theta: list[Tensor]) -> list[Tensor]:
    """∇ value at θ; 0 where it does not depend on a part."""
    own = [part.clone().requires_grad_() for part in theta]
    found = torch.autograd.grad(value(own), own, allow_unused=True)
    return [torch.zeros_like(a) if b is None else b for a, b in zip(own, found, strict=True)]


def near(one: list[Tensor], two: list[Tensor], tolerance: float = 1e-9) -> bool:
    """Within rounding of the largest entry, which must not be 0."""
    size = max(float(part.abs().max()) for part in two)
    pairs = zip(one, two, strict=True)
    return size > 0 and all(float((a - b).abs().max()) <= tolerance * size for a, b in pairs)


def used(step: StepLog) -> list[Tensor]:
    """The gradient that the optimizer used."""
    return [a + b for a, b in zip(step.task, step.added, strict=True)]


def group_loss(theta: list[Tensor], group: str) -> Tensor:
    return old_loss(as_model(theta), (OLD[GROUPS[group]], ANSWERS[GROUPS[group]]))  # type: ignore[arg-type]


def fisher(theta: list[Tensor]) -> list[Tensor]:
    """Σ over groups of the mean over probes of squared gradients, one probe at a time."""
    total = [torch.zeros_like(part) for part in theta]
    for i in range(24):
        one = gradient(
            lambda own, i=i: torch.nn.functional.cross_entropy(
                last(as_model(own), OLD[i : i + 1]), ANSWERS[i : i + 1]
            ),
            theta,
        )
        total = [a + b**2 / 12 for a, b in zip(total, one, strict=True)]
    return total
