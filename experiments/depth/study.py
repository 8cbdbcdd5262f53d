"""Does a more deeply installed behavior leave more time between warning and break?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np

from experiments.depth import analysis
from experiments.depth.analysis import DepthRun, most_common_setting
from experiments.depth.plan import Plan
from experiments.depth.simulate import simulate
from experiments.harness.charts import apply_style, inline_data
from experiments.harness.markdown import number
from experiments.harness.study import Session, Study


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


def collect(margins: list[dict[str, np.ndarray]], session: Session[Plan]) -> list[DepthRun]:
    """Return the runs with what their records say."""
    pairs = session.plan.runs(session.exploratory)
    return [
        DepthRun.load(
            *pair, simulate.path(*pair, session.preregistration).parent, arrays, session.plan
        )
        for pair, arrays in zip(pairs, margins, strict=True)
    ]


def sections(runs: Sequence[DepthRun], _plan: Plan) -> dict[str, Any]:
    """Return the tables and texts of the page."""
    rows = [
        {
            "steps": run.degree.steps,
            "weight decay": f"{run.degree.decay:g}",
            "share of B": f"{run.degree.share:g}",
            "seed": run.seed,
            "depth ‖g_b‖": f"{run.depth:.2g}",
            "margin at the start": number(run.margin, 2),
            "first warning": number(run.warned),
            "break": number(run.broke),
            "window": number(run.window) + ("" if run.broke is not None else " or more"),
        }
        for run in runs
    ]
    correlations = analysis.correlations(runs)
    return {"conclusion": analysis.conclusion(runs), "correlations": correlations, "runs": rows}


STUDY = Study(
    name="depth",
    plan=Plan,
    jobs=lambda s: [(*pair, s.preregistration) for pair in s.plan.runs(s.exploratory)],
    simulate=simulate,
    collect=collect,
    claims=lambda runs, _: {"the window grows with depth": analysis.conclusion(runs)},
    sections=sections,
    figures={"depth": lambda runs, _: depth_figure(runs)},
)
