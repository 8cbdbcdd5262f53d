"""The circuit study: runs, then tables, figure and verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.harness.jobs import run_jobs
from experiments.harness.preregistration import Preregistration
from experiments.shared_circuits import shared_units as sharing
from experiments.shared_circuits import tables as pages
from experiments.shared_circuits.analysis import Seed
from experiments.shared_circuits.figure import figure
from experiments.shared_circuits.frozen_parts import PARTS
from experiments.shared_circuits.plan import Plan
from experiments.shared_circuits.simulate import Run, simulate
from riprap.report import save_figure


def run(out: Path, exploratory: bool = False, workers: int = 2) -> dict[str, Any]:
    """Make the runs that are missing, and write tables and figure.

    Args:
        out: folder of the results.
        exploratory: the exploratory seeds, whose results are never reported as the study's.
        workers: processes, one thread each.

    Returns:
        the verdict on each claim, and the path written.

    Raises:
        ProtocolError: the protocol was changed since it was frozen.
    """
    preregistration = Preregistration.named("shared_circuits")
    if not exploratory:
        preregistration.verify()
    plan = Plan.of(preregistration)
    seeds = plan.exploratory if exploratory else plan.confirmatory
    conditions = plan.conditions()
    by_units = dict.fromkeys(c.task for c in conditions if c.held and c.held not in PARTS)
    run_jobs(sharing.find, [(task, s, plan) for s in seeds for task in by_units], workers)
    jobs = [(condition, seed, preregistration) for seed in seeds for condition in conditions]
    runs: list[Run] = run_jobs(simulate, jobs, workers)
    found = [Seed(s, {r.condition: r for r in runs if r.seed == s}, plan) for s in seeds]
    out.mkdir(parents=True, exist_ok=True)
    kind = "exploratory" if exploratory else "confirmatory"
    save_figure(figure(found), out / f"{kind}.png")
    page = "EXPLORED.md" if exploratory else "README.md"
    (out / page).write_text(pages.page(found, plan, preregistration, kind))
    return {"out": str(out), "verdicts": pages.verdicts(found, plan)}
