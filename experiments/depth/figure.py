"""Figure: detection window against depth."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from experiments.depth.analysis import DepthRun, most_common_setting
from experiments.harness.charts import apply_style, inline_data


def depth_figure(runs: Sequence[DepthRun]) -> alt.Chart:
    """Plot one point a run, deeper to the right."""
    common = most_common_setting(runs)
    rows = [
        {
            "depth": run.depth,
            "window": run.window,
            "installed": "more steps"
            if (run.degree.decay, run.degree.share) == common
            else "less of it, or more decay",
            "end": "broke" if run.broke is not None else "still standing at the end",
        }
        for run in runs
    ]
    x = alt.X(
        "depth:Q",
        title="norm of the loss gradient at the start (log; deeper to the right)",
        scale=alt.Scale(type="log", reverse=True),
        axis=alt.Axis(format=".0e", values=[1, 0.1, 0.01, 0.001, 0.0001]),
    )
    y = alt.Y(
        "window:Q",
        title="steps from first warning to break",
        scale=alt.Scale(type="symlog", constant=10),
    )
    chart = alt.Chart(inline_data(rows)).mark_point(size=70, filled=True, opacity=0.8)
    encoded = chart.encode(
        x=x, y=y, color=alt.Color("installed:N", title=None), shape=alt.Shape("end:N", title=None)
    )
    title = "Does a deeper behavior leave more time?"
    return apply_style(encoded.properties(width=460, height=300, title=title))
