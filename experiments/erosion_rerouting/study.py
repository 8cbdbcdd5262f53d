"""If drifting features are anchored, does erosion move to other features?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np

from experiments.erosion_rerouting import analysis
from experiments.erosion_rerouting.analysis import HOLDING, Runs, restored
from experiments.erosion_rerouting.plan import Plan
from experiments.erosion_rerouting.simulate import ROUTES, Run, simulate
from experiments.erosion_rerouting.tasks import ABOUT, PLAIN
from experiments.harness.markdown import NOTHING, count_of_total, fill, median_range
from experiments.harness.study import Session, Study
from riprap.behaviors import DEFAULT_FLOOR
from riprap.report import apply_style, inline_data, style


def sections(runs: Runs, plan: Plan) -> dict[str, Any]:
    """Return the tables and texts of the page."""
    claims = [
        {
            "claim": one.claim,
            "new task": one.task,
            "shown": f"{one.shown} of {one.seeds} seeds",
            "verdict": f"**{one.conclusion}**",
        }
        for one in analysis.conclude(runs, plan)
    ]
    return {
        "claims": claims,
        "conditions": [{"condition": name, "what is done": text} for name, text in ABOUT.items()],
        "tasks": "\n".join(_task_section(runs, task, plan) for task in plan.conditions),
    }


def _by_condition(runs: Runs, task: str, conditions: Sequence[str]) -> dict[str, list[Run]]:
    return {
        name: [
            run for (condition, where, _), run in runs.items() if (condition, where) == (name, task)
        ]
        for name in conditions
    }


def _task_section(runs: Runs, task: str, plan: Plan) -> str:
    own = _by_condition(runs, task, plan.conditions[task])
    plain = {run.seed: run for run in own[PLAIN]}
    names = list(own[PLAIN][0].marks[0].scores)
    steps = (plan.window, plan.steps)
    return fill(
        Path(__file__).with_name("task.md"),
        task=task,
        plan=plan,
        lost=analysis.LOST,
        breaks=[{"condition": c, **_times(same, plain, plan)} for c, same in own.items()],
        kept=[
            {"condition": c, "step": step, **_kept(same, step, names)}
            for c, same in own.items()
            for step in steps
        ],
        moved=[{"condition": c, **_moved(same, plan.steps)} for c, same in own.items()],
        restored=[
            {"condition": c, **row} for c, same in own.items() for row in _restored(same, names)
        ],
    )


def _times(same: Sequence[Run], plain: dict[int, Run], plan: Plan) -> dict[str, Any]:
    broken = [(run, mark) for run in same if (mark := analysis.first_broken(run)) is not None]
    holding = same[0].condition in HOLDING
    movements = (
        [analysis.strayed(run, plain[run.seed], m.step) for run, m in broken] if holding else []
    )
    routes = [analysis.main_route(mark) for _, mark in broken]
    counts = ", ".join(
        f"{route or 'none'} {routes.count(route)}" for route in dict.fromkeys(routes)
    )
    return {
        "broke": count_of_total(len(broken), len(same)),
        "at steps": ", ".join(str(mark.step) for _, mark in broken) or NOTHING,
        "held moved": median_range(movements, 3),
        "by way of": counts or NOTHING,
        "new task at the end": median_range([run.marks[-1].learned for run in same], 2),
    }


def _kept(same: Sequence[Run], step: int, names: Sequence[str]) -> dict[str, str]:
    marks = [run.at(step) for run in same]
    row = {}
    for name in names:
        row[f"{name} score"] = median_range([mark.scores[name] for mark in marks], 2)
        row[f"{name} unseen"] = median_range([mark.unseen_scores[name] for mark in marks], 2)
        row[f"{name} margin"] = median_range([mark.margins[name] for mark in marks], 2)
    return row | {"new task": median_range([mark.learned for mark in marks], 2)}


def _moved(same: Sequence[Run], step: int) -> dict[str, str]:
    marks = [run.at(step) for run in same]
    row = {"features held": median_range([mark.features for mark in marks])}
    for part in marks[0].moved:
        row[part] = median_range([mark.moved[part] for mark in marks], 3)
        row[f"{part}, unseen"] = median_range([mark.unseen_moved[part] for mark in marks], 3)
    return row


def _restored(same: Sequence[Run], names: Sequence[str]) -> list[dict[str, str]]:
    rows = []
    for name in names:
        shares = [one for run in same if (one := analysis.restored(run.marks[-1], name))]
        row = {route: median_range([one[route] for one in shares], 2) for route in ROUTES}
        rows.append({"behavior": name, "seeds": str(len(shares)), **row})
    return rows


WIDTH, HEIGHT, COLUMNS = 170, 90, 5
CELL, ROW = 44, 20
Rows = list[dict[str, object]]


def detour_figure(runs: Runs, task: str, conditions: Sequence[str]) -> alt.VConcatChart:
    """Plot scores over steps by condition, and the shares that transplants restore at the end."""
    own, order = _by_condition(runs, task, conditions), list(conditions)
    chart = alt.vconcat(
        _over_steps(_scores(own), order), _restored_panel(_shares(own), order), spacing=24
    )
    title = f"Held features, and training that goes on: {task}, probes, medians over seeds"
    return apply_style(chart.resolve_scale(color="independent").properties(title=title))


def _scores(own: dict[str, list[Run]]) -> Rows:
    return [
        {
            "condition": condition,
            "behavior": behavior,
            "step": mark.step,
            "score": float(np.median([run.at(mark.step).scores[behavior] for run in same])),
        }
        for condition, same in own.items()
        for mark in same[0].marks
        for behavior in mark.scores
    ]


def _shares(own: dict[str, list[Run]]) -> Rows:
    rows: Rows = []
    for condition, same in own.items():
        for behavior in same[0].marks[-1].scores:
            shares = [one for run in same if (one := restored(run.marks[-1], behavior))]
            # Omit a behavior that most seeds have kept.
            if 2 * len(shares) > len(same):
                rows += [
                    {
                        "condition": condition,
                        "behavior": behavior,
                        "route": route,
                        "share": float(np.median([one[route] for one in shares])),
                    }
                    for route in ROUTES
                ]
    return rows


def _over_steps(rows: Rows, order: list[str]) -> alt.FacetChart:
    base = alt.Chart(inline_data(rows))
    lines = base.mark_line(point=True, opacity=0.8).encode(
        x=alt.X("step:Q", title="step"),
        y=alt.Y("score:Q", title="score", scale=alt.Scale(domain=[0, 1])),
        color=alt.Color("behavior:N", title="behavior"),
    )
    floor = base.mark_rule(strokeDash=[4, 3], color=style.MUTED).encode(y=alt.datum(DEFAULT_FLOOR))
    chart = alt.layer(floor, lines).properties(width=WIDTH, height=HEIGHT)
    return chart.facet(facet=alt.Facet("condition:N", title=None, sort=order), columns=COLUMNS)


def _restored_panel(rows: Rows, order: list[str]) -> alt.FacetChart:
    base = alt.Chart(inline_data(rows)).encode(
        x=alt.X("route:N", title=None, sort=list(ROUTES), axis=alt.Axis(labelAngle=-40)),
        y=alt.Y("condition:N", title=None, sort=order),
    )
    scale = alt.Scale(scheme="blues", domain=[0, 1], clamp=True)
    boxes = base.mark_rect().encode(color=alt.Color("share:Q", scale=scale, title="brought back"))
    numbers = base.mark_text(fontSize=10).encode(
        text=alt.Text("share:Q", format=".2f"),
        color=alt.condition("datum.share > 0.6", alt.value("white"), alt.value("black")),
    )
    size = {"width": CELL * len(ROUTES), "height": ROW * len(order)}
    title = "share of the lost margin that comes back at the end when a part is the start's again"
    column = alt.Column("behavior:N", title=title)
    return alt.layer(boxes, numbers).properties(**size).facet(column=column)


MAIN = "C_context"  # the figure's task: the only one with all conditions


def collect(runs: list[Run], _session: Session[Plan]) -> Runs:
    """Return the runs by condition, task and seed."""
    return {(run.condition, run.task, run.seed): run for run in runs}


STUDY = Study(
    name="erosion_rerouting",
    plan=Plan,
    jobs=lambda s: [(*job, s.preregistration) for job in s.plan.jobs(s.exploratory)],
    simulate=simulate,
    collect=collect,
    claims=lambda runs, plan: {
        f"{one.claim}, {one.task}": one.conclusion for one in analysis.conclude(runs, plan)
    },
    sections=sections,
    figures={"detour": lambda runs, plan: detour_figure(runs, MAIN, plan.conditions[MAIN])},
)
