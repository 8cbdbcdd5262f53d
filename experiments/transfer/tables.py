"""Tables of the transfer experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.harness import markdown
from experiments.harness.markdown import median_range, number
from experiments.transfer.analysis import Row, Transfer, choose, objective
from experiments.transfer.methods import GUARDS
from experiments.transfer.pareto_front import (
    Comparison,
    Point,
    compare,
    interval,
    passed,
    points_at,
    verdict,
)
from experiments.transfer.plan import PLAIN, Plan
from experiments.transfer.simulate import Run
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
    comparisons = [
        compare(points, budget, task) for task in plan.tasks for budget in plan.front.budgets
    ]
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
