"""Figure: delay against the probability of a false alarm."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import numpy as np

from experiments.detectors.bootstrap import LEVELED, Outcome, on_margins
from experiments.detectors.detector_paths import name_of
from experiments.detectors.measure import RATES, delays, tuned_bound
from experiments.detectors.plan import Plan
from experiments.detectors.resample import SHAPES, calm_schedule
from experiments.harness.charts import apply_style, inline_data, style
from experiments.harness.preregistration import Preregistration

WIDTH, HEIGHT = 230, 170
DEPTHS = (0.2, 0.8)  # drawn, of the plan's


def curves_figure(
    outcomes: Sequence[Outcome], preregistration: Preregistration
) -> alt.VConcatChart:
    """Plot one panel a shape and depth, with one line a detector."""
    plan = Plan.of(preregistration)
    strips = [
        alt.hconcat(
            *(_panel(outcomes, preregistration, shape, depth) for shape in SHAPES), spacing=24
        )
        for depth in DEPTHS
        if depth in plan.sizes
    ]
    header = alt.TitleParams(
        "How late a decline is seen, at each rate of false alarms",
        subtitle=[
            "mean delay after the onset of a planted decline, its bound tuned on leveled null "
            "runs; a decline that is never seen counts as the rest of the run",
        ],
        fontSize=16,
    )
    return apply_style(alt.vconcat(*strips, spacing=20, title=header))


def _panel(
    outcomes: Sequence[Outcome], preregistration: Preregistration, shape: str, depth: float
) -> alt.Chart:
    plan = Plan.of(preregistration)
    steps, rows = calm_schedule(plan), []
    for detector, outcome in zip(on_margins(preregistration), outcomes, strict=True):
        paths = next(p for c, p in outcome.paths.items() if (c.shape, c.depth) == (shape, depth))
        for rate in RATES:
            bound = tuned_bound(outcome.maxima[LEVELED], rate)
            delay = float(np.mean(delays(list(paths), steps, bound, plan.onset)))
            rows.append({"rate": rate, "delay": delay, "detector": name_of(detector)})
    x = alt.X("rate:Q", title="ever alarms falsely in a run", axis=alt.Axis(format="%"))
    y = alt.Y("delay:Q", title="mean delay, steps", scale=alt.Scale(type="symlog", constant=10))
    color = alt.Color("detector:N", title=None, legend=alt.Legend(orient="bottom", columns=7))
    chart = alt.Chart(inline_data(rows)).mark_line(strokeWidth=1.6)
    title = alt.TitleParams(
        f"{shape}, depth {depth:g} of the start's margin", fontSize=11, color=style.INK
    )
    return chart.encode(x=x, y=y, color=color).properties(width=WIDTH, height=HEIGHT, title=title)
