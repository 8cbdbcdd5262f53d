"""Claims on erosion under anchored features, and the seeds that support them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from experiments.erosion_rerouting.plan import Plan
from experiments.erosion_rerouting.simulate import Measurement, Run
from experiments.erosion_rerouting.tasks import ALL, CLOSED, GUARDS, LAYERS, PLAIN, RANDOM, RESELECT
from riprap.behaviors import DEFAULT_FLOOR

Runs = Mapping[tuple[str, str, int], Run]  # by condition, task and seed
LOST = 0.1  # of the start's mean margin; shares of a smaller loss are not computed
HOLDING = tuple(name for name in GUARDS if name not in ("l2_sp", "kl"))  # these anchor features


@dataclass(frozen=True)
class Conclusion:
    """The conclusion of a claim on a task, with the number of seeds that showed it."""

    claim: str
    task: str
    shown: int
    seeds: int
    conclusion: str


def kept_early(run: Run, plan: Plan) -> float:
    """Return the smallest share of a mean margin that remains at the window."""
    return min(run.at(plan.window).margins.values())


def strayed(run: Run, plain: Run, step: int) -> float:
    """Return the movement of the anchored features, as a share of that in an unguarded run.

    The largest over layers; 1: as far as without a guard.
    """
    own, free = run.at(step).moved, plain.at(step).moved
    held = LAYERS[1:] if run.condition in ("one", "latents") else LAYERS
    return max(own[f"{layer[-1]} held"] / free[f"{layer[-1]} held"] for layer in held)


def came_around(run: Run, plain: Run, plan: Plan) -> Measurement | None:
    """Return the first measurement after the window with a broken behavior and unmoved features."""
    return next(
        (
            mark
            for mark in run.marks
            if mark.step > plan.window
            and mark.least < DEFAULT_FLOOR
            and strayed(run, plain, mark.step) <= plan.spared
        ),
        None,
    )


def first_broken(run: Run) -> Measurement | None:
    """Return the first measurement with a score below its floor."""
    return next((mark for mark in run.marks if mark.least < DEFAULT_FLOOR), None)


def stopped(run: Run, plan: Plan) -> bool:
    """Tell if no behavior was ever broken, and the new task is learned."""
    return first_broken(run) is None and run.marks[-1].learned >= plan.learned


def restored(measurement: Measurement, behavior: str) -> dict[str, float]:
    """Return by route the share of the lost margin that a transplant restores; empty: no loss."""
    lost = 1 - measurement.margins[behavior]
    if lost < LOST:
        return {}
    routes = measurement.transplanted[behavior].items()
    return {route: (margin - measurement.margins[behavior]) / lost for route, margin in routes}


def main_route(measurement: Measurement) -> str:
    """Return the route that restores most of the behavior with the lowest score."""
    scores, margins = measurement.scores, measurement.margins
    worst = min(scores, key=lambda name: (scores[name], margins[name]))
    shares = restored(measurement, worst)
    return max(shares, key=lambda route: shares[route]) if shares else ""


def conclude(runs: Runs, plan: Plan) -> list[Conclusion]:
    """Return the conclusion of every claim on every task that has the runs it needs."""
    conclusions = []
    for claim, (needed, shows) in CLAIMS.items():
        for task, conditions in plan.conditions.items():
            if not set(needed) <= set(conditions):
                continue
            seeds = sorted({seed for _, where, seed in runs if where == task})
            own = [{name: runs[name, task, seed] for name in needed} for seed in seeds]
            shown = sum(shows(one, plan) for one in own)
            conclusion = "supported" if shown >= plan.seeds_of else "not supported"
            conclusions.append(Conclusion(claim, task, shown, len(seeds), conclusion))
    return conclusions


def _early(runs: Mapping[str, Run], plan: Plan) -> bool:
    return kept_early(runs[ALL], plan) >= plan.early > kept_early(runs[PLAIN], plan)


def _through(runs: Mapping[str, Run], plan: Plan) -> bool:
    measurement = came_around(runs[ALL], runs[PLAIN], plan)
    return measurement is not None and main_route(measurement) == "readout"


def _elsewhere(runs: Mapping[str, Run], plan: Plan) -> bool:
    own = runs[CLOSED]
    return stopped(own, plan) and min(own.marks[-1].unseen_scores.values()) < DEFAULT_FLOOR


def _as_well(runs: Mapping[str, Run], plan: Plan) -> bool:
    return kept_early(runs[RANDOM], plan) >= plan.as_well * kept_early(runs[ALL], plan)


Shows = Callable[[Mapping[str, Run], Plan], bool]
CLAIMS: dict[str, tuple[Sequence[str], Shows]] = {
    "holds early": ((PLAIN, ALL), _early),
    "comes round": ((PLAIN, ALL), lambda r, plan: came_around(r[ALL], r[PLAIN], plan) is not None),
    "comes round by the readout": ((PLAIN, ALL), _through),
    "re-selection stops it": ((RESELECT,), lambda runs, plan: stopped(runs[RESELECT], plan)),
    "closing the readout stops it": ((CLOSED,), lambda runs, plan: stopped(runs[CLOSED], plan)),
    "comes round on inputs that are not held": ((CLOSED,), _elsewhere),
    "random features do as well": ((ALL, RANDOM), _as_well),
}
