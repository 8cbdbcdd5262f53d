"""The study of spurious forgetting: runs, then tables, figure and verdicts."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.harness.jobs import run_jobs
from experiments.harness.preregistration import Preregistration
from experiments.spurious_forgetting import tables as pages
from experiments.spurious_forgetting.plan import Plan
from experiments.spurious_forgetting.simulate import FROZEN, TASKS, Run, simulate
from riprap.report import save


def run(out: Path, exploratory: bool = False, workers: int = 2) -> dict[str, Any]:
    """Make the runs that are missing, and write tables and figure.

    Args:
        out: folder of the results.
        exploratory: the exploratory seeds, in place of the study itself.
        workers: processes, one thread each.

    Returns:
        by task, whether each finding replicates, and the path written.

    Raises:
        ProtocolError: the protocol was changed since it was frozen.
    """
    preregistration = Preregistration.named("spurious_forgetting")
    if not exploratory:
        preregistration.verify()
    plan = Plan.of(preregistration)
    seeds = plan.exploratory if exploratory else plan.confirmatory
    jobs = [(task, frozen, seed, plan) for seed in seeds for task in TASKS for frozen in FROZEN]
    found: list[Run] = run_jobs(simulate, jobs, workers)
    out.mkdir(parents=True, exist_ok=True)
    kind = "exploratory" if exploratory else "confirmatory"
    save(pages.figure(found, plan), out / f"{kind}.png")
    page = "EXPLORED.md" if exploratory else "README.md"
    (out / page).write_text(pages.page(found, plan, preregistration, kind))
    (out / f"{kind}.json").write_text(json.dumps([asdict(one) for one in found], indent=0))
    return {"out": str(out), "verdicts": pages.verdicts(found, plan)}
