"""Figure: heat map of final scores and learning by guard and task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import altair as alt
import numpy as np
import pandas as pd

from experiments.transfer.analysis import Row

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
