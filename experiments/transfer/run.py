"""The transfer study: a search of each guard's knob, then the confirmatory runs and pages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.harness.jobs import run_jobs
from experiments.harness.preregistration import Preregistration, PreregistrationError
from experiments.transfer import analysis as judging
from experiments.transfer import tables as pages
from experiments.transfer.figure import heat_map
from experiments.transfer.methods import BENCH
from experiments.transfer.pareto_front import front, passed
from experiments.transfer.plan import PLAIN, Plan
from experiments.transfer.simulate import Run, simulate
from experiments.worlds import FactsWorld
from riprap.report import save_figure

Job = tuple[str, float, str, int]  # guard, value of its knob, task, seed


def search(out: Path, workers: int = 2) -> dict[str, Any]:
    """Try every value of every knob on the exploratory seeds; the best goes into the protocol.

    Returns:
        the chosen values and the path written.
    """
    plan = Plan.of(Preregistration.named("transfer"))
    jobs: list[Job] = [
        (guard, value, task, seed)
        for guard in (PLAIN, *BENCH)
        for value in ((0.0,) if guard == PLAIN else BENCH[guard].values)
        for task in plan.tasks
        for seed in plan.exploratory
    ]
    runs = _made(jobs, plan, workers)
    chosen = judging.choose(runs, plan.learned)
    out.mkdir(parents=True, exist_ok=True)
    (out / "search.json").write_text(json.dumps([asdict(one) for one in runs], indent=0))
    (out / "SEARCH.md").write_text(pages.search_page(runs, chosen, plan))
    return {"out": str(out), "knobs": chosen}


def run(out: Path, workers: int = 2) -> dict[str, Any]:
    """Make the confirmatory runs that are missing, and write tables and figure.

    Returns:
        how each field's tools carry over, and the path written.

    Raises:
        ProtocolError: the protocol was changed since it was frozen, or has no knobs yet.
    """
    preregistration = Preregistration.named("transfer")
    preregistration.verify()
    plan = Plan.of(preregistration)
    missing = [guard for guard in BENCH if guard not in plan.knobs]
    if missing:
        raise PreregistrationError(
            f"protocol 'transfer' has no knob for {missing[0]!r}: `riprap study transfer --search` "
            "finds it, and `riprap protocol amend` puts it in"
        )
    jobs: list[Job] = [
        (guard, plan.knobs.get(guard, 0.0), task, seed)
        for seed in plan.confirmatory
        for guard in (PLAIN, *BENCH)
        for task in plan.tasks
    ]
    found = judging.rows(_made(jobs, plan, workers))
    world = FactsWorld()
    made = {name: entry.make(plan.knobs[name], world) for name, entry in BENCH.items()}
    origins = {name: guard.field_of_origin for name, guard in made.items()}
    carried = judging.transfer(found, origins)
    out.mkdir(parents=True, exist_ok=True)
    save_figure(heat_map(found, origins), out / "transfer.png")
    (out / "README.md").write_text(pages.page(found, carried, made, plan, preregistration))
    (out / "transfer.json").write_text(
        json.dumps({"rows": [asdict(row) for row in found], "fields": [asdict(c) for c in carried]})
    )
    return {"out": str(out), "fields": [asdict(one) for one in carried]}


def compare(out: Path, workers: int = 2) -> dict[str, Any]:
    """The Keeper against always-on guards at equal processor time.

    Returns:
        by task and seed whether the Keeper passed at 1.5 times the plain run's time.

    Raises:
        ProtocolError: the protocol was changed since it was frozen.
    """
    preregistration = Preregistration.named("transfer")
    preregistration.verify()
    plan = Plan.of(preregistration)
    pairs = [(task, seed) for seed in plan.front.seeds for task in plan.tasks]
    points = [
        point
        for run in run_jobs(front, [(*pair, plan) for pair in pairs], workers)
        for point in run
    ]
    out.mkdir(parents=True, exist_ok=True)
    (out / "front.json").write_text(json.dumps([asdict(point) for point in points]))
    (out / "FRONT.md").write_text(pages.front_page(points, plan, preregistration))
    verdicts = {
        f"{p.task} {p.seed}": passed(p, plan.front.kept)
        for p in points
        if p.guard == "keeper" and p.budget == 1.5
    }
    return {"out": str(out), "passed": verdicts}


def _made(jobs: Sequence[Job], plan: Plan, workers: int) -> list[Run]:
    """All runs, in the order of the jobs; those that exist are read."""
    return run_jobs(simulate, [(*job, plan) for job in jobs], workers)
