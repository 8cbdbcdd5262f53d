"""Conclusions from the runs: attack success, also at equal learning, and differences over cells."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from experiments.continual_real.methods import FRONT
from experiments.continual_real.plan import GIVEN, Plan
from experiments.continual_real.simulate import Run
from experiments.harness.difference import Difference
from experiments.harness.jobs import JobError

PLAIN, MODERATE, RANDOM = "plain", "moderate", "random"
CONTROLS = ("random_by_length", "random_by_category")
Cell = tuple[int, int]  # base, seed of the data


def finished(runs: Sequence[Run], order: str = GIVEN) -> dict[str, dict[Cell, Run]]:
    """Return the runs of an order that did not fail, by method and cell."""
    found: dict[str, dict[Cell, Run]] = {}
    for run in runs:
        if not run.failed and run.order == order:
            found.setdefault(run.method, {})[run.base, run.seed] = run
    return found


def choose_rate(runs: Sequence[Run], target: tuple[float, float]) -> float:
    """Return the lowest rate at which plain training ends with attack success in the target.

    Without one, the rate at which it ends nearest to the target's middle; of two the lower one.
    Over several seeds the mean counts. A rate at which a run failed is left out.

    Raises:
        JobError: runs failed at every rate.
    """
    ends: dict[float, list[float]] = {}
    for run in runs:
        ends.setdefault(run.rate, []).append(
            math.nan if run.failed else run.looks[-1].attack_success()
        )
    means = {rate: float(np.mean(own)) for rate, own in sorted(ends.items())}
    known = {rate: mean for rate, mean in means.items() if not math.isnan(mean)}
    if not known:
        raise JobError(f"plain training failed at every rate: {runs[0].failed}")
    inside = [rate for rate, mean in known.items() if target[0] <= mean <= target[1]]
    middle = sum(target) / 2
    return inside[0] if inside else min(known, key=lambda rate: round(abs(known[rate] - middle), 9))


def expected(loss: float, front: Sequence[Run]) -> float:
    """Return plain training's attack success at a task loss, along straight lines.

    Args:
        loss: mean held-out loss over the tasks.
        front: plain training at some rates, all from one base, which is a point of the line too.
            Outside of its ends the line is flat.
    """
    ends = [(run.looks[-1].loss, run.looks[-1].attack_success()) for run in front]
    start = front[0].looks[0]
    points = sorted([(start.loss, start.attack_success()), *ends])
    return float(np.interp(loss, *np.transpose(points)))


def excess(run: Run, methods: dict[str, dict[Cell, Run]]) -> float:
    """Return a run's attack success minus that of plain training at the same task loss.

    NaN if plain training has not finished on its base and seed.
    """
    cell = run.base, run.seed
    front = [methods.get(name, {}).get(cell) for name in (PLAIN, *FRONT)]
    known = [one for one in front if one is not None]
    if len(known) <= len(FRONT):
        return math.nan
    end = run.looks[-1]
    return end.attack_success() - expected(end.loss, known)


def difference(
    methods: dict[str, dict[Cell, Run]], one: str, other: str, equal: bool = False
) -> Difference:
    """Compare the final attack success of two methods on the same bases and seeds.

    Args:
        equal: at equal learning: of the excess over plain training at the same task loss.
    """

    def value(run: Run) -> float:
        return excess(run, methods) if equal else run.looks[-1].attack_success()

    first, second = methods.get(one, {}), methods.get(other, {})
    cells = sorted(set(first) & set(second))
    return Difference.of([value(first[cell]) - value(second[cell]) for cell in cells])


def claims(runs: Sequence[Run], plan: Plan) -> dict[str, str]:
    """Return the verdict on each claim.

    `gradients`: what the gradient decides beside length and category. It is "lower" only if
    moderate is lower than both controls at equal learning, and so on.
    """
    methods = finished(runs)
    found = {
        "moderate against plain": difference(methods, MODERATE, PLAIN),
        "moderate against random": difference(methods, MODERATE, RANDOM),
        **{
            f"moderate against {name}, at equal learning": difference(
                methods, MODERATE, name, equal=True
            )
            for name in CONTROLS
        },
    }
    verdicts = {name: own.verdict(plan.least) for name, own in found.items()}
    of_controls = set(list(verdicts.values())[-len(CONTROLS) :])
    verdicts["gradients"] = of_controls.pop() if len(of_controls) == 1 else "cannot be told"
    return verdicts


def learned(run: Run) -> float:
    """Return the mean fall of a task's held-out loss from the base to the end of its own stage."""
    return float(
        np.mean(
            [
                run.looks[0].losses[task] - run.looks[at + 1].losses[task]
                for at, task in enumerate(run.tasks)
            ]
        )
    )


def forgotten(run: Run) -> float:
    """Return the mean rise of a task's loss from the end of its own stage to that of the last."""
    pairs = [
        (run.looks[-1].losses[task], run.looks[at + 1].losses[task])
        for at, task in enumerate(run.tasks[:-1])
    ]
    return float(np.mean([last - own for last, own in pairs]))


def largest_drop(run: Run) -> float:
    """Return the largest fall of the refusal score by one stage."""
    scores = [look.scores["refusal"] for look in run.looks]
    return max(before - after for before, after in itertools.pairwise(scores))
