"""What the runs of the detour study showed, and whether its claims held."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from experiments.erosion_rerouting.plan import Plan
from experiments.erosion_rerouting.simulate import Mark, Run
from experiments.erosion_rerouting.tasks import ALL, BENCH, CLOSED, LAYERS, PLAIN, RANDOM, RESELECT
from riprap.behaviors import DEFAULT_FLOOR

Runs = Mapping[tuple[str, str, int], Run]  # by condition, task and seed
LOST = 0.1  # of the start's mean margin: of less than that no share is told
HOLDING = tuple(name for name in BENCH if name not in ("l2_sp", "kl"))  # these hold features


@dataclass(frozen=True)
class Verdict:
    """A claim on a task: how many seeds showed it, and what is said for that."""

    claim: str
    task: str
    shown: int
    seeds: int
    said: str


def kept_early(run: Run, plan: Plan) -> float:
    """The least share of a mean margin that is left at the window."""
    return min(run.at(plan.window).margins.values())


def strayed(run: Run, plain: Run, step: int) -> float:
    """How far the held features moved, as a share of what an unguarded run moved its drifted ones.

    The largest over layers; 1: as far as without a guard.
    """
    own, free = run.at(step).moved, plain.at(step).moved
    held = LAYERS[1:] if run.condition in ("one", "latents") else LAYERS
    return max(own[f"{layer[-1]} held"] / free[f"{layer[-1]} held"] for layer in held)


def came_round(run: Run, plain: Run, plan: Plan) -> Mark | None:
    """The first mark after the window at which a behaviour is broken and the features are still."""
    for mark in run.marks:
        late = mark.step > plan.window
        if late and mark.least < DEFAULT_FLOOR and strayed(run, plain, mark.step) <= plan.spared:
            return mark
    return None


def first_broken(run: Run) -> Mark | None:
    """The first mark at which a score is below its floor."""
    return next((mark for mark in run.marks if mark.least < DEFAULT_FLOOR), None)


def stopped(run: Run, plan: Plan) -> bool:
    """No behaviour was broken at any mark, and the new task is learned."""
    return first_broken(run) is None and run.marks[-1].learned >= plan.learned


def restored(mark: Mark, behavior: str) -> dict[str, float]:
    """By route the share of the lost margin that a transplant brings back; none of a small loss."""
    lost = 1 - mark.margins[behavior]
    if lost < LOST:
        return {}
    routes = mark.transplanted[behavior].items()
    return {route: (margin - mark.margins[behavior]) / lost for route, margin in routes}


def way(mark: Mark) -> str:
    """The route that brings back most of the behaviour whose score is lowest; empty of none."""
    worst = min(mark.scores, key=lambda name: (mark.scores[name], mark.margins[name]))
    shares = restored(mark, worst)
    return max(shares, key=lambda route: shares[route]) if shares else ""


def verdicts(runs: Runs, plan: Plan) -> list[Verdict]:
    """Of every claim on every task that has the runs it needs."""
    found = []
    for claim, (needed, shows) in CLAIMS.items():
        for task, conditions in plan.conditions.items():
            if not set(needed) <= set(conditions):
                continue
            seeds = sorted({seed for _, where, seed in runs if where == task})
            own = [{name: runs[name, task, seed] for name in needed} for seed in seeds]
            shown = sum(shows(one, plan) for one in own)
            said = "supported" if shown >= plan.seeds_of else "not supported"
            found.append(Verdict(claim, task, shown, len(seeds), said))
    return found


def _early(runs: Mapping[str, Run], plan: Plan) -> bool:
    return kept_early(runs[ALL], plan) >= plan.early > kept_early(runs[PLAIN], plan)


def _round(runs: Mapping[str, Run], plan: Plan) -> bool:
    return came_round(runs[ALL], runs[PLAIN], plan) is not None


def _through(runs: Mapping[str, Run], plan: Plan) -> bool:
    mark = came_round(runs[ALL], runs[PLAIN], plan)
    return mark is not None and way(mark) == "readout"


def _elsewhere(runs: Mapping[str, Run], plan: Plan) -> bool:
    own = runs[CLOSED]
    return stopped(own, plan) and min(own.marks[-1].unseen_scores.values()) < DEFAULT_FLOOR


def _as_well(runs: Mapping[str, Run], plan: Plan) -> bool:
    return kept_early(runs[RANDOM], plan) >= plan.as_well * kept_early(runs[ALL], plan)


Shows = Callable[[Mapping[str, Run], Plan], bool]
CLAIMS: dict[str, tuple[Sequence[str], Shows]] = {
    "holds early": ((PLAIN, ALL), _early),
    "comes round": ((PLAIN, ALL), _round),
    "comes round by the readout": ((PLAIN, ALL), _through),
    "re-selection stops it": ((RESELECT,), lambda runs, plan: stopped(runs[RESELECT], plan)),
    "closing the readout stops it": ((CLOSED,), lambda runs, plan: stopped(runs[CLOSED], plan)),
    "comes round on inputs that are not held": ((CLOSED,), _elsewhere),
    "random features do as well": ((ALL, RANDOM), _as_well),
}
