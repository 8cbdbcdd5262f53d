"""Are the tools of safety and of continual learning interchangeable?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import altair as alt
import numpy as np
import pandas as pd

from experiments.harness.jobs import Job
from experiments.harness.knob_search import require_knobs
from experiments.harness.study import Session, Study
from experiments.transfer import analysis, tables
from experiments.transfer.analysis import Row
from experiments.transfer.methods import GUARDS
from experiments.transfer.pareto_front import AUTO_GUARD, front, passed
from experiments.transfer.plan import PLAIN, Plan
from experiments.transfer.simulate import Run, simulate
from experiments.transfer.tables import Results
from experiments.worlds import FactsWorld

LEARNED = "new task"


def heat_map(rows: Sequence[Row], origins: Mapping[str, str]) -> alt.HConcatChart:
    """Plot one column a behavior and one row a guard, grouped by field; means over seeds."""
    cells = [
        {
            "guard": row.guard,
            "origin": origins.get(row.guard, "unguarded"),
            "task": row.task,
            "what": what,
            "share": float(np.mean(values)),
        }
        for row in rows
        for what, values in (row.scores | {LEARNED: row.learned}).items()
    ]
    frame = pd.DataFrame(cells)
    order = list(dict.fromkeys(frame.sort_values(["origin", "guard"]).guard))
    columns = [*rows[0].scores, LEARNED]
    parts = [
        _panel(frame[frame.task == task], task, order, columns) for task in frame.task.unique()
    ]
    chart: alt.HConcatChart = alt.hconcat(*parts)
    return chart


def _panel(frame: pd.DataFrame, task: str, order: list[str], columns: list[str]) -> alt.LayerChart:
    base = alt.Chart(frame, title=f"after learning {task}").encode(
        x=alt.X("what:N", sort=columns, title=None, axis=alt.Axis(labelAngle=-30)),
        y=alt.Y("guard:N", sort=order, title=None),
    )
    color = alt.Color(
        "share:Q", scale=alt.Scale(scheme="redyellowgreen", domain=[0, 1]), title="score"
    )
    boxes = base.mark_rect().encode(color=color)
    numbers = base.mark_text(fontSize=9, color="black").encode(
        text=alt.Text("share:Q", format=".2f")
    )
    return (boxes + numbers).properties(width=220, height=16 * len(order))


def search_jobs(session: Session[Plan]) -> list[Job]:
    """Return every value of every guard's parameter, on every task."""
    return [
        (guard, value, task, seed, session.plan)
        for guard in (PLAIN, *GUARDS)
        for value in ((0.0,) if guard == PLAIN else GUARDS[guard].values)
        for task in session.plan.tasks
        for seed in session.seeds
    ]


def collect(runs: list[Run], session: Session[Plan]) -> Results:
    """Summarize runs by guard and task, and guards by field."""
    rows, world = analysis.rows(runs), FactsWorld()
    guards = {name: e.make(session.plan.knobs[name], world) for name, e in GUARDS.items()}
    fields = {name: guard.field_of_origin for name, guard in guards.items()}
    return Results(rows, guards, analysis.transfer(rows, fields))


SEARCH = Study(
    name="transfer",
    template="search.md",
    page="SEARCH.md",
    exploratory=True,
    plan=Plan,
    jobs=search_jobs,
    simulate=simulate,
    claims=lambda runs, plan: analysis.choose(runs, plan.learned),
    sections=tables.search_sections,
    documents={"search.json": lambda runs, _: runs},
)
FRONT = Study(
    name="transfer",
    template="front.md",
    page="FRONT.md",
    plan=Plan,
    seeds=lambda plan: plan.front.seeds,
    jobs=lambda s: [(t, seed, s.plan) for seed in s.plan.front.seeds for t in s.plan.tasks],
    simulate=front,
    collect=lambda fronts, _: [point for points in fronts for point in points],
    claims=lambda points, plan: {
        f"{p.task} {p.seed}": passed(p, plan.front.kept)
        for p in points
        if p.guard == AUTO_GUARD and p.budget == 1.5
    },
    sections=tables.front_sections,
    documents={"front.json": lambda points, _: points},
)
STUDY = Study(
    name="transfer",
    plan=Plan,
    check=lambda s: require_knobs("transfer", s.plan.knobs, GUARDS),
    jobs=lambda s: [
        (guard, s.plan.knobs.get(guard, 0.0), task, seed, s.plan)
        for seed in s.seeds
        for guard in (PLAIN, *GUARDS)
        for task in s.plan.tasks
    ],
    simulate=simulate,
    collect=collect,
    claims=lambda results, _: {one.origin: asdict(one) for one in results.fields},
    sections=tables.sections,
    figures={
        "transfer": lambda results, _: heat_map(
            results.rows, {name: guard.field_of_origin for name, guard in results.guards.items()}
        )
    },
    documents={
        "transfer.json": lambda results, _: {"rows": results.rows, "fields": results.fields}
    },
    stages={"search": SEARCH, "front": FRONT},
)
