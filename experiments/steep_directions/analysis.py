"""Ratios of steep alignments over seeds, and the conclusion on each claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t

from experiments.steep_directions.plan import Plan
from experiments.steep_directions.simulate import COLUMNS

CONTROL = "null"


@dataclass(frozen=True)
class Run:
    """One behavior in one run.

    Attributes:
        rows: shape (measurements, columns), as `simulate.COLUMNS` names them.
        near: mask of the measurements with both whole cosines near 0, shape (measurements,).
    """

    condition: str
    seed: int
    behavior: str
    rows: np.ndarray
    near: np.ndarray

    def column(self, name: str) -> np.ndarray:
        """Return one column where the cosines are near 0."""
        return self.rows[self.near, COLUMNS.index(name)]

    def ratio(self, over: str | float) -> float:
        """Mean log ratio of the steep alignment to another column or number; NaN if empty."""
        other = over if isinstance(over, float) else self.column(over)
        values = np.log(self.column("steep") / other)
        return float(values.mean()) if len(values) else float("nan")


def behavior_runs(
    condition: str, seed: int, arrays: Mapping[str, np.ndarray], plan: Plan
) -> list[Run]:
    """Return the behaviors of one run, from what `simulate` returned."""
    runs = []
    for name, rows in arrays.items():
        cosines = rows[:, [COLUMNS.index("cosine_loss"), COLUMNS.index("cosine_margin")]]
        near = (np.abs(cosines) < plan.near_zero).all(1)
        runs.append(Run(condition, seed, name, rows, near))
    return runs


def interval(runs: Sequence[Run], over: str | float) -> tuple[float, float, float]:
    """Return the geometric mean of the ratio and its 95 % t-interval over seeds.

    A seed's value is the mean over its behaviors, each the mean log over its measurements.
    """
    seeds = sorted({run.seed for run in runs})
    values = [np.nanmean([run.ratio(over) for run in runs if run.seed == seed]) for seed in seeds]
    known = np.array([value for value in values if np.isfinite(value)])
    if len(known) < 2:
        return float(np.exp(known.mean())) if len(known) else float("nan"), 0.0, float("inf")
    half = t.ppf(0.975, len(known) - 1) * known.std(ddof=1) / len(known) ** 0.5
    middle = known.mean()
    return float(np.exp(middle)), float(np.exp(middle - half)), float(np.exp(middle + half))


def claims(runs: Sequence[Run], plan: Plan, chance: float) -> dict[str, str]:
    """Return the conclusion on the claim, and on its comparison with unrelated margins."""
    tasks = [condition for condition in plan.conditions if condition != CONTROL]
    own = {task: [run for run in runs if run.condition == task] for task in tasks}
    above = [task for task in tasks if interval(own[task], chance)[1] > plan.clearly]
    kinds = ("targets", "pairs")
    specific = [task for task in tasks if all(interval(own[task], k)[1] > 1 for k in kinds)]
    return {
        "clearly above chance where the whole cosines are near 0": _conclusion(above, tasks),
        "more than the alignment with margins that say nothing of the behavior": _conclusion(
            specific, tasks
        ),
    }


def _conclusion(supported: Sequence[str], tasks: Sequence[str]) -> str:
    if len(supported) == len(tasks):
        return "supported"
    return f"supported in {', '.join(supported)} alone" if supported else "not supported"
