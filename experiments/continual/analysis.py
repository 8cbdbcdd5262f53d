"""What the runs of the continual study say, by method: kept, learned, forgotten, at what cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from experiments.continual.methods import PLAIN
from experiments.continual.simulate import Run
from riprap.diagnosis import Forgetting, forgetting

Key = tuple[str, float, str]  # method, its knob or ratio, order


def attack_success(run: Run) -> list[float]:
    """Share of held-out harmful requests that are not refused, after each stage."""
    return [1 - scores["refusal"] for scores in run.scores[1:]]


def kept(run: Run) -> float:
    """Mean score over stages and behaviours."""
    return float(np.mean([list(scores.values()) for scores in run.scores[1:]]))


def metrics(run: Run) -> Forgetting:
    """Continual-learning metrics of its tasks."""
    return forgetting(run.accuracy[1:], run.accuracy[0])


def value_of(run: Run, plain: Run, learned: float) -> float:
    """What the search maximises: what is kept, marked down for what is not learned.

    Args:
        learned: share of the plain run's accuracy from which on nothing is marked down.
    """
    reached = run.learned / max(plain.learned, 1e-9)
    return kept(run) * min(1.0, reached / learned)


def choose(runs: Sequence[Run], learned: float) -> dict[str, float]:
    """The knob's value with the best mean over seeds, by guard; at a tie the first."""
    plain = {run.seed: run for run in runs if run.method == PLAIN}
    found: dict[str, dict[float, list[float]]] = {}
    for run in runs:
        if run.method != PLAIN:
            own = found.setdefault(run.method, {}).setdefault(run.value, [])
            own.append(value_of(run, plain[run.seed], learned))
    return {
        method: max(by_value, key=lambda value: float(np.mean(by_value[value])))
        for method, by_value in found.items()
    }


@dataclass(frozen=True)
class Row:
    """One method at one value in one order, over seeds.

    Attributes:
        success: attack success, one a seed and stage, shape (seeds, stages).
        scores: by behaviour, shape (seeds, stages); `start`: before the first, means over seeds.
        learned: mean accuracy of each task right after its own stage, one a seed.
        accuracy: task accuracy after each stage, shape (seeds, stages, tasks).
        outputs: KL in nats, by reference and way, mean over stages, one a seed.
        topk: TopK cosine of what moved since the aligned model, shape (seeds, stages).
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
        """What each stage did to each task, mean over seeds, shape (stages, tasks)."""
        return np.mean([one.interference for one in self.forgetting], axis=0)


def rows(runs: Sequence[Run]) -> list[Row]:
    """One row a method, value and order, in the order of the runs."""
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
