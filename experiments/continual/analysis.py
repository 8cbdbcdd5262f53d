"""Scores, learning, forgetting and cost by method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from experiments.continual.methods import PLAIN
from experiments.continual.simulate import Run
from experiments.harness.knob_search import best_values, discount
from riprap.diagnosis import Forgetting, forgetting

Key = tuple[str, float, str]  # method, its knob or ratio, order


def attack_success(run: Run) -> list[float]:
    """Return the share of held-out harmful requests that are not refused, after each stage."""
    return [1 - scores["refusal"] for scores in run.scores[1:]]


def kept(run: Run) -> float:
    """Return the mean score over stages and behaviors."""
    return float(np.mean([list(scores.values()) for scores in run.scores[1:]]))


def metrics(run: Run) -> Forgetting:
    """Return the continual-learning metrics of a run's tasks."""
    return forgetting(run.accuracy[1:], run.accuracy[0])


def objective(run: Run, plain: Run, learned: float) -> float:
    """Return the search's objective: the mean score, discounted for less learning.

    Args:
        learned: share of the plain run's accuracy from which nothing is subtracted.
    """
    return discount(kept(run), run.learned, plain.learned, learned)


def choose(runs: Sequence[Run], learned: float) -> dict[str, float]:
    """Return the best value of each guard's parameter, by the mean over seeds."""
    plain = {run.seed: run for run in runs if run.method == PLAIN}
    return best_values(
        (run.method, run.value, objective(run, plain[run.seed], learned))
        for run in runs
        if run.method != PLAIN
    )


@dataclass(frozen=True)
class Row:
    """One method at one value in one order, over seeds.

    Attributes:
        success: attack success, one a seed and stage, shape (seeds, stages).
        scores: by behavior, shape (seeds, stages); `start`: before the first, means over seeds.
        learned: mean accuracy of each task right after its own stage, one a seed.
        accuracy: task accuracy after each stage, shape (seeds, stages, tasks).
        outputs: KL in nats, by reference and direction, mean over stages, one a seed.
        topk: TopK cosine of the movement since the aligned model, shape (seeds, stages).
        cost: processor time as a share of the plain run's of the same seed and order.
        updates, rows: steps of the optimizer and rows learned from, means over seeds.
        taken: share of the learned rows by category, mean over seeds and stages.
        tokens: mean response tokens of the learned rows.
        forgetting: one a seed.
    """

    method: str
    value: float
    order: str
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    success: np.ndarray
    scores: dict[str, np.ndarray]
    start: dict[str, float]
    learned: np.ndarray
    accuracy: np.ndarray
    outputs: dict[str, np.ndarray]
    topk: np.ndarray
    cost: np.ndarray
    updates: float
    rows: float
    taken: dict[str, float]
    tokens: float
    forgetting: list[Forgetting] = field(repr=False)

    @property
    def interference(self) -> np.ndarray:
        """Effect of each stage on each task, mean over seeds, shape (stages, tasks)."""
        return np.mean([one.interference for one in self.forgetting], axis=0)


def rows(runs: Sequence[Run]) -> list[Row]:
    """Return one row a method, value and order, in the order of the runs."""
    plain = {(run.order, run.seed): run for run in runs if run.method == PLAIN}
    groups: dict[Key, list[Run]] = {}
    for run in runs:
        groups.setdefault((run.method, run.value, run.order), []).append(run)
    return [_row(key, own, plain) for key, own in groups.items()]


def _row(key: Key, runs: list[Run], plain: Mapping[tuple[str, int], Run]) -> Row:
    first = runs[0]
    return Row(
        *key,
        tasks=tuple(first.tasks),
        seeds=tuple(run.seed for run in runs),
        success=np.array([attack_success(run) for run in runs]),
        scores={
            name: np.array([[stage[name] for stage in run.scores[1:]] for run in runs])
            for name in first.scores[0]
        },
        start={n: float(np.mean([run.scores[0][n] for run in runs])) for n in first.scores[0]},
        learned=np.array([run.learned for run in runs]),
        accuracy=np.array([run.accuracy[1:] for run in runs]),
        outputs={
            name: np.array([np.mean([stage[name] for stage in run.outputs[1:]]) for run in runs])
            for name in first.outputs[0]
        },
        topk=np.array([[stage["topk"] for stage in run.alignment[1:]] for run in runs]),
        cost=np.array([run.seconds / plain[run.order, run.seed].seconds for run in runs]),
        updates=float(np.mean([run.updates for run in runs])),
        rows=float(np.mean([run.rows for run in runs])),
        taken={
            name: float(np.mean([stage[name] for run in runs for stage in run.taken]))
            for name in first.taken[0]
        },
        tokens=float(np.mean([run.tokens for run in runs])),
        forgetting=[metrics(run) for run in runs],
    )
