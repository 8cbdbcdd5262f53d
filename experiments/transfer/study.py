"""Are the tools of safety and of continual learning interchangeable?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from experiments.harness import markdown
from experiments.harness.jobs import Job
from experiments.harness.knob_search import require_knobs
from experiments.harness.markdown import median_range, number
from experiments.harness.study import Session, Study
from experiments.transfer import analysis
from experiments.transfer.analysis import Row, Transfer, choose, objective
from experiments.transfer.methods import GUARDS
from experiments.transfer.pareto_front import (
    AUTO_GUARD,
    Comparison,
    Point,
    compare,
    front,
    interval,
    passed,
    points_at,
    verdict,
)
from experiments.transfer.plan import PLAIN, Plan
from experiments.transfer.simulate import Run, simulate
from experiments.worlds import FactsWorld
from riprap.guards import Guard


@dataclass(frozen=True)
class Results:
    """Rows by guard and task, the guards, and how each field's guards carry over."""

    rows: list[Row]
    guards: dict[str, Guard]
    fields: list[Transfer]


def search_sections(runs: Sequence[Run], plan: Plan) -> dict[str, Any]:
    """Return the table of the search, run by run."""
    plain = {(run.task, run.seed): run for run in runs if run.guard == PLAIN}
    best = choose(runs, plan.learned)
    lines = []
    for run in runs:
        knob = "" if run.guard == PLAIN else f"{GUARDS[run.guard].knob} = {run.value:g}"
        own = objective(run, plain[run.task, run.seed], plan.learned)
        lines.append(
            {
                "guard": run.guard,
                "knob": knob + (" ← chosen" if best.get(run.guard) == run.value else ""),
                "task": run.task,
                "worst score": number(min(run.scores.values()), 2),
                "new task": number(run.learned, 2),
                "value": number(own, 2),
            }
        )
    return {"runs": lines}


def sections(results: Results, _plan: Plan) -> dict[str, Any]:
    """Return the tables of the page."""
    tasks = dict.fromkeys(row.task for row in results.rows)
    tables = {task: _table(results.rows, task, results.guards) for task in tasks}
    return {
        "fields": [_field(one) for one in results.fields],
        "tasks": "\n\n".join(f"## After learning {t}\n\n{own}" for t, own in tables.items()),
    }


def _field(one: Transfer) -> dict[str, str]:
    low, high = one.interval
    return {
        "guards from": one.origin,
        "guards": str(one.guards),
        "safety kept (B, over_refusal)": number(one.safety, 2),
        "capability kept (A, facts)": number(one.capability, 2),
        "capability − safety, 95 %": (
            markdown.NOTHING if one.guards == 1 else f"[{number(low, 2)}, {number(high, 2)}]"
        ),
    }


def _table(rows: Sequence[Row], task: str, guards: Mapping[str, Guard]) -> str:
    lines = []
    for row in sorted(
        (row for row in rows if row.task == task),
        key=lambda row: (row.guard != PLAIN, -np.mean([min(s) for s in row.scores.values()])),
    ):
        origin = guards[row.guard].field_of_origin if row.guard in guards else markdown.NOTHING
        lines.append(
            {"guard": row.guard, "from": origin}
            | {name: median_range(scores, 2) for name, scores in row.scores.items()}
            | {f"margin {name}": median_range(own, 2) for name, own in row.margins.items()}
            | {
                "new task": median_range(row.learned, 2),
                "cost": median_range(row.cost, 2),
                "kept": number(row.kept, 1),
                "acted": f"{row.acted:.0%}",
            }
        )
    return markdown.table(lines)


def front_sections(points: Sequence[Point], plan: Plan) -> dict[str, Any]:
    """Return the tables of scores, learning and hypervolumes at equal time."""
    names = dict.fromkeys(point.guard for point in points)
    parts = []
    for task in plan.tasks:
        lines = []
        for name in names:
            for budget in (1.0,) if name == PLAIN else plan.front.budgets:
                own = [p for p in points_at(points, name, budget) if p.task == task]
                good = sum(passed(p, plan.front.kept) for p in own)
                lines.append(
                    {
                        "guard": name,
                        "time": number(budget, 1),
                        "steps": median_range([p.steps for p in own]),
                        "worst": median_range([p.worst for p in own], 2),
                        "new task": median_range([p.learned for p in own], 2),
                        "area": median_range([p.area for p in own], 2, "mean"),
                        f"both ≥ {plan.front.kept:g}": markdown.count_of_total(good, len(own)),
                    }
                )
        parts.append(f"## {task}\n\n{markdown.table(lines)}")
    cells = product(plan.tasks, plan.front.budgets)
    comparisons = [compare(points, budget, task) for task, budget in cells]
    return {
        "tasks": "\n\n".join(parts),
        "volumes": [_volume(one) for one in comparisons],
        "conclusion": verdict(comparisons),
    }


def _volume(one: Comparison) -> dict[str, str]:
    gaps = [ours - theirs for ours, theirs in zip(one.auto, one.best, strict=True)]
    return {
        "task": one.task,
        "time": number(one.budget, 1),
        "AutoGuard": _mean(one.auto),
        "best always-on": f"{one.name} {_mean(one.best)}",
        "AutoGuard − best": _mean(gaps),
        "always-on together": _mean(one.others),
        "with AutoGuard": _mean(one.all),
    }


def _mean(values: Sequence[float]) -> str:
    low, high = interval(values)
    return f"{number(np.mean(values), 3)} [{number(low, 3)}, {number(high, 3)}]"


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
    tasks = frame.task.unique()
    return alt.hconcat(*[_panel(frame[frame.task == t], t, order, columns) for t in tasks])


def _panel(frame: pd.DataFrame, task: str, order: list[str], columns: list[str]) -> Any:
    base = alt.Chart(frame, title=f"after learning {task}").encode(
        x=alt.X("what:N", sort=columns, title=None, axis=alt.Axis(labelAngle=-30)),
        y=alt.Y("guard:N", sort=order, title=None),
    )
    scale = alt.Scale(scheme="redyellowgreen", domain=[0, 1])
    boxes = base.mark_rect().encode(color=alt.Color("share:Q", scale=scale, title="score"))
    numbers = base.mark_text(fontSize=9, color="black")
    numbers = numbers.encode(text=alt.Text("share:Q", format=".2f"))
    return alt.layer(boxes, numbers).properties(width=220, height=16 * len(order))


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
    sections=search_sections,
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
    sections=front_sections,
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
    sections=sections,
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
