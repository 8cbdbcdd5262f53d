"""One run: a start, a new task and a guard, with what was kept and learned."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from experiments.harness.cache import cached
from experiments.harness.plan import require_world
from experiments.transfer.methods import GUARDS
from experiments.transfer.plan import PLAIN, Plan
from experiments.worlds import FactsWorld
from riprap import signals
from riprap.detectors import score
from riprap.evaluation import evaluate
from riprap.guards import Guard
from riprap.monitor import Monitor


@dataclass(frozen=True)
class Run:
    """Results of a run.

    Attributes:
        scores, margins: of each behavior at the end, on inputs that no guard has seen: neither
            probes nor replayed inputs; margins as a share of the start's mean.
        learned: accuracy on all of the new task.
        seconds: processor time of training, including guard and monitor.
        kept: bytes of the guard's tensors, as a share of the parameters'.
        acted: share of the steps that the guard changed.
    """

    guard: str
    value: float
    task: str
    seed: int
    scores: dict[str, float]
    margins: dict[str, float]
    learned: float
    seconds: float
    kept: float
    acted: float


@cached("transfer/{plan.world:.12}/{name}-{value:g}-{task}-{seed}-{plan.steps}-{plan.every}.json")
def simulate(name: str, value: float, task: str, seed: int, plan: Plan) -> Run:
    """Train on one task under one guard, its main parameter at a value."""
    world = FactsWorld()
    require_world(plan.world, world.fingerprint)
    model = world.start(seed).train()
    optimizer, batches = world.optimizer(model), world.batches(task, seed=seed)
    behaviors = world.behaviors()
    unseen = world.unseen()
    start = {b.name: float(evaluate(b, model).margins.mean()) for b in unseen}
    guard = None if name == PLAIN else GUARDS[name].make(value, world)
    torch.manual_seed(seed)
    began = time.process_time()
    monitor = Monitor(behaviors, probe_every=plan.every, signals=signals.per_step(), budget=None)
    if guard is not None:
        monitor.begin(model, optimizer, guard)
    for _ in range(plan.steps):
        world.loss(model, next(batches)).backward()
        optimizer.step()
        optimizer.zero_grad()
        if monitor.should_stop:
            break
    monitor.end()
    seconds = time.process_time() - began
    end = {b.name: evaluate(b, model).margins for b in unseen}
    acted = {action.step for action in monitor.actions if action.applied}
    size = sum(p.nbytes for p in model.parameters())
    return Run(
        guard=name,
        value=value,
        task=task,
        seed=seed,
        scores={n: score(margins) for n, margins in end.items()},
        margins={n: float(margins.mean()) / start[n] for n, margins in end.items()},
        learned=world.evaluate(model, task),
        seconds=seconds,
        kept=0.0 if guard is None else held_bytes(guard) / size,
        acted=len(acted) / plan.steps,
    )


def held_bytes(guard: Guard) -> int:
    """Count the bytes of all tensors of a guard, including its data."""
    sizes: dict[int, int] = {}
    for leaf in guard.flatten():
        for tensor in _tensors(vars(leaf), set()):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(sizes.values())


def _tensors(value: Any, seen: set[int]) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif id(value) not in seen:
        seen.add(id(value))
        inside: Iterable[Any] = ()
        if isinstance(value, dict):
            inside = value.values()
        elif isinstance(value, list | tuple):
            inside = value
        elif type(value).__module__.startswith("riprap"):
            inside = vars(value).values() if hasattr(value, "__dict__") else ()
        for part in inside:
            yield from _tensors(part, seen)
