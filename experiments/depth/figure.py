"""The figure of the depth study: detection window against depth."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from experiments.depth.analysis import Installed, most_common_way
from riprap.report import _panels as panels
from riprap.report import styled


def depth_figure(found: Sequence[Installed]) -> alt.Chart:
    """One point a run, deeper to the right."""
    plain = most_common_way(found)
    rows = [
        {
            "depth": one.depth,
            "window": one.window,
            "installed": "more steps"
            if (one.degree.decay, one.degree.share) == plain
            else "less of it, or more decay",
            "end": "broke" if one.broke is not None else "still standing at the end",
        }
        for one in found
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
    chart = alt.Chart(panels.data(rows)).mark_point(size=70, filled=True, opacity=0.8)
    encoded = chart.encode(
        x=x, y=y, color=alt.Color("installed:N", title=None), shape=alt.Shape("end:N", title=None)
    )
    title = "Does a deeper behaviour leave more time?"
    return styled(encoded.properties(width=460, height=300, title=title))
