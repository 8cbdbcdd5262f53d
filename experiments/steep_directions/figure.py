"""Figure: alignment with the steep directions of a behavior and of unrelated margins."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import numpy as np

from experiments.harness.charts import apply_style, inline_data
from experiments.steep_directions.analysis import Run


def steep_figure(runs: Sequence[Run], chance: float) -> alt.LayerChart:
    """Plot one point a behavior and run; on the diagonal its own directions are not special."""
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
    y = alt.Y("own:Q", title="alignment with the behavior's margins", scale=scale)
    points = alt.Chart(inline_data(rows)).mark_point(size=60, filled=True, opacity=0.8)
    encoded = points.encode(
        x=x,
        y=y,
        color=alt.Color("condition:N", title="new task"),
        shape=alt.Shape("behavior:N", title="behavior"),
    )
    line = alt.Chart(inline_data([{"unrelated": end, "own": end} for end in ends]))
    level = alt.Chart(inline_data([{"own": chance}])).mark_rule(strokeDash=[4, 3])
    chart = alt.layer(line.mark_line(color="#999").encode(x=x, y=y), level.encode(y=y), encoded)
    title = "Steep alignment where whole cosines are near 0 (dashed: chance)"
    return apply_style(chart.properties(width=420, height=340, title=title))
