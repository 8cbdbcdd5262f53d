"""Hypervolumes of guards in the plane of share kept × share learned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from experiments.transfer.pareto_front import Point

AUTO_GUARD = "keeper"


def hypervolume(points: Iterable[tuple[float, float]]) -> float:
    """Area in [0, 1]² that points (kept, learned) dominate, with reference point (0, 0).

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
