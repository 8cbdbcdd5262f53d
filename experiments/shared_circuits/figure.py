"""Figure: how much of A each condition erodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np

from experiments.harness.charts import apply_style, inline_data, style
from experiments.shared_circuits import analysis
from experiments.shared_circuits.analysis import DISJOINT, Seed

COURSES = {  # of C_disjoint: frozen part, its color and dash
    "": (style.INK, [1, 0]),
    "words": (style.CONE, [1, 0]),
    "blocks": (style.BLUE, [6, 3]),
    "shared": (style.UP, [1, 0]),
    "unshared": (style.DOWN, [6, 3]),
}


def figure(seeds: Sequence[Seed]) -> Any:
    """Plot the harm of each condition and seed, and the scores of A under C_disjoint."""
    title = alt.TitleParams(
        "What washes the addition away?",
        subtitle="left: dots are seeds, bars their medians; right: medians over seeds",
    )
    return apply_style(alt.hconcat(_harms(seeds), _courses(seeds), spacing=36, title=title))


def _harms(seeds: Sequence[Seed]) -> Any:
    conditions = [str(condition) for condition in seeds[0].runs]
    rows = [
        {"condition": str(condition), "harm": analysis.harm(run)}
        for seed in seeds
        for condition, run in seed.runs.items()
    ]
    x = alt.X("harm:Q", title="harm: mean share of A lost")
    y = alt.Y(
        "condition:N",
        sort=conditions,
        title=None,
        axis=alt.Axis(labelLimit=220, minExtent=0, maxExtent=400, grid=True),
    )
    base = alt.Chart(inline_data(rows)).encode(y=y)
    dots = base.mark_point(size=28, filled=True, opacity=0.6, color=style.BLUE).encode(x=x)
    middles = base.mark_tick(thickness=2, size=12, color=style.INK)
    return alt.layer(dots, middles.encode(x=alt.X("median(harm):Q"))).properties(
        width=300, height=18 * len(conditions)
    )


def _courses(seeds: Sequence[Seed]) -> Any:
    rows: list[dict[str, Any]] = []
    for held in COURSES:
        runs = [seed.run(DISJOINT, held) for seed in seeds]
        scores = np.median([run.visits["score/A"] for run in runs], axis=0)
        done = np.median([run.visits["task"] for run in runs], axis=0)
        for step, score, task in zip(runs[0].visits["step"], scores, done, strict=True):
            shared = {"step": step, "held": held or "nothing"}
            rows.append({**shared, "value": float(score), "what": "A"})
            rows.append({**shared, "value": float(task), "what": "C_disjoint"})
    names = [held or "nothing" for held in COURSES]
    color = alt.Scale(domain=names, range=[c for c, _ in COURSES.values()])
    dash = alt.Scale(domain=names, range=[d for _, d in COURSES.values()])
    panels = []
    for what, title in (("A", "A, unseen inputs right"), ("C_disjoint", "C_disjoint, right")):
        own = [row for row in rows if row["what"] == what]
        lines = alt.Chart(inline_data(own)).mark_line(strokeWidth=2)
        panels.append(
            lines.encode(
                x=alt.X("step:Q", title="step", axis=alt.Axis(grid=False, tickCount=6)),
                y=alt.Y("value:Q", title=title, scale=alt.Scale(domain=[0, 1])),
                color=alt.Color("held:N", title="C_disjoint, held", scale=color, sort=names),
                strokeDash=alt.StrokeDash("held:N", title="C_disjoint, held", scale=dash),
            ).properties(width=300, height=170)
        )
    return alt.vconcat(*panels, spacing=20)
