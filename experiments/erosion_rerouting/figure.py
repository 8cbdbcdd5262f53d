"""Figure: scores over a long run, and the transplants that restore them."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import numpy as np

from experiments.erosion_rerouting.analysis import Runs, restored
from experiments.erosion_rerouting.simulate import Run
from experiments.erosion_rerouting.transplant import ROUTES
from experiments.harness.charts import apply_style, inline_data, style
from riprap.behaviors import DEFAULT_FLOOR

WIDTH, HEIGHT, COLUMNS = 170, 90, 5
CELL, ROW = 44, 20
Rows = list[dict[str, object]]


def detour_figure(runs: Runs, task: str, conditions: Sequence[str]) -> alt.VConcatChart:
    """Plot scores over steps by condition, and the shares that transplants restore at the end."""
    own = {
        condition: [
            run for (name, where, _), run in runs.items() if (name, where) == (condition, task)
        ]
        for condition in conditions
    }
    order = list(conditions)
    chart = alt.vconcat(
        _over_steps(_scores(own), order), _restored(_shares(own), order), spacing=24
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


def _restored(rows: Rows, order: list[str]) -> alt.FacetChart:
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
