"""Figures: scores with alerts and breaks, and predicted against realized change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np

from experiments.harness.interference_claim import agreement
from experiments.toy import curves
from experiments.toy.analysis import FRESH, Comparison, Run, cells, comparisons, forecast_alerts
from experiments.toy.curves import Row
from experiments.toy.tables import staleness
from riprap.detectors import score
from riprap.report import apply_style, inline_data, style
from riprap.types import Level

WIDTH, HEIGHT = 180, 150
SQUARE = 130
BELOW = -0.8  # scores end at 0; the alerts and breaks of the seeds lie below
LATE = 200  # steps; from there the number of a lead stands before its marks
EARLY = 20  # steps
PHASES = [f"steps 1 to {EARLY}", "later"]
CROSS = "M-1,-1L1,1M-1,1L1,-1"


def conditions(runs: Sequence[Run]) -> list[str]:
    """Return the conditions, in the order of the runs."""
    return list(dict.fromkeys(run.condition for run in runs))


def behaviors(runs: Sequence[Run]) -> list[str]:
    """Return the behaviors' names, in the order of the runs."""
    return list(dict.fromkeys(name for run in runs for name in run.histories))


def behavior_figure(runs: Sequence[Run]) -> alt.VConcatChart:
    """Plot scores over steps by condition and behavior, with first critical alerts and breaks."""
    runs_by_cell = cells(runs)
    rows = {
        name: [
            _score_panel(runs_by_cell[c, name], name, column == 0, name == behaviors(runs)[-1])
            for column, c in enumerate(conditions(runs))
        ]
        for name in behaviors(runs)
    }
    lines = (
        "score: share of probes with a margin above 0; line: median over seeds, band: least to "
        "largest; dashed: floor",
        "below, one row a seed: ▼ first critical alert, × first step under the floor, number: lead "
        "in steps; ▼ alone: no break",
    )
    return apply_style(curves.grid(rows, "Score of each behavior during the new task", lines, 20))


def _score_panel(runs: Sequence[Run], name: str, left: bool, lowest: bool) -> Any:
    last = max(len(run.margins[name]) for run in runs) - 1
    x = curves.steps_axis(last, labels=lowest)
    axis = alt.Axis(values=[0, 0.5, 1], format=".1f", labels=left, ticks=left, title=None)
    y = alt.Y("low:Q", scale=alt.Scale(domain=[BELOW, 1.05], nice=False), axis=axis)
    lines = [[(s, score(m)) for s, m in enumerate(run.margins[name])] for run in runs]
    floor = runs[0].histories[name].floor
    layers = [
        curves.level(0, color="#c8d0d6", strokeWidth=0.8),
        curves.level(floor, color=style.MUTED, strokeDash=[4, 3], strokeWidth=0.9),
        *curves.band_layers(curves.band(lines), x, y, style.BLUE, [1, 0]),
        *_events(event_rows(runs, name), x),
    ]
    title = curves.named(f"{runs[0].condition}, seeds: {len(runs)}")
    return alt.layer(*layers).properties(width=WIDTH, height=HEIGHT, title=title)


def event_rows(runs: Sequence[Run], name: str) -> list[Row]:
    """Return first critical alerts, breaks and leads, each at the height of its seed's row."""
    events = [(forecast_alerts(run, name)[Level.CRITICAL], run.broke(name)) for run in runs]
    shown = [event for event in events if event != (None, None)]
    rows: list[Row] = []
    for place, (alert, broke) in enumerate(shown):
        y = BELOW * (place + 1) / (len(shown) + 1)
        steps = {"alert": alert, "break": broke}
        rows += [{"step": s, "y": y, "kind": k} for k, s in steps.items() if s is not None]
        if alert is not None and broke is not None:
            late = min(alert, broke) > LATE
            text = f"{broke - alert}".replace("-", "−")
            step = min(alert, broke) if late else max(alert, broke)
            rows.append({"step": step, "y": y, "kind": "before" if late else "after", "text": text})
    return rows


def _events(rows: list[Row], x: alt.X) -> list[Any]:
    def only(*kinds: str) -> alt.Chart:
        chosen = [row for row in rows if row["kind"] in kinds]
        return alt.Chart(inline_data(chosen)).encode(x=x, y=alt.Y("y:Q", title=None))

    red = style.LEVELS[Level.CRITICAL]
    line = only("alert", "break").mark_line(color=style.MUTED, strokeWidth=0.8)
    alert = only("alert").mark_point(shape="triangle-down", size=38, fill=red, strokeWidth=0)
    broke = only("break").mark_point(shape=CROSS, size=26, color=style.BREAK, strokeWidth=1.6)
    before = only("before").mark_text(align="right", dx=-7, fontSize=9, color=style.INK)
    after = only("after").mark_text(align="left", dx=7, fontSize=9, color=style.INK)
    leads = [lead.encode(text="text:N") for lead in (before, after)]
    marks = [mark.encode(opacity=alt.value(1)) for mark in (alert, broke)]
    return [line.encode(detail="y:N"), *marks, *leads]


def claim_figure(runs: Sequence[Run]) -> alt.VConcatChart:
    """Plot predicted against realized change of the mean margin, one dot a step."""
    compared = {
        (condition, name): [comparisons(run)[name] for run in group]
        for (condition, name), group in cells(runs).items()
    }
    rows = {
        name: [
            _claim_panel(compared[c, name], c, column == 0, name == behaviors(runs)[-1])
            for column, c in enumerate(conditions(runs))
        ]
        for name in behaviors(runs)
    }
    steps = len(next(iter(compared.values()))[0].realized)
    lines = (
        f"across: h_b · Δθ with a fresh gradient; up: realized change; logits; first {steps} "
        "steps of every seed; thin line: equal",
        "r: correlation, slope: realized on predicted, through 0, seeds pooled; axes differ "
        "between panels",
    )
    title = "Predicted and realized change of the mean margin in each step"
    return apply_style(curves.grid(rows, title, lines, 58))


def _claim_panel(compared: Sequence[Comparison], condition: str, left: bool, lowest: bool) -> Any:
    points: list[Row] = [
        {"x": float(f"{x:.4g}"), "y": float(f"{y:.4g}"), "phase": PHASES[step >= EARLY]}
        for one in compared
        for step, (x, y) in enumerate(zip(one.predicted[FRESH], one.realized, strict=True))
    ]
    points.sort(key=lambda point: point["phase"] == PHASES[0])  # the few early ones on top
    values = [0.0, *(point[axis] for point in points for axis in "xy")]
    room = 0.05 * (max(values) - min(values))
    ends = [min(values) - room, max(values) + room]
    scale = alt.Scale(domain=ends, nice=False)
    across = alt.Axis(tickCount=4, title="predicted" if lowest else None)
    up = alt.Axis(tickCount=4, title="realized" if left else None)
    x, y = alt.X("x:Q", scale=scale, axis=across), alt.Y("y:Q", scale=scale, axis=up)
    color = alt.Color(
        "phase:N",
        scale=alt.Scale(domain=PHASES, range=[style.CONE, style.BLUE]),
        legend=alt.Legend(title=None, orient="top", symbolOpacity=1),
    )
    dots = alt.Chart(inline_data(points)).mark_circle(size=13, opacity=0.55)
    equal = alt.Chart(inline_data([{"x": end, "y": end} for end in ends]))
    layers = alt.layer(
        equal.mark_line(color=style.MUTED, strokeWidth=0.8).encode(x=x, y=y),
        dots.encode(x=x, y=y, color=color),
    )
    predicted = np.concatenate([one.predicted[FRESH] for one in compared])
    fit = agreement(predicted, np.concatenate([one.realized for one in compared]))
    words = f"r = {fit['correlation']:.2f}, slope {fit['slope']:.2f}"
    title = curves.named(condition, subtitle=words)
    return layers.properties(width=SQUARE, height=SQUARE, title=title)


def staleness_figure(runs: Sequence[Run]) -> alt.VConcatChart:
    """Plot the correlation of predicted with realized change against the age of h_b."""
    compared = [vars(one) for one in staleness(runs) if np.isfinite(one.correlation)]
    low = min(-0.1, *(row["correlation"] - 0.05 for row in compared))
    charts = []
    for column, condition in enumerate(conditions(runs)):
        own = [row for row in compared if row["condition"] == condition]
        charts.append(_age_panel(own, condition, column == 0, low))
    lines = (
        "correlation of h_b · Δθ with the realized change of the mean margin, over steps, seeds "
        "pooled; h_b taken so many steps before",
        "an age leaves out as many first steps, in which most is lost: see the table for fresh "
        "gradients on the same steps",
    )
    title = "Agreement by the age of the protected gradient"
    top = curves.legend(behaviors(runs))
    return apply_style(curves.grid({"": charts}, title, lines, 34, top))


def _age_panel(rows: list[Row], condition: str, left: bool, low: float) -> Any:
    x = alt.X("age:O", axis=alt.Axis(title="age of h_b in steps", labelAngle=0))
    axis = alt.Axis(title="correlation" if left else None, labels=left, ticks=left, tickCount=4)
    y = alt.Y("correlation:Q", scale=alt.Scale(domain=[low, 1.05], nice=False), axis=axis)
    layers: list[Any] = [curves.level(0, color=style.MUTED, strokeWidth=0.8)]
    for name in dict.fromkeys(row["behavior"] for row in rows):
        color = curves.COLORS.get(name, style.INK)
        own = alt.Chart(inline_data([row for row in rows if row["behavior"] == name]))
        line = own.mark_line(
            color=color,
            strokeDash=curves.DASHES.get(name, [1, 0]),
            point={"color": color, "size": 26},
        )
        layers.append(line.encode(x=x, y=y))
    title = curves.named(condition)
    return alt.layer(*layers).properties(width=WIDTH, height=HEIGHT + 30, title=title)
