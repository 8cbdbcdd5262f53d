"""The figure of the steep study: alignment with own and with unrelated steep directions."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import numpy as np

from experiments.steep_directions.analysis import Run
from riprap.report import _panels as panels
from riprap.report import styled


def steep_figure(runs: Sequence[Run], chance: float) -> alt.LayerChart:
    """One point a behaviour and run; on the diagonal the behaviour's own directions are nothing."""
    rows = [
        {
            "own": float(np.exp(np.log(run.column("steep")).mean())),
            "unrelated": float(np.exp(np.log(run.column("pairs")).mean())),
            "condition": run.condition,
            "behavior": run.behavior,
        }
        for run in runs
        if run.near.any()
    ]
    highest = max(float(str(row[side])) for row in rows for side in ("own", "unrelated"))
    ends = [chance / 2, highest * 1.5]
    scale = alt.Scale(type="log", domain=ends)
    x = alt.X("unrelated:Q", title="alignment with random differences of logits", scale=scale)
    y = alt.Y("own:Q", title="alignment with the behaviour's margins", scale=scale)
    points = alt.Chart(panels.data(rows)).mark_point(size=60, filled=True, opacity=0.8)
    encoded = points.encode(
        x=x,
        y=y,
        color=alt.Color("condition:N", title="new task"),
        shape=alt.Shape("behavior:N", title="behaviour"),
    )
    line = alt.Chart(panels.data([{"unrelated": end, "own": end} for end in ends]))
    level = alt.Chart(panels.data([{"own": chance}])).mark_rule(strokeDash=[4, 3])
    chart = alt.layer(line.mark_line(color="#999").encode(x=x, y=y), level.encode(y=y), encoded)
    title = "Steep alignment where whole cosines are near 0 (dashed: chance)"
    return styled(chart.properties(width=420, height=340, title=title))
