"""Scores and learning of guards at equal processor time, in units of the plain run's."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import stats

from experiments.harness.cache import cached
from experiments.transfer.methods import GUARDS
from experiments.transfer.plan import PLAIN, Plan
from experiments.worlds import FactsWorld
from riprap import signals
from riprap.detectors import score
from riprap.evaluation import evaluate
from riprap.monitor import Monitor

AUTO_GUARD = "keeper"


def hypervolume(points: Iterable[tuple[float, float]]) -> float:
    """Return the area in [0, 1]² that points (kept, learned) dominate, with reference point (0, 0).

    Source: Zitzler and Thiele, 1999.
    """
    area = height = 0.0
    inside = [(min(kept, 1.0), min(learned, 1.0)) for kept, learned in points]
    for kept, learned in sorted(inside, reverse=True):
        if learned > height:
            area += kept * (learned - height)
            height = learned
    return area


@dataclass(frozen=True)
class Comparison:
    """Hypervolumes of AutoGuard and always-on guards at one task and budget; one entry a seed.

    Attributes:
        auto: of AutoGuard alone.
        best: of the always-on guard with the best mean over seeds, which is `name`.
        others: of all always-on guards together, which is more than any of them alone.
        all: of all guards together.
    """

    task: str
    budget: float
    name: str
    auto: list[float]
    best: list[float]
    others: list[float]
    all: list[float]


def compare(points: Sequence[Point], budget: float, task: str) -> Comparison:
    """Compare hypervolumes at a budget.

    Args:
        points: of all guards; those of the plain run are ignored.
    """
    own = [point for point in points if point.task == task and point.budget == budget]
    guards = sorted({point.guard for point in own} - {"plain", AUTO_GUARD})
    seeds = sorted({point.seed for point in own})

    def of(names: Sequence[str]) -> list[float]:
        chosen = {s: [p for p in own if p.seed == s and p.guard in names] for s in seeds}
        return [hypervolume((p.worst, p.learned) for p in chosen[s]) for s in seeds]

    alone = {name: of([name]) for name in guards}
    name = max(guards, key=lambda guard: float(np.mean(alone[guard])))
    together = of(guards), of([*guards, AUTO_GUARD])
    return Comparison(task, budget, name, of([AUTO_GUARD]), alone[name], *together)


def verdict(comparisons: Sequence[Comparison]) -> str:
    """List where AutoGuard is below and above the best always-on guard, in the mean."""
    ahead = {(one.task, one.budget): np.mean(one.auto) - np.mean(one.best) for one in comparisons}
    below = [f"{task} at {budget:g} ×" for (task, budget), lead in ahead.items() if lead < 0]
    above = [f"{task} at {budget:g} ×" for (task, budget), lead in ahead.items() if lead > 0]
    return (
        f"Below the best always-on guard: {', '.join(below) or 'nowhere'}. "
        f"Above it: {', '.join(above) or 'nowhere'}."
    )


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean, by Student's t over seeds."""
    middle, error = np.mean(values), stats.sem(values)
    reach = stats.t.ppf(0.975, len(values) - 1) * error
    return float(middle - reach), float(middle + reach)


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
        points += _guarded(world, name, task, seed, plan, unit, plain.learned)
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
    world: FactsWorld, name: str, task: str, seed: int, plan: Plan, unit: float, reached: float
) -> list[Point]:
    """Return a guard's points at each budget; its start and the monitor are timed as well."""
    guard = GUARDS[name].make(plan.knobs[name], world)
    model = world.start(seed).train()
    optimizer, batches = world.optimizer(model), world.batches(task, seed=seed)
    behaviors = world.behaviors()
    torch.manual_seed(seed)
    points: list[Point] = []
    budgets, steps = sorted(plan.front.budgets), 0
    measuring = 0.0  # time of the experiment's own measurements
    began = time.process_time()
    monitor = Monitor(behaviors, probe_every=plan.every, signals=signals.per_step(), budget=None)
    monitor.begin(model, optimizer, guard)
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
