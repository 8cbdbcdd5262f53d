"""The detour study: every run of its frozen protocol, then tables, a figure and verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.erosion_rerouting import analysis as judging
from experiments.erosion_rerouting.figure import detour_figure
from experiments.erosion_rerouting.plan import Plan
from experiments.erosion_rerouting.simulate import Run, simulate
from experiments.erosion_rerouting.tables import page
from experiments.harness.jobs import run_jobs
from experiments.harness.preregistration import Preregistration
from riprap.report import save_figure

MAIN = "C_context"  # the figure's task: the only one with all conditions


def run(out: Path, exploratory: bool = False, workers: int = 2) -> dict[str, Any]:
    """Make the runs that are missing, and write tables, figure and verdicts.

    Args:
        out: folder of the results.
        exploratory: use the exploratory seeds, whose results are never reported as the study's.
        workers: processes, one thread each.

    Returns:
        the verdicts and the path written.

    Raises:
        ProtocolError: the protocol was changed since it was frozen.
    """
    preregistration = Preregistration.named("erosion_rerouting")
    if not exploratory:
        preregistration.verify()
    plan = Plan.of(preregistration)
    jobs = plan.jobs(exploratory)
    made: list[Run] = run_jobs(simulate, [(*job, preregistration) for job in jobs], workers)
    runs = dict(zip(jobs, made, strict=True))
    out.mkdir(parents=True, exist_ok=True)
    save_figure(detour_figure(runs, MAIN, plan.conditions[MAIN]), out / "detour.png")
    (out / "README.md").write_text(page(runs, preregistration, plan, exploratory))
    said = {f"{one.claim}, {one.task}": one.said for one in judging.verdicts(runs, plan)}
    return {"out": str(out), "verdicts": said}
