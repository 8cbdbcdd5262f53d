"""The circuit study: runs, then tables, figure and verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from riprap.detectors import Protocol
from riprap.report import save
from riprap.studies.circuit import pages, sharing
from riprap.studies.circuit.figure import figure
from riprap.studies.circuit.held import PARTS
from riprap.studies.circuit.judging import Seed
from riprap.studies.circuit.plan import Plan
from riprap.studies.circuit.simulate import Run, simulate
from riprap.studies.parallel import in_parallel


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
    protocol = Protocol.named("circuit")
    if not exploratory:
        protocol.verify()
    plan = Plan.of(protocol)
    seeds = plan.exploratory if exploratory else plan.confirmatory
    conditions = plan.conditions()
    by_units = dict.fromkeys(c.task for c in conditions if c.held and c.held not in PARTS)
    in_parallel(sharing.find, [(task, s, plan) for s in seeds for task in by_units], workers)
    jobs = [(condition, seed, protocol) for seed in seeds for condition in conditions]
    runs: list[Run] = in_parallel(simulate, jobs, workers)
    found = [Seed(s, {r.condition: r for r in runs if r.seed == s}, plan) for s in seeds]
    out.mkdir(parents=True, exist_ok=True)
    kind = "exploratory" if exploratory else "confirmatory"
    save(figure(found), out / f"{kind}.png")
    page = "EXPLORED.md" if exploratory else "README.md"
    (out / page).write_text(pages.page(found, plan, protocol, kind))
    return {"out": str(out), "verdicts": pages.verdicts(found, plan)}
