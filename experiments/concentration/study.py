"""Are safety behaviors special, or merely concentrated?"""

from __future__ import annotations

from dataclasses import asdict

from experiments.concentration import tables
from experiments.concentration.analysis import ROLES
from experiments.concentration.figure import figure
from experiments.concentration.plan import Plan
from experiments.concentration.simulate import REAL, TOY, simulate
from experiments.harness.jobs import Job
from experiments.harness.study import Session, Study
from experiments.smollm2.teaching import require_taught_model


def jobs(session: Session[Plan]) -> list[Job]:
    """Return every role on every start of the toy world and, if confirmatory, on SmolLM2."""
    starts = [(TOY, seed) for seed in session.seeds]
    starts += [] if session.exploratory else [(REAL, 0)]
    return [(*start, role, session.plan) for start in starts for role in ROLES]


STUDY = Study(
    name="concentration",
    title="Special, or merely concentrated? {Kind} seeds",
    note=lambda _: "How it is measured: `docs/curvature.md`. ",
    plan=Plan,
    check=lambda s: None if s.exploratory else require_taught_model(),
    jobs=jobs,
    simulate=simulate,
    claims=tables.verdicts,
    sections=tables.sections,
    figures={"{kind}": lambda runs, _: figure(runs)},
    documents={"{kind}.json": lambda runs, _: [asdict(run) for run in runs]},
)
