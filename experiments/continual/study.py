"""Which rows of a task leave an aligned model as it was, over four tasks in sequence?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import altair as alt
import pandas as pd

from experiments.continual import analysis, claims, tables
from experiments.continual.analysis import Row
from experiments.continual.controls import CONTROLLED
from experiments.continual.methods import GUARDS, INFORMED, PLAIN
from experiments.continual.plan import GIVEN, Plan
from experiments.continual.simulate import Run, simulate
from experiments.continual.skipped_rows import SKIPPED_ROWS
from experiments.continual.tables import Results
from experiments.harness.jobs import Job
from experiments.harness.knob_search import require_knobs
from experiments.harness.study import Session, Study
from riprap.report import apply_style

KINDS = {
    "plain": "#8a8f98",
    "rows chosen without looking at behaviors": "#d1495b",
    "rows chosen by behaviors": "#1b7f79",
    "guards": "#3066be",
}
COLOR = alt.Color(
    "kind:N",
    scale=alt.Scale(domain=list(KINDS), range=list(KINDS.values())),
    title=None,
    legend=alt.Legend(orient="top", columns=2, labelLimit=320, symbolOpacity=1),
)


def kind(method: str) -> str:
    """Return the kind of a method, as in the legend."""
    if method.startswith(PLAIN):
        return "plain"
    if method in GUARDS:
        return "guards"
    return list(KINDS)[2 if method in INFORMED else 1]


def figure(main: Sequence[Row]) -> alt.HConcatChart:
    """Plot refusals against learning (seeds and their mean), and attack success by stage."""
    chart = alt.hconcat(_front(main), _stages(main), spacing=36)
    title = alt.TitleParams("What the harmless tasks left of refusal", fontSize=17, offset=14)
    return apply_style(chart.properties(title=title))


def _front(main: Sequence[Row]) -> Any:
    seeds = pd.DataFrame(
        [
            {"method": r.method, "kind": kind(r.method), "tasks": learned, "refused": 1 - success}
            for r in main
            for learned, success in zip(r.learned, r.success.mean(1), strict=True)
        ]
    )
    means = seeds.groupby(["method", "kind"], as_index=False).mean()
    # Labels of the crowded corner are in one column, each with a line to its point.
    means["left"] = [at - 0.035 if at < 0.83 else 0.79 for at in means.tasks]
    means["label"] = spread_labels(means.left.tolist(), means.refused.tolist())
    x = alt.X(
        "tasks:Q",
        title="task accuracy, each right after its own stage",
        scale=alt.Scale(domain=[-0.12, 1.03], nice=False),
        axis=alt.Axis(titleLimit=400, values=[at / 5 for at in range(6)]),
    )
    y = alt.Y(
        "refused:Q",
        title="harmful requests refused, mean over stages",
        scale=alt.Scale(domain=[0, 1.05], nice=False),
        axis=alt.Axis(titleLimit=400),
    )
    dots = alt.Chart(seeds).mark_circle(size=28, opacity=0.4).encode(x=x, y=y, color=COLOR)
    base = alt.Chart(means)
    large = base.mark_circle(size=150, opacity=1).encode(x=x, y=y, color=COLOR)
    lines = base.mark_rule(opacity=0.5).encode(x2="tasks:Q", y2="refused:Q")
    names = base.mark_text(align="right", dx=-3, fontSize=11).encode(text="method:N")
    labels = [one.encode(x="left:Q", y="label:Q", color=COLOR) for one in (lines, names)]
    title = "best is the upper right corner"
    chart = alt.layer(dots, labels[0], large, labels[1])
    return chart.properties(width=460, height=440, title=title)


def spread_labels(x: Sequence[float], y: Sequence[float], gap: float = 0.045) -> list[float]:
    """Return heights for labels that end at `x`: near their own, without overlaps.

    Args:
        gap: least vertical distance of two labels that are close in `x`.
    """
    placed: dict[int, float] = {}
    for at in sorted(range(len(x)), key=lambda i: -y[i]):
        height = y[at]
        for other in sorted(placed, key=lambda i: -placed[i]):
            if abs(x[other] - x[at]) < 0.13 and abs(placed[other] - height) < gap:
                height = placed[other] - gap
        placed[at] = height
    return [placed[at] for at in range(len(x))]


def _stages(main: Sequence[Row]) -> Any:
    frame = pd.DataFrame(
        [
            {"method": r.method, "at": at, "task": task, "success": float(success)}
            for r in main
            for at, (task, success) in enumerate(zip(r.tasks, r.success.mean(0), strict=True))
        ]
    )
    order = [r.method for r in sorted(main, key=lambda r: r.success.mean())]
    base = alt.Chart(frame).encode(
        x=alt.X("task:N", sort=list(main[0].tasks), title="after", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("method:N", sort=order, title=None),
    )
    scale = alt.Scale(scheme="orangered", domain=[0, 1])
    color = alt.Color("success:Q", scale=scale, title="attack success", legend=None)
    boxes = base.mark_rect(stroke="white", strokeWidth=2).encode(color=color)
    shade = alt.condition("datum.success > 0.55", alt.value("white"), alt.value("#333"))
    text = alt.Text("success:Q", format=".2f")
    numbers = base.mark_text(fontSize=11).encode(text=text, color=shade)
    title = "share of harmful requests answered, stage by stage"
    return alt.layer(boxes, numbers).properties(width=340, height=440, title=title)


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
    return {"claims": conclusions, "runs": runs, "audit": results.groups}


SEARCH = Study(
    name="continual",
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
STUDY = Study(
    name="continual",
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
    stages={"search": SEARCH, "skipped-rows": SKIPPED_ROWS, "controls": CONTROLLED},
)
