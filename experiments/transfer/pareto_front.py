"""What guards keep and let learn at equal processor time, at budgets of the plain run's."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from experiments.transfer.methods import BENCH
from experiments.transfer.plan import PLAIN, Plan
from experiments.transfer.simulate import RUNS
from experiments.worlds import FactsWorld
from riprap.detectors import score
from riprap.evaluation import evaluate
from riprap.guards import Guard
from riprap.monitor import Monitor


@dataclass(frozen=True)
class Point:
    """One guard at one budget.

    Attributes:
        budget: processor time spent, in units of the plain run's.
        steps: taken until then.
        scores: of each behaviour, on inputs that no guard has seen.
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
        """The lowest score of a behaviour."""
        return min(self.scores.values())

    @property
    def area(self) -> float:
        """Dominated area of the point: worst score × what was learned, 1 at the most."""
        return self.worst * min(self.learned, 1.0)


def front(task: str, seed: int, plan: Plan) -> list[Point]:
    """The plain run, then each guard for as long as the largest budget allows; one process."""
    file = RUNS / plan.world[:12] / f"front-{task}-{seed}-{plan.config_hash()}.json"
    if file.exists():
        return [Point(**point) for point in json.loads(file.read_text())]
    torch.set_num_threads(1)
    world = FactsWorld()
    world.start(seed)  # trained once, outside of what is timed
    unit, plain = _plain(world, task, seed, plan)
    points = [plain]
    for name in plan.front.guards:
        guard = BENCH[name].make(plan.knobs[name], world)
        points += _guarded(world, name, guard, task, seed, plan, unit, plain.learned)
    relative = [
        asdict(p) | {"learned": p.learned / plain.learned if p.guard == PLAIN else p.learned}
        for p in points
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(relative))
    partial.rename(file)
    return [Point(**point) for point in relative]


def _plain(world: FactsWorld, task: str, seed: int, plan: Plan) -> tuple[float, Point]:
    """Its processor time in seconds, and where it ended."""
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
    """A guard's points, at each budget; its start and its monitor are timed too."""
    model = world.start(seed).train()
    optimizer, batches = world.optimizer(model), world.batches(task, seed=seed)
    behaviors = world.behaviors()
    torch.manual_seed(seed)
    points: list[Point] = []
    budgets = sorted(plan.front.budgets)
    apart = 0.0  # what the study's own measuring took
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
        if now - began - apart >= budgets[len(points)] * unit:
            learned = world.evaluate(model, task) / reached
            scores = _scores(world, model)
            budget = budgets[len(points)]
            points.append(Point(name, task, seed, budget, steps, scores, learned))
            apart += time.process_time() - now
    monitor.end()
    return points


def _scores(world: FactsWorld, model: torch.nn.Module) -> dict[str, float]:
    return {b.name: score(evaluate(b, model).margins) for b in world.unseen()}


def passed(point: Point, kept: float) -> bool:
    """Whether every behaviour and the new task are kept and learned as far as asked."""
    return point.worst >= kept and point.learned >= kept


def chosen(points: Sequence[Point], guard: str, budget: float) -> list[Point]:
    """A guard's points at a budget."""
    return [p for p in points if p.guard == guard and (p.budget == budget or guard == PLAIN)]
