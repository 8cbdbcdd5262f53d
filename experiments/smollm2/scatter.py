"""Predicted against realised change of the mean margin on the real model."""

from __future__ import annotations

from pathlib import Path

import altair as alt
import numpy as np
import pandas as pd

from riprap.report import save_figure


def write(claims: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """One panel a run; a point is one step of one behaviour, the line is equality."""
    rows = [
        {"run": run, "behaviour": name, "step": step + 1, "predicted": p, "realised": r}
        for run, arrays in claims.items()
        for name in sorted(k.split("/", 1)[1] for k in arrays if k.startswith("predicted/"))
        for step, (p, r) in enumerate(
            zip(arrays[f"predicted/{name}"], arrays[f"realised/{name}"], strict=True)
        )
    ]
    frame = pd.DataFrame(rows)
    low = float(frame[["predicted", "realised"]].min().min())
    high = float(frame[["predicted", "realised"]].max().max())
    diagonal = (
        alt.Chart(pd.DataFrame({"predicted": [low, high], "realised": [low, high]}))
        .mark_line(color="#999", strokeDash=[4, 3])
        .encode(x="predicted", y="realised")
    )
    points = (
        alt.Chart(frame)
        .mark_point(filled=True, size=45)
        .encode(
            x=alt.X("predicted", title="predicted ⟨h_b, Δθ⟩ (logits)"),
            y=alt.Y("realised", title="realised change of the mean margin (logits)"),
            color=alt.Color("behaviour", scale=alt.Scale(scheme="tableau10")),
            tooltip=["behaviour", "step", "predicted", "realised"],
        )
    )
    panels = [
        alt.layer(diagonal, points.transform_filter(alt.datum.run == run)).properties(
            title=run, width=300, height=300
        )
        for run in claims
    ]
    save_figure(alt.hconcat(*panels), path)
