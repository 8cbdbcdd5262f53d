"""Conclusions from the runs: attack success, what was learned, and differences over cells."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from experiments.continual_real.methods import FRONT
from experiments.continual_real.plan import GIVEN, Plan
from experiments.continual_real.rows import WITHOUT_ANSWER
from experiments.continual_real.simulate import Run
from experiments.harness.difference import Difference
from experiments.harness.jobs import JobError

PLAIN, MODERATE, RANDOM = "plain", "moderate", "random"
UNKNOWN = "cannot be told"
CONTROLS = ("random_by_length", "random_by_category")
YOKED = "yoked_by_category"
Cell = tuple[int, int]  # base, seed of the data


def finished(runs: Sequence[Run], order: str = GIVEN) -> dict[str, dict[Cell, Run]]:
    """Return the runs of an order that did not fail, by method and cell."""
    found: dict[str, dict[Cell, Run]] = {}
    for run in runs:
        if not run.failed and run.order == order:
            found.setdefault(run.method, {})[run.base, run.seed] = run
    return found


def choose_rate(runs: Sequence[Run], eroded: float) -> float:
    """Return the lowest rate at which plain training erodes refusal on each exploratory base.

    The mean attack success of its seeds ends at `eroded` or more on each base. Without such a rate
    it is the highest. A rate at which a run failed is left out.

    Raises:
        JobError: runs failed at every rate.
    """
    ends = _ends(runs)
    if not ends:
        raise JobError(f"plain training failed at every rate: {runs[0].failed}")
    return min(_enough(ends, eroded), default=max(ends))


def erodes(runs: Sequence[Run], eroded: float) -> bool:
    """Tell if plain training at one of the rates erodes refusal on each exploratory base."""
    return bool(_enough(_ends(runs), eroded))


def _ends(runs: Sequence[Run]) -> dict[float, dict[int, list[float]]]:
    """Return the final attack success of plain training by rate and base, without failed rates."""
    failed = {run.rate for run in runs if run.failed}
    ends: dict[float, dict[int, list[float]]] = {}
    for run in runs:
        if run.rate not in failed:
            own = ends.setdefault(run.rate, {}).setdefault(run.base, [])
            own.append(run.looks[-1].attack_success())
    return ends


def _enough(ends: dict[float, dict[int, list[float]]], eroded: float) -> list[float]:
    return [rate for rate, bases in ends.items() if min(map(np.mean, bases.values())) >= eroded]


def learned(run: Run) -> float:
    """Return the mean share of a task's held-out loss that is gone at the end of its own stage."""
    shares = [
        1 - run.looks[at + 1].losses[task] / run.looks[0].losses[task]
        for at, task in enumerate(run.tasks)
    ]
    return float(np.mean(shares))


def expected(share: float, front: Sequence[Run]) -> float:
    """Return plain training's attack success where it has learned a share, along straight lines.

    Args:
        share: as of `learned`.
        front: plain training at some rates, all from one base, which is a point of the line too.
            Outside of its ends there is nothing to compare with: NaN.
    """
    ends = [(learned(run), run.looks[-1].attack_success()) for run in front]
    points = sorted([(0.0, front[0].looks[0].attack_success()), *ends])
    shares, successes = np.transpose(points)
    return float(np.interp(share, shares, successes, left=math.nan, right=math.nan))


def excess(run: Run, methods: dict[str, dict[Cell, Run]]) -> float:
    """Return a run's attack success minus that of plain training that learned as much.

    NaN if plain training has not finished at both rates on its base and seed, or never learned as
    much. Plain training at half of the rate is compared with the line without it, as a control.
    """
    cell = run.base, run.seed
    front = [methods.get(name, {}).get(cell) for name in (PLAIN, *FRONT)]
    known = [one for one in front if one is not None]
    if len(known) <= len(FRONT):
        return math.nan
    if run.method in FRONT:
        known = [one for one in known if one is not run]
    return run.looks[-1].attack_success() - expected(learned(run), known)


def difference(
    methods: dict[str, dict[Cell, Run]],
    one: str,
    other: str,
    value: Callable[[Run], float] = lambda run: run.looks[-1].attack_success(),
) -> Difference:
    """Compare a value of two methods, their final attack success, on the same bases and seeds."""
    first, second = methods.get(one, {}), methods.get(other, {})
    cells = sorted(set(first) & set(second))
    return Difference.of([value(first[cell]) - value(second[cell]) for cell in cells])


def erosion(methods: dict[str, dict[Cell, Run]]) -> Difference:
    """Return the rise of attack success from the base to the end of plain training, over cells."""
    looks = [run.looks for run in methods.get(PLAIN, {}).values()]
    return Difference.of([own[-1].attack_success() - own[0].attack_success() for own in looks])


def verdict(methods: dict[str, dict[Cell, Run]], one: str, other: str, plan: Plan) -> str:
    """Return what is said of the attack success of a method against that of another.

    What else could explain it is added: it learned less or more, or it refuses other safe prompts.
    """
    eroded = erosion(methods)
    if eroded.n < 2:
        return f"{UNKNOWN}: too few runs of plain training"
    if not (eroded.low > 0 and eroded.mean >= plan.least):
        return f"{UNKNOWN}: plain training eroded too little"
    said = difference(methods, one, other).verdict(plan.least)
    if said == UNKNOWN:
        return said
    more = difference(methods, one, other, lambda run: math.log(max(learned(run), 1e-9))).mean
    refused = difference(methods, one, other, lambda run: run.looks[-1].over_refusal).mean
    facts = [
        ("it learned less", said != "higher" and more < math.log(1 - plan.spared)),
        ("it learned more", said != "lower" and more > -math.log(1 - plan.spared)),
        ("it refuses more safe prompts", said != "higher" and refused >= plan.least),
        ("it refuses fewer safe prompts", said != "lower" and refused <= -plan.least),
    ]
    true = [text for text, holds in facts if holds]
    return f"{said}, but {' and '.join(true)}" if true else said


def claims(runs: Sequence[Run], plan: Plan) -> dict[str, str]:
    """Return the verdict on each claim.

    `gradients`: what the gradient decides beside length and category: the verdict that both matched
    controls share, and that nothing else could explain.
    """
    methods = finished(runs)
    found = {
        f"moderate against {name}": verdict(methods, MODERATE, name, plan)
        for name in (PLAIN, RANDOM, *CONTROLS, YOKED)
    }
    shared = {found[f"moderate against {name}"] for name in CONTROLS}
    clear = len(shared) == 1 and not any(", but " in one for one in shared)
    return found | {"gradients": shared.pop() if clear else UNKNOWN}


def forgotten(run: Run) -> float:
    """Return the mean rise of a task's loss from the end of its own stage to that of the last."""
    return _later(run, lambda losses: losses[-1] - losses[0])


def forgetting(run: Run) -> float:
    """Return the mean rise of a task's loss from its lowest since its own stage to the last."""
    return _later(run, lambda losses: losses[-1] - min(losses))


def _later(run: Run, rise: Callable[[list[float]], float]) -> float:
    """Return the mean of a value of the losses of each task but the last, from its stage on."""
    courses = [
        [look.losses[task] for look in run.looks[at + 1 :]]
        for at, task in enumerate(run.tasks[:-1])
    ]
    return float(np.mean([rise(losses) for losses in courses]))


def overlap(run: Run, other: Run) -> float:
    """Return the share of a run's chosen rows that another run chose in the same stage too."""
    pairs = [(set(a.chosen), set(b.chosen)) for a, b in zip(run.stages, other.stages, strict=True)]
    chosen = sum(len(own) for own, _ in pairs)
    return sum(len(own & others) for own, others in pairs) / chosen if chosen else math.nan


def unlike(run: Run, other: Run) -> float:
    """Return how far the categories of two runs' rows differ: 0 to 1, the mean over stages.

    Half of the sum of the differences of the shares (the total variation distance).
    """
    distances = [
        sum(abs(a.taken.get(k, 0) / a.rows - b.taken.get(k, 0) / b.rows) for k in a.taken | b.taken)
        for a, b in zip(run.stages, other.stages, strict=True)
    ]
    return float(np.mean(distances)) / 2


def refusing(run: Run) -> float:
    """Return the share of the SQuAD rows that a run learned whose answer is that there is none."""
    stage = next(stage for stage in run.stages if stage.task == "squad_v2")
    return stage.taken.get(WITHOUT_ANSWER, 0) / stage.rows


def largest_drop(run: Run) -> float:
    """Return the largest fall of the refusal score by one stage."""
    scores = [look.scores["refusal"] for look in run.looks]
    return max(before - after for before, after in itertools.pairwise(scores))
