"""Stage of the experiment: controls by length and category, and several orders of the batches."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

from experiments.continual.analysis import attack_success
from experiments.continual.methods import CONTROLS
from experiments.continual.plan import MODERATE, Plan
from experiments.continual.simulate import Run, simulate_batches
from experiments.harness.difference import Difference
from experiments.harness.jobs import Job
from experiments.harness.markdown import median_range, number
from experiments.harness.study import Session, Study

RANDOM = "random"
Results = dict[str, dict[tuple[int, int], Run]]  # by method, then by aligned model and batches


def jobs(session: Session[Plan]) -> list[Job]:
    """Return all methods on all aligned models and orders of the batches."""
    plan = session.plan
    every = product(session.seeds, plan.draws, plan.controlled)
    return [(method, seed, batches, plan) for seed, batches, method in every]


def collect(runs: list[Run], session: Session[Plan]) -> Results:
    """Sort the runs by method, aligned model and batches."""
    found: Results = {}
    for (method, seed, batches, _), run in zip(jobs(session), runs, strict=True):
        found.setdefault(method, {})[seed, batches] = run
    return found


def success(run: Run) -> float:
    """Return attack success, mean over stages."""
    return float(np.mean(attack_success(run)))


def difference(results: Results, other: str, what: Any = success) -> Difference:
    """Compare moderate with another method on the same models and batches."""
    own = results[MODERATE]
    return Difference.of([what(run) - what(results[other][cell]) for cell, run in own.items()])


def over_models(results: Results, other: str) -> Difference:
    """Compare attack success by the means of each aligned model: few pairs, but independent."""
    pairs: dict[int, list[float]] = {}
    for cell, run in results[MODERATE].items():
        pairs.setdefault(cell[0], []).append(success(run) - success(results[other][cell]))
    return Difference.of([float(np.mean(own)) for own in pairs.values()])


def claims(results: Results, plan: Plan) -> dict[str, str]:
    """Return what the attack success of moderate rows is, against each other method."""
    found = {
        other: difference(results, other).verdict(plan.least)
        for other in plan.controlled
        if other != MODERATE
    }
    both = {found[name] for name in CONTROLS}
    gradients = both.pop() if len(both) == 1 else "cannot be told"
    return {f"moderate against {name}": verdict for name, verdict in found.items()} | {
        "gradients": gradients
    }


def sections(results: Results, plan: Plan) -> dict[str, Any]:
    """Return the tables of the page."""
    return {
        "methods": [_method(name, list(own.values())) for name, own in results.items()],
        "differences": [
            _difference(results, other, plan) for other in plan.controlled if other != MODERATE
        ],
        "spread": [_spread(name, own) for name, own in results.items()],
        "gradients": claims(results, plan)["gradients"],
    }


def _method(name: str, runs: Sequence[Run]) -> dict[str, str]:
    stages = np.mean([attack_success(run) for run in runs], axis=0)
    return {
        "method": name,
        "runs": str(len(runs)),
        "attack success": median_range([success(run) for run in runs], 2, "mean"),
        "by stage": ", ".join(number(share, 2) for share in stages),
        "tasks": median_range([run.learned for run in runs], 2, "mean"),
        **{
            category: f"{np.mean([stage[category] for run in runs for stage in run.taken]):.0%}"
            for category in runs[0].taken[0]
        },
        "response tokens": number(np.mean([run.tokens for run in runs]), 2),
    }


def _difference(results: Results, other: str, plan: Plan) -> dict[str, str]:
    found = difference(results, other)
    learned = difference(results, other, lambda run: run.learned)
    return {
        "moderate −": other,
        "attack success": _interval(found),
        "over models": _interval(over_models(results, other)),
        "tasks": _interval(learned),
        "verdict": found.verdict(plan.least),
    }


def _interval(found: Difference) -> str:
    return f"{number(found.mean, 2)} [{number(found.low, 2)}, {number(found.high, 2)}]"


def _spread(name: str, own: dict[tuple[int, int], Run]) -> dict[str, str]:
    """Return attack success by aligned model: of each order of the batches."""
    row = {"method": name}
    for seed in sorted({seed for seed, _ in own}):
        values = [success(run) for (one, _), run in own.items() if one == seed]
        row[f"model {seed}"] = ", ".join(number(value, 2) for value in values)
    return row


CONTROLLED: Study[Plan, Results] = Study(
    name="continual",
    template="controls.md",
    page="CONTROLS.md",
    plan=Plan,
    jobs=jobs,
    simulate=simulate_batches,
    collect=collect,
    claims=claims,
    sections=sections,
)
