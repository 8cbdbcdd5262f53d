"""How much of the plane of what is kept × what is learned guards dominate, alone and together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from experiments.transfer.pareto_front import Point

KEEPER = "keeper"


def hypervolume(points: Iterable[tuple[float, float]]) -> float:
    """Area that points (kept, learned) dominate in [0, 1]², both to be large, against (0, 0).

    Zitzler and Thiele, 1999.
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
    """The Keeper beside all always-on guards, at one task and budget; each list one a seed.

    Attributes:
        keeper: what the Keeper dominates alone.
        best: what the always-on guard with the best mean over seeds does, which is `name`.
        others: what all always-on guards do together, which is more than any can.
        all: what they do with the Keeper among them.
    """

    task: str
    budget: float
    name: str
    keeper: list[float]
    best: list[float]
    others: list[float]
    all: list[float]


def compare(points: Sequence[Point], budget: float, task: str) -> Comparison:
    """Hypervolumes at a budget.

    Args:
        points: of all guards; those of the plain run are passed over.
    """
    own = [point for point in points if point.task == task and point.budget == budget]
    guards = sorted({point.guard for point in own} - {"plain", KEEPER})
    seeds = sorted({point.seed for point in own})

    def of(names: Sequence[str]) -> list[float]:
        chosen = {s: [p for p in own if p.seed == s and p.guard in names] for s in seeds}
        return [hypervolume((p.worst, p.learned) for p in chosen[s]) for s in seeds]

    alone = {name: of([name]) for name in guards}
    name = max(guards, key=lambda guard: float(np.mean(alone[guard])))
    together = of(guards), of([*guards, KEEPER])
    return Comparison(task, budget, name, of([KEEPER]), alone[name], *together)


def verdict(found: Sequence[Comparison]) -> str:
    """Whether the Keeper is below no always-on guard, and above the best on a task, in the mean."""
    ahead = {(one.task, one.budget): np.mean(one.keeper) - np.mean(one.best) for one in found}
    below = [f"{task} at {budget:g} ×" for (task, budget), lead in ahead.items() if lead < 0]
    above = [f"{task} at {budget:g} ×" for (task, budget), lead in ahead.items() if lead > 0]
    return (
        f"Below the best always-on guard: {', '.join(below) or 'nowhere'}. "
        f"Above it: {', '.join(above) or 'nowhere'}."
    )


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean, by Student's t over seeds."""
    middle, error = np.mean(values), stats.sem(values)
    reach = stats.t.ppf(0.975, len(values) - 1) * error
    return float(middle - reach), float(middle + reach)
