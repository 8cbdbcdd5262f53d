"""If drifting features are anchored, does erosion move to other features?"""

from __future__ import annotations

from experiments.erosion_rerouting import analysis, tables
from experiments.erosion_rerouting.analysis import Runs
from experiments.erosion_rerouting.figure import detour_figure
from experiments.erosion_rerouting.plan import Plan
from experiments.erosion_rerouting.simulate import Run, simulate
from experiments.harness.study import Session, Study

MAIN = "C_context"  # the figure's task: the only one with all conditions


def collect(runs: list[Run], _session: Session[Plan]) -> Runs:
    """Return the runs by condition, task and seed."""
    return {(run.condition, run.task, run.seed): run for run in runs}


STUDY = Study(
    name="erosion_rerouting",
    title="Detour: held features and the erosion that goes on, {kind} seeds",
    plan=Plan,
    jobs=lambda s: [(*job, s.preregistration) for job in s.plan.jobs(s.exploratory)],
    simulate=simulate,
    collect=collect,
    claims=lambda runs, plan: {
        f"{one.claim}, {one.task}": one.conclusion for one in analysis.conclude(runs, plan)
    },
    sections=tables.sections,
    figures={"detour": lambda runs, plan: detour_figure(runs, MAIN, plan.conditions[MAIN])},
)
