"""The study's figures: what happened, what the signals did, and whether the claim held."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np

from experiments.harness.interference_claim import agreement
from experiments.toy import curves
from experiments.toy.analysis import Run, says_forecast
from experiments.toy.claim_tables import staleness
from experiments.toy.curves import Row
from experiments.toy.signal_panels import signals_figure
from experiments.toy.traces import FRESH, Comparison, cells, comparisons
from riprap.detectors import score
from riprap.report import _panels as panels
from riprap.report import _style as style
from riprap.report import styled
from riprap.types import Level

__all__ = ["behavior_figure", "claim_figure", "signals_figure", "staleness_figure"]

WIDTH, HEIGHT = 180, 150
SQUARE = 130
BELOW = -0.8  # scores end at 0; the alerts and breaks of the seeds lie below
LATE = 200  # steps; from there the number of a lead stands before its marks
EARLY = 20  # steps
PHASES = [f"steps 1 to {EARLY}", "later"]
CROSS = "M-1,-1L1,1M-1,1L1,-1"


def conditions(runs: Sequence[Run]) -> list[str]:
    """In the order of the runs."""
    return list(dict.fromkeys(run.condition for run in runs))


def behaviors(runs: Sequence[Run]) -> list[str]:
    """In the order of the runs."""
    return list(dict.fromkeys(name for run in runs for name in run.tracks))


def behavior_figure(runs: Sequence[Run]) -> alt.VConcatChart:
    """Scores over steps by condition and behaviour, with first critical alerts and breaks."""
    found = cells(runs)
    rows = {
        name: [
            _score_panel(found[c, name], name, column == 0, name == behaviors(runs)[-1])
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
    return styled(curves.grid(rows, "Score of each behaviour during the new task", lines, 20))


def _score_panel(runs: Sequence[Run], name: str, left: bool, lowest: bool) -> Any:
    last = max(len(run.margins[name]) for run in runs) - 1
    x = curves.steps_axis(last, labels=lowest)
    axis = alt.Axis(values=[0, 0.5, 1], format=".1f", labels=left, ticks=left, title=None)
    y = alt.Y("low:Q", scale=alt.Scale(domain=[BELOW, 1.05], nice=False), axis=axis)
    lines = [[(s, score(m)) for s, m in enumerate(run.margins[name])] for run in runs]
    floor = runs[0].tracks[name].floor
    layers = [
        curves.level(0, color="#c8d0d6", strokeWidth=0.8),
        curves.level(floor, color=style.QUIET, strokeDash=[4, 3], strokeWidth=0.9),
        *curves.band_layers(curves.band(lines), x, y, style.BLUE, [1, 0]),
        *_events(event_rows(runs, name), x),
    ]
    title = curves.named(f"{runs[0].condition}, seeds: {len(runs)}")
    return alt.layer(*layers).properties(width=WIDTH, height=HEIGHT, title=title)


def event_rows(runs: Sequence[Run], name: str) -> list[Row]:
    """First critical alerts, breaks and their leads, each at the height of its seed's row."""
    said = [(says_forecast(run, name)[Level.CRITICAL], run.broke(name)) for run in runs]
    told = [one for one in said if one != (None, None)]
    rows: list[Row] = []
    for place, (alert, broke) in enumerate(told):
        y = BELOW * (place + 1) / (len(told) + 1)
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
        return alt.Chart(panels.data(chosen)).encode(x=x, y=alt.Y("y:Q", title=None))

    red = style.LEVELS[Level.CRITICAL]
    line = only("alert", "break").mark_line(color=style.QUIET, strokeWidth=0.8)
    alert = only("alert").mark_point(shape="triangle-down", size=38, fill=red, strokeWidth=0)
    broke = only("break").mark_point(shape=CROSS, size=26, color=style.BREAK, strokeWidth=1.6)
    before = only("before").mark_text(align="right", dx=-7, fontSize=9, color=style.INK)
    after = only("after").mark_text(align="left", dx=7, fontSize=9, color=style.INK)
    leads = [lead.encode(text="text:N") for lead in (before, after)]
    marks = [mark.encode(opacity=alt.value(1)) for mark in (alert, broke)]
    return [line.encode(detail="y:N"), *marks, *leads]


def claim_figure(runs: Sequence[Run]) -> alt.VConcatChart:
    """Predicted against realised change of the mean margin, one dot a step."""
    found = {
        (condition, name): [comparisons(run)[name] for run in group]
        for (condition, name), group in cells(runs).items()
    }
    rows = {
        name: [
            _claim_panel(found[c, name], c, column == 0, name == behaviors(runs)[-1])
            for column, c in enumerate(conditions(runs))
        ]
        for name in behaviors(runs)
    }
    steps = len(next(iter(found.values()))[0].realised)
    lines = (
        f"across: h_b · Δθ with a fresh gradient; up: realised change; logits; first {steps} "
        "steps of every seed; thin line: equal",
        "r: correlation, slope: realised on predicted, through 0, seeds pooled; axes differ "
        "between panels",
    )
    title = "Predicted and realised change of the mean margin in each step"
    return styled(curves.grid(rows, title, lines, 58))


def _claim_panel(found: Sequence[Comparison], condition: str, left: bool, lowest: bool) -> Any:
    points: list[Row] = [
        {"x": float(f"{x:.4g}"), "y": float(f"{y:.4g}"), "phase": PHASES[step >= EARLY]}
        for one in found
        for step, (x, y) in enumerate(zip(one.predicted[FRESH], one.realised, strict=True))
    ]
    points.sort(key=lambda point: point["phase"] == PHASES[0])  # the few early ones on top
    ends = _ends([value for point in points for value in (point["x"], point["y"])])
    scale = alt.Scale(domain=ends, nice=False)
    across = alt.Axis(tickCount=4, title="predicted" if lowest else None)
    up = alt.Axis(tickCount=4, title="realised" if left else None)
    x, y = alt.X("x:Q", scale=scale, axis=across), alt.Y("y:Q", scale=scale, axis=up)
    colour = alt.Color(
        "phase:N",
        scale=alt.Scale(domain=PHASES, range=[style.CONE, style.BLUE]),
        legend=alt.Legend(title=None, orient="top", symbolOpacity=1),
    )
    dots = alt.Chart(panels.data(points)).mark_circle(size=13, opacity=0.55)
    equal = alt.Chart(panels.data([{"x": end, "y": end} for end in ends]))
    layers = alt.layer(
        equal.mark_line(color=style.QUIET, strokeWidth=0.8).encode(x=x, y=y),
        dots.encode(x=x, y=y, color=colour),
    )
    title = curves.named(condition, subtitle=_fit(found))
    return layers.properties(width=SQUARE, height=SQUARE, title=title)


def _ends(values: Sequence[float]) -> list[float]:
    """Least and largest, 0 included, with some room."""
    low, high = min(*values, 0.0), max(*values, 0.0)
    room = 0.05 * (high - low)
    return [low - room, high + room]


def _fit(found: Sequence[Comparison]) -> str:
    predicted = np.concatenate([one.predicted[FRESH] for one in found])
    fit = agreement(predicted, np.concatenate([one.realised for one in found]))
    return f"r = {fit['correlation']:.2f}, slope {fit['slope']:.2f}"


def staleness_figure(runs: Sequence[Run]) -> alt.VConcatChart:
    """Correlation of predicted with realised change against the age of h_b."""
    found = [vars(one) for one in staleness(runs) if np.isfinite(one.correlation)]
    low = min(-0.1, *(row["correlation"] - 0.05 for row in found))
    charts = []
    for column, condition in enumerate(conditions(runs)):
        own = [row for row in found if row["condition"] == condition]
        charts.append(_age_panel(own, condition, column == 0, low))
    lines = (
        "correlation of h_b · Δθ with the realised change of the mean margin, over steps, seeds "
        "pooled; h_b taken so many steps before",
        "an age leaves out as many first steps, in which most is lost: see the table for fresh "
        "gradients on the same steps",
    )
    title = "Agreement by the age of the protected gradient"
    top = curves.legend(behaviors(runs))
    return styled(curves.grid({"": charts}, title, lines, 34, top))


def _age_panel(rows: list[Row], condition: str, left: bool, low: float) -> Any:
    x = alt.X("age:O", axis=alt.Axis(title="age of h_b in steps", labelAngle=0))
    axis = alt.Axis(title="correlation" if left else None, labels=left, ticks=left, tickCount=4)
    y = alt.Y("correlation:Q", scale=alt.Scale(domain=[low, 1.05], nice=False), axis=axis)
    layers: list[Any] = [curves.level(0, color=style.QUIET, strokeWidth=0.8)]
    for name in dict.fromkeys(row["behavior"] for row in rows):
        colour = curves.COLOURS.get(name, style.INK)
        own = alt.Chart(panels.data([row for row in rows if row["behavior"] == name]))
        line = own.mark_line(
            color=colour,
            strokeDash=curves.DASHES.get(name, [1, 0]),
            point={"color": colour, "size": 26},
        )
        layers.append(line.encode(x=x, y=y))
    title = curves.named(condition)
    return alt.layer(*layers).properties(width=WIDTH, height=HEIGHT + 30, title=title)
