"""Figure: predicted against realized change of the mean margin on SmolLM2."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import pandas as pd

from experiments.smollm2.results import Run


def claim_figure(runs: Sequence[Run]) -> alt.HConcatChart:
    """Plot one panel a run; a point is one step of one behavior, the line is equality."""
    rows = [
        {"run": run.name, "behavior": name, "step": step + 1, "predicted": p, "realized": r}
        for run in runs
        for name in sorted(k.split("/", 1)[1] for k in run.arrays if k.startswith("predicted/"))
        for step, (p, r) in enumerate(
            zip(run.arrays[f"predicted/{name}"], run.arrays[f"realised/{name}"], strict=True)
        )
    ]
    frame = pd.DataFrame(rows)
    low = float(frame[["predicted", "realized"]].min().min())
    high = float(frame[["predicted", "realized"]].max().max())
    diagonal = (
        alt.Chart(pd.DataFrame({"predicted": [low, high], "realized": [low, high]}))
        .mark_line(color="#999", strokeDash=[4, 3])
        .encode(x="predicted", y="realized")
    )
    points = (
        alt.Chart(frame)
        .mark_point(filled=True, size=45)
        .encode(
            x=alt.X("predicted", title="predicted ⟨h_b, Δθ⟩ (logits)"),
            y=alt.Y("realized", title="realized change of the mean margin (logits)"),
            color=alt.Color("behavior", scale=alt.Scale(scheme="tableau10")),
            tooltip=["behavior", "step", "predicted", "realized"],
        )
    )
    panels = [
        alt.layer(diagonal, points.transform_filter(alt.datum.run == run.name)).properties(
            title=run.name, width=300, height=300
        )
        for run in runs
    ]
    chart: alt.HConcatChart = alt.hconcat(*panels)
    return chart
