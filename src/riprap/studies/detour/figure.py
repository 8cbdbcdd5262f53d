"""The figure of the detour study: scores over a long run, and which transplant restores them."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import numpy as np

from riprap.behaviors.behavior import FLOOR
from riprap.report import panels, style
from riprap.report.charts import styled
from riprap.studies.detour.judging import Runs, restored
from riprap.studies.detour.simulate import Run
from riprap.studies.detour.transplant import ROUTES

WIDTH, HEIGHT = 150, 90


def detour_figure(runs: Runs, task: str, conditions: Sequence[str]) -> alt.VConcatChart:
    """One column a condition: scores over steps, then the shares that transplants bring back."""
    own = {
        condition: [
            run for (name, where, _), run in runs.items() if (name, where) == (condition, task)
        ]
        for condition in conditions
    }
    scores = [
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
    shares = [
        {
            "condition": condition,
            "behavior": behavior,
            "route": route,
            "share": float(np.clip(np.median(values), -0.5, 1.25)),
        }
        for condition, same in own.items()
        for behavior in same[0].marks[-1].scores
        for route in ROUTES
        if (values := _shares(same, behavior, route))
    ]
    order = list(conditions)
    chart = alt.vconcat(
        _over_steps(scores, order), _restored(shares, order), spacing=24
    ).properties(title=f"After {task}: medians over seeds, probes")
    return styled(chart)


def _shares(same: Sequence[Run], behavior: str, route: str) -> list[float]:
    found = [restored(run.marks[-1], behavior) for run in same]
    return [one[route] for one in found if one]


def _over_steps(rows: list[dict[str, object]], order: list[str]) -> alt.FacetChart:
    base = alt.Chart(panels.data(rows))
    lines = base.mark_line(point=True).encode(
        x=alt.X("step:Q", title="step"),
        y=alt.Y("score:Q", title="score", scale=alt.Scale(domain=[0, 1])),
        color=alt.Color("behavior:N", title="behaviour"),
    )
    floor = base.mark_rule(strokeDash=[4, 3], color=style.QUIET).encode(y=alt.datum(FLOOR))
    chart = alt.layer(floor, lines).properties(width=WIDTH, height=HEIGHT)
    return chart.facet(column=alt.Column("condition:N", title=None, sort=order))


def _restored(rows: list[dict[str, object]], order: list[str]) -> alt.Chart:
    return (
        alt.Chart(panels.data(rows))
        .mark_point(filled=True, size=50, opacity=0.8)
        .encode(
            x=alt.X("share:Q", title="share of the lost margin brought back at the end"),
            y=alt.Y("route:N", title="put back", sort=list(ROUTES)),
            color=alt.Color("behavior:N", title="behaviour"),
            column=alt.Column("condition:N", title=None, sort=order),
        )
        .properties(width=WIDTH, height=HEIGHT)
    )
