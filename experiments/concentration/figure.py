"""Figure: three measures of concentration, and the score after ablation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from experiments.concentration import analysis
from experiments.concentration.analysis import MEASURES, ROLES
from experiments.concentration.simulate import BehaviorMeasures
from experiments.harness.charts import apply_style, style

COLORS = alt.Scale(domain=list(ROLES), range=[style.CONE, "#e6a100", style.BLUE, style.UP])
KINDS = ("steep", "unrelated", "random")


def figure(runs: Sequence[BehaviorMeasures]) -> Any:
    """Plot the measures with their intervals, and the score by the directions ablated."""
    models = list(dict.fromkeys(one.model for one in runs))
    rows = [
        alt.hconcat(
            *[_measure(runs, measure, model) for measure in MEASURES],
            _kept([one for one in runs if one.model == model], model),
            spacing=24,
        )
        for model in models
    ]
    title = alt.TitleParams(
        "Is refusal concentrated? Three measures, and the score that ablation leaves",
        subtitle="dots: estimates, bars: 95 % intervals; each axis says which way is concentrated; "
        "of a refusal and its contrast the lower score",
    )
    return apply_style(alt.vconcat(*rows, spacing=28, title=title))


def _measure(
    runs: Sequence[BehaviorMeasures], measure: analysis.ConcentrationMeasure, model: str
) -> Any:
    own = [one for one in runs if one.model == model]
    estimates = {r: analysis.estimate_of(measure, [m for m in own if m.role == r]) for r in ROLES}
    frame = pd.DataFrame(
        {"role": role, "value": e.mean, "low": e.low, "high": e.high}
        for role, e in estimates.items()
    )
    way = "→ concentrated" if measure.sign > 0 else "← concentrated"
    if measure.log:
        ticks = [*own[0].counts, 2 * max(own[0].counts)]
        scale = alt.Scale(
            type="log", base=2, domain=[min(ticks) / 1.3, max(ticks) * 1.2], clamp=True
        )
        axis = alt.Axis(values=ticks, format="d")
    else:
        scale, axis = alt.Scale(domain=[0, 1], clamp=True), alt.Axis(tickCount=5)
    x = alt.X("value:Q", title=way, scale=scale, axis=axis)
    y = alt.Y("role:N", sort=list(ROLES), title=None)
    color = alt.Color("role:N", scale=COLORS, sort=list(ROLES), title="behavior")
    base = alt.Chart(frame)
    bars = base.mark_rule(strokeWidth=2).encode(
        x=alt.X("low:Q", scale=scale, axis=axis, title=way), x2="high:Q", y=y, color=color
    )
    dots = base.mark_point(filled=True, size=70, opacity=1).encode(x=x, y=y, color=color)
    return alt.layer(bars, dots).properties(
        width=170, height=130, title=f"{model}: {measure.title}"
    )


def _kept(runs: Sequence[BehaviorMeasures], model: str) -> Any:
    frame = pd.DataFrame(
        {"role": role, "kind": kind, "directions": count, "score": score}
        for role in ROLES
        for kind in KINDS
        for count, score in zip(runs[0].counts, _mean(runs, role, kind), strict=True)
    )
    scale = alt.Scale(type="log", base=2, nice=False)
    base = alt.Chart(frame).encode(
        x=alt.X("directions:Q", scale=scale, title="directions ablated"),
        y=alt.Y("score:Q", scale=alt.Scale(domain=[0, 1.02]), title="score kept"),
        color=alt.Color("role:N", scale=COLORS, sort=list(ROLES), title="behavior"),
    )
    dashes = alt.Scale(domain=list(KINDS), range=[[1, 0], [6, 3], [2, 3]])
    lines = base.mark_line(strokeWidth=1.8).encode(
        strokeDash=alt.StrokeDash("kind:N", title="ablated", scale=dashes)
    )
    dots = base.mark_point(filled=True, size=18, opacity=1).encode(detail="kind:N")
    floor = alt.Chart(pd.DataFrame({"score": [runs[0].floor]}))
    rule = floor.mark_rule(strokeDash=[4, 3], color=style.MUTED).encode(y="score:Q")
    return alt.layer(rule, lines, dots).properties(
        width=250, height=130, title=f"{model}: score kept (grey: floor)"
    )


def _mean(runs: Sequence[BehaviorMeasures], role: str, kind: str) -> list[float]:
    own = [one.redundancy.worst_scores(kind) for one in runs if one.role == role]
    return list(np.concatenate(own).mean(0))
