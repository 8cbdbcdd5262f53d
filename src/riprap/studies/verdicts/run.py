"""The study of verdicts: checkpoints of known truth, diagnosed; then tables and figure."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from riprap.detectors import Protocol
from riprap.diagnosis import verdict
from riprap.evidence import ProtocolError
from riprap.report import save
from riprap.studies.parallel import in_parallel
from riprap.studies.verdicts import pages
from riprap.studies.verdicts.plan import Plan
from riprap.studies.verdicts.simulate import Found, simulate

THRESHOLDS = ("lost", "shown", "gone", "kept", "unsaid", "all", "habit")


def run(out: Path, exploratory: bool = False, workers: int = 2) -> dict[str, Any]:
    """Diagnose the checkpoints that were not yet, and write tables and figure.

    Args:
        out: folder of the results.
        exploratory: the exploratory seeds, in place of the study itself.
        workers: processes, one thread each.

    Returns:
        the numbers of the summary, and the path written.

    Raises:
        ProtocolError: the protocol was changed since it was frozen, or the verdict's thresholds
            are not those that it names.
    """
    protocol = Protocol.named("verdicts")
    if not exploratory:
        protocol.verify()
    plan = Plan.of(protocol)
    _check(plan)
    seeds = (plan.exploratory, () if exploratory else plan.confirmatory)
    jobs = [(name, seed, plan) for group in seeds for seed in group for name in plan.cases]
    every: list[Found] = in_parallel(simulate, jobs, workers)
    explored = [one for one in every if one.seed in plan.exploratory]
    found = explored if exploratory else [one for one in every if one.seed in plan.confirmatory]
    out.mkdir(parents=True, exist_ok=True)
    kind = "exploratory" if exploratory else "confirmatory"
    save(pages.figure(found, plan), out / f"{kind}.png")
    text = pages.page(found, explored, plan, protocol, kind)
    (out / ("EXPLORED.md" if exploratory else "README.md")).write_text(text)
    (out / f"{kind}.json").write_text(json.dumps([asdict(one) for one in found], indent=0))
    return {"out": str(out), "verdicts": pages.summary(found, plan)}


def _check(plan: Plan) -> None:
    """A verdict by other thresholds than the frozen ones would not be the study's."""
    named = {name: getattr(plan, name) for name in THRESHOLDS}
    used = {name: getattr(verdict, name.upper()) for name in named}
    if named != used:
        raise ProtocolError(
            f"protocol 'verdicts' names thresholds {named}, and the code has {used}"
        )
