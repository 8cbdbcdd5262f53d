"""Which rows of a task leave an aligned model as it was, over four tasks in sequence?"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from experiments.continual import analysis, claims, tables
from experiments.continual.figure import figure
from experiments.continual.methods import GUARDS, PLAIN
from experiments.continual.plan import GIVEN, Plan
from experiments.continual.simulate import Run, simulate
from experiments.continual.skipped_rows import SKIPPED_ROWS
from experiments.continual.tables import Results
from experiments.harness.jobs import Job
from experiments.harness.knob_search import require_knobs
from experiments.harness.study import Session, Study


def search_jobs(session: Session[Plan]) -> list[Job]:
    """Return every value of every guard's parameter, in the given order."""
    values = [(PLAIN, 1.0)] + [(name, v) for name, guard in GUARDS.items() for v in guard.values]
    return [(*value, GIVEN, seed, session.plan) for seed in session.seeds for value in values]


def collect(runs: list[Run], _session: Session[Plan]) -> Results:
    """Summarize the runs by method."""
    return Results(runs, analysis.rows(runs), [group for run in runs for group in run.audit])


def document(results: Results, plan: Plan) -> dict[str, Any]:
    """Return claims, runs and audit as plain data."""
    runs = [{k: v for k, v in asdict(run).items() if k != "audit"} for run in results.runs]
    conclusions = claims.claims(results.rows, results.groups, plan)
    return {
        "claims": [asdict(one) for one in conclusions],
        "runs": runs,
        "audit": [asdict(group) for group in results.groups],
    }


SEARCH = Study(
    name="continual",
    title="Search of each guard's one main knob",
    note=tables.search_note,
    page="SEARCH.md",
    exploratory=True,
    plan=Plan,
    jobs=search_jobs,
    simulate=simulate,
    claims=lambda runs, plan: analysis.choose(runs, plan.learned),
    sections=tables.search_sections,
    documents={"search.json": lambda runs, _: [asdict(run) for run in runs]},
)
STUDY = Study(
    name="continual",
    title="Continual: which rows of a task leave an aligned model as it was?",
    note=tables.note,
    plan=Plan,
    check=lambda s: require_knobs("continual", s.plan.knobs, GUARDS),
    jobs=lambda s: [(*job, s.plan) for job in s.plan.jobs()],
    simulate=simulate,
    collect=collect,
    claims=lambda results, plan: {
        one.claim: one.met for one in claims.claims(results.rows, results.groups, plan)
    },
    sections=tables.sections,
    figures={"continual": lambda results, plan: figure(claims.main_rows(results.rows, plan))},
    documents={"continual.json": document},
    stages={"search": SEARCH, "skipped-rows": SKIPPED_ROWS},
)
