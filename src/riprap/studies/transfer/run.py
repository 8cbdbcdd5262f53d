"""The transfer study: a search of each guard's knob, then the confirmatory runs and pages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from riprap.detectors import Protocol
from riprap.evidence import ProtocolError
from riprap.report import save
from riprap.studies.parallel import in_parallel
from riprap.studies.transfer import judging, pages
from riprap.studies.transfer.bench import BENCH
from riprap.studies.transfer.figure import heat_map
from riprap.studies.transfer.front import front, passed
from riprap.studies.transfer.plan import PLAIN, Plan
from riprap.studies.transfer.simulate import Run, simulate
from riprap.studies.worlds import FactsWorld

Job = tuple[str, float, str, int]  # guard, value of its knob, task, seed


def search(out: Path, workers: int = 2) -> dict[str, Any]:
    """Try every value of every knob on the exploratory seeds; the best goes into the protocol.

    Returns:
        the chosen values and the path written.
    """
    plan = Plan.of(Protocol.named("transfer"))
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
    protocol = Protocol.named("transfer")
    protocol.verify()
    plan = Plan.of(protocol)
    missing = [guard for guard in BENCH if guard not in plan.knobs]
    if missing:
        raise ProtocolError(
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
    origins = {name: guard.origin for name, guard in made.items()}
    carried = judging.transfer(found, origins)
    out.mkdir(parents=True, exist_ok=True)
    save(heat_map(found, origins), out / "transfer.png")
    (out / "README.md").write_text(pages.page(found, carried, made, plan, protocol))
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
    protocol = Protocol.named("transfer")
    protocol.verify()
    plan = Plan.of(protocol)
    pairs = [(task, seed) for seed in plan.front.seeds for task in plan.tasks]
    points = [
        point
        for run in in_parallel(front, [(*pair, plan) for pair in pairs], workers)
        for point in run
    ]
    out.mkdir(parents=True, exist_ok=True)
    (out / "front.json").write_text(json.dumps([asdict(point) for point in points]))
    (out / "FRONT.md").write_text(pages.front_page(points, plan, protocol))
    verdicts = {
        f"{p.task} {p.seed}": passed(p, plan.front.kept)
        for p in points
        if p.guard == "keeper" and p.budget == 1.5
    }
    return {"out": str(out), "passed": verdicts}


def _made(jobs: Sequence[Job], plan: Plan, workers: int) -> list[Run]:
    """All runs, in the order of the jobs; those that exist are read."""
    return in_parallel(simulate, [(*job, plan) for job in jobs], workers)
