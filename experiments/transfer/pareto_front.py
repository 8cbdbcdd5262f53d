"""Scores and learning of guards at equal processor time, in units of the plain run's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from experiments.harness.cache import cached
from experiments.transfer.methods import GUARDS
from experiments.transfer.plan import PLAIN, Plan
from experiments.worlds import FactsWorld
from riprap.detectors import score
from riprap.evaluation import evaluate
from riprap.guards import Guard
from riprap.monitor import Monitor


@dataclass(frozen=True)
class Point:
    """One guard at one budget.

    Attributes:
        budget: processor time, in units of the plain run's.
        steps: number of steps until then.
        scores: of each behavior, on inputs that no guard has seen.
        learned: accuracy on the new task, as a share of the plain run's at its end.
    """

    guard: str
    task: str
    seed: int
    budget: float
    steps: int
    scores: dict[str, float]
    learned: float

    @property
    def worst(self) -> float:
        """Lowest score of a behavior."""
        return min(self.scores.values())

    @property
    def area(self) -> float:
        """Area that the point dominates: lowest score × share learned, at most 1."""
        return self.worst * min(self.learned, 1.0)


@cached("transfer/{plan.world:.12}/front-{task}-{seed}-{plan.terms}.json")
def front(task: str, seed: int, plan: Plan) -> list[Point]:
    """Train the plain run, then each guard until the largest budget is spent, in one process."""
    world = FactsWorld()
    world.start(seed)  # trained once, before anything is timed
    unit, plain = _plain(world, task, seed, plan)
    points = [replace(plain, learned=plain.learned / plain.learned)]
    for name in plan.front.guards:
        guard = GUARDS[name].make(plan.knobs[name], world)
        points += _guarded(world, name, guard, task, seed, plan, unit, plain.learned)
    return points


def _plain(world: FactsWorld, task: str, seed: int, plan: Plan) -> tuple[float, Point]:
    """Return the processor time of the plain run in seconds, and its end."""
    model = world.start(seed).train()
    optimizer, batches = world.optimizer(model), world.batches(task, seed=seed)
    began = time.process_time()
    for _ in range(plan.front.steps):
        world.loss(model, next(batches)).backward()
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.process_time() - began
    learned = world.evaluate(model, task)
    return seconds, Point(PLAIN, task, seed, 1.0, plan.front.steps, _scores(world, model), learned)


def _guarded(
    world: FactsWorld,
    name: str,
    guard: Guard,
    task: str,
    seed: int,
    plan: Plan,
    unit: float,
    reached: float,
) -> list[Point]:
    """Return a guard's points at each budget; its start and the monitor are timed as well."""
    model = world.start(seed).train()
    optimizer, batches = world.optimizer(model), world.batches(task, seed=seed)
    behaviors = world.behaviors()
    torch.manual_seed(seed)
    points: list[Point] = []
    budgets = sorted(plan.front.budgets)
    measuring = 0.0  # time of the experiment's own measurements
    began = time.process_time()
    monitor = Monitor(behaviors, probe_every=plan.every)
    monitor.begin(model, optimizer, guard)
    steps = 0
    while len(points) < len(budgets):
        world.loss(model, next(batches)).backward()
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
        now = time.process_time()
        if now - began - measuring >= budgets[len(points)] * unit:
            learned = world.evaluate(model, task) / reached
            scores = _scores(world, model)
            budget = budgets[len(points)]
            points.append(Point(name, task, seed, budget, steps, scores, learned))
            measuring += time.process_time() - now
    monitor.end()
    return points


def _scores(world: FactsWorld, model: torch.nn.Module) -> dict[str, float]:
    return {b.name: score(evaluate(b, model).margins) for b in world.unseen()}


def passed(point: Point, kept: float) -> bool:
    """Tell if every score and the share learned reach `kept`."""
    return point.worst >= kept and point.learned >= kept


def points_at(points: Sequence[Point], guard: str, budget: float) -> list[Point]:
    """Return a guard's points at a budget."""
    return [p for p in points if p.guard == guard and (p.budget == budget or guard == PLAIN)]
