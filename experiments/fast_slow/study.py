"""Does text that holds what is transient spare the weights, and the old behaviors?"""

from __future__ import annotations

from typing import Any

from experiments.fast_slow import analysis, tables
from experiments.fast_slow.plan import Plan
from experiments.fast_slow.premise import PREMISE
from experiments.fast_slow.search import SEARCH
from experiments.fast_slow.simulate import Run, simulate
from experiments.harness.jobs import Job
from experiments.harness.study import Session, Study
from riprap.detectors import AlertPolicy


def jobs(session: Session[Plan]) -> list[Job]:
    """Return all runs, whose monitor has the detectors of the preregistration."""
    terms = session.preregistration
    policy = AlertPolicy(name=terms.name, detectors=terms.detectors).freeze()
    return [(*job, session.plan, policy) for job in session.plan.jobs(session.exploratory)]


def document(runs: list[Run], plan: Plan) -> dict[str, Any]:
    """Return verdicts and runs as plain data."""
    return {"claims": analysis.claims(runs, plan), "runs": runs}


STUDY = Study(
    name="fast_slow",
    plan=Plan,
    jobs=jobs,
    simulate=simulate,
    claims=analysis.claims,
    sections=tables.sections,
    figures={"curves_{kind}": tables.curves, "hacking_{kind}": tables.hacking},
    documents={"runs_{kind}.json": document},
    stages={"premise": PREMISE, "search": SEARCH},
)
