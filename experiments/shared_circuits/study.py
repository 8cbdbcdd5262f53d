"""Does a task on disjoint words do harm through a circuit that it shares with the old skill?"""

from __future__ import annotations

from experiments.harness.jobs import Job
from experiments.harness.study import Session, Study
from experiments.shared_circuits import tables
from experiments.shared_circuits.analysis import Seed
from experiments.shared_circuits.figure import figure
from experiments.shared_circuits.frozen_parts import PARTS
from experiments.shared_circuits.plan import Plan
from experiments.shared_circuits.shared_units import importances
from experiments.shared_circuits.simulate import Run, simulate


def jobs(session: Session[Plan]) -> list[Job]:
    """Return every condition on every seed, after measuring the components that some need."""
    conditions = session.plan.conditions()
    tasks = dict.fromkeys(c.task for c in conditions if c.held and c.held not in PARTS)
    session.run_jobs(importances, [(t, s, session.plan) for s in session.seeds for t in tasks])
    return [(c, seed, session.preregistration) for seed in session.seeds for c in conditions]


def collect(runs: list[Run], session: Session[Plan]) -> list[Seed]:
    """Group the runs by seed."""
    return [
        Seed(seed, {run.condition: run for run in runs if run.seed == seed}, session.plan)
        for seed in session.seeds
    ]


STUDY = Study(
    name="shared_circuits",
    title="The circuit, not the words? {Kind} seeds",
    plan=Plan,
    jobs=jobs,
    simulate=simulate,
    collect=collect,
    claims=tables.verdicts,
    sections=tables.sections,
    figures={"{kind}": lambda seeds, _: figure(seeds)},
)
