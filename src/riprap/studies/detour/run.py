"""The detour study: every run of its frozen protocol, then tables, a figure and verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from riprap.detectors import Protocol
from riprap.report import save
from riprap.studies.detour import judging
from riprap.studies.detour.figure import detour_figure
from riprap.studies.detour.pages import page
from riprap.studies.detour.plan import Plan
from riprap.studies.detour.simulate import Run, simulate
from riprap.studies.parallel import in_parallel

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
    protocol = Protocol.named("detour")
    if not exploratory:
        protocol.verify()
    plan = Plan.of(protocol)
    jobs = plan.jobs(exploratory)
    made: list[Run] = in_parallel(simulate, [(*job, protocol) for job in jobs], workers)
    runs = dict(zip(jobs, made, strict=True))
    out.mkdir(parents=True, exist_ok=True)
    save(detour_figure(runs, MAIN, plan.conditions[MAIN]), out / "detour.png")
    (out / "README.md").write_text(page(runs, protocol, plan, exploratory))
    said = {f"{one.claim}, {one.task}": one.said for one in judging.verdicts(runs, plan)}
    return {"out": str(out), "verdicts": said}
