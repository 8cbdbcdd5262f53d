"""Shares kept and learned by guard, and transfer of guards between fields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.harness.knob_search import best_values, discount
from experiments.transfer.plan import PLAIN
from experiments.transfer.simulate import Run

SAFETY = ("B", "over_refusal")  # the others are capabilities and knowledge
DRAWS = 2000


def objective(run: Run, plain: Run, learned: float) -> float:
    """Return the search's objective: the lowest score, discounted for less learning.

    Args:
        learned: share of the plain run's accuracy from which nothing is subtracted.
    """
    return discount(min(run.scores.values()), run.learned, plain.learned, learned)


def choose(runs: Sequence[Run], learned: float) -> dict[str, float]:
    """Return the best value of each guard's parameter, by the mean over tasks and seeds."""
    plain = {(run.task, run.seed): run for run in runs if run.guard == PLAIN}
    return best_values(
        (run.guard, run.value, objective(run, plain[run.task, run.seed], learned))
        for run in runs
        if run.guard != PLAIN
    )


@dataclass(frozen=True)
class Row:
    """One guard on one task, over seeds.

    Attributes:
        scores, margins: by behavior, one a seed.
        learned, cost: as shares of the plain run of the same seed, one a seed.
        kept, acted: see `Run`.
    """

    guard: str
    task: str
    scores: dict[str, list[float]]
    margins: dict[str, list[float]]
    learned: list[float]
    cost: list[float]
    kept: float
    acted: float

    def retained(self, plain: Row) -> dict[str, float]:
        """Return the share of the plain run's loss of score that the guard prevented, by behavior.

        NaN if the plain run lost less than 0.1.
        """
        shares = {}
        for name, scores in self.scores.items():
            lost = 1 - np.mean(plain.scores[name])
            kept = float(1 - (1 - np.mean(scores)) / lost) if lost >= 0.1 else float("nan")
            shares[name] = kept
        return shares


def rows(runs: Sequence[Run]) -> list[Row]:
    """Return one row a guard and task, in the order of the runs."""
    plain = {(run.task, run.seed): run for run in runs if run.guard == PLAIN}
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.guard, run.task), []).append(run)
    return [
        Row(
            guard,
            task,
            {name: [run.scores[name] for run in own] for name in own[0].scores},
            {name: [run.margins[name] for run in own] for name in own[0].margins},
            [run.learned / plain[task, run.seed].learned for run in own],
            [run.seconds / plain[task, run.seed].seconds for run in own],
            float(np.mean([run.kept for run in own])),
            float(np.mean([run.acted for run in own])),
        )
        for (guard, task), own in groups.items()
    ]


@dataclass(frozen=True)
class Transfer:
    """Share of behaviors that the guards of one field keep, over guards, tasks and seeds.

    Attributes:
        safety, capability: mean prevented share of the loss, of safety behaviors and of others.
        interval: of capability − safety, 95 %, by resampling guards; NaN for a single guard.
    """

    origin: str
    guards: int
    safety: float
    capability: float
    interval: tuple[float, float]


def transfer(rows: Sequence[Row], origins: dict[str, str]) -> list[Transfer]:
    """Return one line a field; guards are resampled, since the claim is about guards."""
    plain = {row.task: row for row in rows if row.guard == PLAIN}
    results = []
    for origin in sorted(set(origins.values())):
        pairs = []
        for guard in [g for g, o in origins.items() if o == origin]:
            own = [row.retained(plain[row.task]) for row in rows if row.guard == guard]
            safety = [one[name] for one in own for name in SAFETY]
            others = [value for one in own for name, value in one.items() if name not in SAFETY]
            pairs.append((float(np.nanmean(safety)), float(np.nanmean(others))))
        values = np.array(pairs)
        drawn = np.random.default_rng(0).integers(len(values), size=(DRAWS, len(values)))
        differences = (values[drawn, 1] - values[drawn, 0]).mean(1)
        alone = len(values) == 1
        low, high = (np.nan, np.nan) if alone else np.quantile(differences, [0.025, 0.975])
        safe, able = map(float, values.mean(0))
        results.append(Transfer(origin, len(values), safe, able, (float(low), float(high))))
    return results
