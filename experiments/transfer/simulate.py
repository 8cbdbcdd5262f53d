"""One run of the transfer study: a start, a new task, a guard, and what was kept and learned."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.harness.preregistration import PreregistrationError
from experiments.transfer.methods import BENCH
from experiments.transfer.plan import PLAIN, Plan
from experiments.worlds import FactsWorld
from riprap.detectors import score
from riprap.evaluation import evaluate
from riprap.guards import Guard
from riprap.monitor import Monitor

RUNS = Path("runs/transfer")


@dataclass(frozen=True)
class Run:
    """What came of a run.

    Attributes:
        scores, margins: of each behaviour at the end, on inputs that no guard has seen: neither
            probes nor pools; margins as a share of the start's mean.
        learned: accuracy on all of the new task.
        seconds: processor time of training, guard and monitor included.
        kept: bytes of tensors that the guard holds, as a share of the parameters'.
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


def simulate(guard: str, value: float, task: str, seed: int, plan: Plan) -> Run:
    """Make a run, or read it where it was made before.

    Raises:
        ProtocolError: the plan was made for another world.
    """
    terms = f"{plan.steps}-{plan.every}"
    file = RUNS / plan.world[:12] / f"{guard}-{value:g}-{task}-{seed}-{terms}.json"
    if file.exists():
        return Run(**json.loads(file.read_text()))
    torch.set_num_threads(1)
    world = FactsWorld()
    if plan.world != world.fingerprint:
        raise PreregistrationError(
            f"the plan was made for world {plan.world[:12]}…, this one is "
            f"{world.fingerprint[:12]}…: amend the protocol, with a reason"
        )
    run = _train(guard, value, task, seed, plan, world)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(run)))
    partial.rename(file)
    return run


def _train(name: str, value: float, task: str, seed: int, plan: Plan, world: FactsWorld) -> Run:
    model = world.start(seed).train()
    optimizer, batches = world.optimizer(model), world.batches(task, seed=seed)
    behaviors = world.behaviors()
    unseen = world.unseen()
    start = {b.name: float(evaluate(b, model).margins.mean()) for b in unseen}
    guard = None if name == PLAIN else BENCH[name].make(value, world)
    torch.manual_seed(seed)
    began = time.process_time()
    monitor = Monitor(behaviors, probe_every=plan.every)
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
    ended = {b.name: evaluate(b, model).margins for b in unseen}
    acted = {action.step for action in monitor.actions if action.applied}
    size = sum(p.nbytes for p in model.parameters())
    return Run(
        guard=name,
        value=value,
        task=task,
        seed=seed,
        scores={n: score(margins) for n, margins in ended.items()},
        margins={n: float(margins.mean()) / start[n] for n, margins in ended.items()},
        learned=world.evaluate(model, task),
        seconds=seconds,
        kept=0.0 if guard is None else held_bytes(guard) / size,
        acted=len(acted) / plan.steps,
    )


def held_bytes(guard: Guard) -> int:
    """Bytes of all tensors that a guard holds, its data included."""
    seen: dict[int, int] = {}
    for leaf in guard.flatten():
        for tensor in _tensors(vars(leaf), set()):
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(seen.values())


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
