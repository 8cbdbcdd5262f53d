"""The three panels of one behavior: score, margin, interference."""

from __future__ import annotations

import json
from typing import Any

import altair as alt

from riprap.report import _plot_data as plot_data
from riprap.report import _style as style
from riprap.report._run import BehaviorInfo, Run

SCORE_HEIGHT, MARGIN_HEIGHT, INTERFERENCE_HEIGHT = 64, 130, 56
INVISIBLE = 1e-6  # opacity of hover targets; a mark with opacity 0 gets no pointer events
MAX_DOTS = 80  # probe evaluations up to which each is marked with a dot
FIRST_STEP, LAST_STEP = "x_first", "x_last"  # chart parameters: the range of steps shown


def inline_data(values: list[plot_data.Row]) -> Any:
    """Inline data of a chart, as one JSON string.

    As a string because altair copies data row by row whenever charts are combined.
    """
    text = json.dumps(values, allow_nan=False, separators=(",", ":"))
    return alt.InlineData(values=text, format=alt.DataFormat(type="json"))


def step_axis(field: str = "step", axis: Any = alt.Undefined) -> alt.X:
    """X encoding of steps, limited by the two chart parameters."""
    domain = [alt.ExprRef(FIRST_STEP), alt.ExprRef(LAST_STEP)]
    return alt.X(f"{field}:Q", scale=alt.Scale(domain=domain, nice=False), axis=axis)


def labeled_steps(title: str | None) -> alt.Axis:
    """Axis of whole steps."""
    return alt.Axis(title=title, grid=False, format=",d", tickMinStep=1, labelSeparation=8)


def _base_axis(labels: bool = False) -> alt.Chart:
    """Step axis, drawn even without data; only the lowest panel has labels."""
    bare = alt.Axis(title=None, labels=False, ticks=False, grid=False)
    chart = alt.Chart(inline_data([{"step": 0}])).mark_point(opacity=0)
    return chart.encode(x=step_axis(axis=labeled_steps("optimizer step") if labels else bare))


def tooltips(**titles: str) -> list[alt.Tooltip]:
    """Lines of a tooltip: the title of each field, and its value without formatting."""
    return [alt.Tooltip(f"{field}:N", title=title) for field, title in titles.items()]


def _horizontal_rule(value: float, **mark: Any) -> alt.Chart:
    return alt.Chart(inline_data([{"value": value}])).mark_rule(**mark).encode(y=alt.Y("value:Q"))


def _hover_targets(values: list[plot_data.Row], tips: list[alt.Tooltip]) -> alt.Chart:
    """Invisible wide rules that show the tooltip of a probe evaluation."""
    mark = alt.Chart(inline_data(values)).mark_rule(opacity=INVISIBLE, strokeWidth=7, clip=True)
    return mark.encode(x=step_axis(), tooltip=[*tooltips(step="step"), *tips])


def _line_with_dots(chart: alt.Chart, count: int) -> alt.Chart:
    """Line with a dot for each probe evaluation, unless there are too many."""
    point = {"size": 12, "color": style.BLUE} if count <= MAX_DOTS else False
    return chart.mark_line(color=style.BLUE, strokeWidth=1.8, clip=True, point=point)


def score_panel(run: Run, behavior: BehaviorInfo, width: int) -> Any:
    """Score at each probe evaluation, with the floor."""
    values = plot_data.score_rows(run, behavior)
    y = alt.Y(
        "score:Q",
        title="score",
        scale=alt.Scale(domain=[0, 1.04], nice=False),
        axis=alt.Axis(values=[0, 0.5, 1], format=".1f"),
    )
    line = _line_with_dots(alt.Chart(inline_data(values)), len(values))
    floor = _horizontal_rule(behavior.floor, color=style.MUTED, strokeDash=[4, 3])
    label = alt.Chart(inline_data([{"value": behavior.floor, "text": f"floor {behavior.floor:g}"}]))
    label = label.mark_text(align="right", dy=9, dx=-2, fontSize=10, color=style.MUTED)
    return alt.layer(
        _base_axis(),
        floor,
        label.encode(x=alt.value("width"), y="value:Q", text="text:N"),
        line.encode(x=step_axis(), y=y),
        _hover_targets(values, tooltips(text="score")),
        *event_marks(run, behavior, glyphs=True),
    ).properties(width=width, height=SCORE_HEIGHT)


def margin_panel(run: Run, behavior: BehaviorInfo, width: int, right: float) -> Any:
    """Mean margin, band of the probes, threshold margin and its forecasts."""
    values = plot_data.margin_rows(run, behavior)
    unit = f" ({behavior.unit})" if behavior.unit not in ("", "margin") else ""
    y = alt.Y("mean:Q", title=f"margin{unit}", axis=alt.Axis(tickCount=5))
    base = alt.Chart(inline_data(values))
    band = base.mark_area(color=style.BAND, opacity=0.45, clip=True)
    low = base.mark_line(color=style.CONE, strokeWidth=1.2, strokeDash=[3, 2], clip=True)
    mean = _line_with_dots(base, len(values))
    tips = tooltips(mean="mean margin", p10="10 % of probes are below")
    tips += tooltips(p90="10 % of probes are above", low="threshold margin")
    tips += tooltips(forecast="forecast break")
    layers = [
        _base_axis(),
        band.encode(x=step_axis(), y=alt.Y("p10:Q"), y2="p90:Q"),
        _horizontal_rule(0, color=style.INK, strokeWidth=0.8),
        *_forecasts(run, behavior, right),
        low.encode(x=step_axis(), y="low:Q"),
        mean.encode(x=step_axis(), y=y),
        _hover_targets(values, tips),
        *event_marks(run, behavior),
    ]
    return alt.layer(*layers).properties(width=width, height=MARGIN_HEIGHT)


def _forecasts(run: Run, behavior: BehaviorInfo, right: float) -> list[alt.Chart]:
    """Cones of the 80 % interval, and a thin line to each median forecast."""
    tips = tooltips(name="cone", made="forecast at step", forecast="forecast break")
    layers = []
    if cones := plot_data.cone_rows(run, behavior, right):
        cone = alt.Chart(inline_data(cones)).mark_area(color=style.CONE, opacity=0.25, clip=True)
        layers.append(
            cone.encode(x=step_axis(), y="lower:Q", y2="upper:Q", detail="cone:N", tooltip=tips)
        )
    if segments := plot_data.segment_rows(run, behavior):
        segment = alt.Chart(inline_data(segments))
        segment = segment.mark_rule(color=style.CONE, opacity=0.4, strokeWidth=0.8, clip=True)
        layers.append(segment.encode(x=step_axis(), x2="end:Q", y="low:Q", y2=alt.datum(0)))
    return layers


def interference_panel(run: Run, behavior: BehaviorInfo, width: int) -> Any:
    """Predicted and realized change of the mean margin per step, since the reading before."""
    interference = run.values(behavior.name, "interference")
    rows = plot_data.bar_rows(interference, run.values(behavior.name, "margin"))
    bars = alt.Chart(inline_data(rows))
    y = alt.Y("value:Q", title="change / step", axis=alt.Axis(tickCount=3))
    realized = alt.Chart(inline_data(plot_data.realized_rows(run, behavior)))
    realized = realized.mark_rule(color=style.INK, strokeWidth=1.4, clip=True)
    predicted = tooltips(steps="step", text="predicted change per step")
    actual = tooltips(step="from step", end="to step", text="realized change per step")
    layers = [
        _base_axis(labels=True),
        bars.mark_bar(clip=True, strokeWidth=0.6).encode(
            x=step_axis(),
            x2="end:Q",
            y=y,
            y2=alt.datum(0),
            color=color_from_data(),
            stroke=alt.Stroke("color:N", scale=None),
            tooltip=predicted,
        ),
        _horizontal_rule(0, color=style.INK, strokeWidth=0.8),
        realized.encode(x=step_axis(), x2="end:Q", y="value:Q", tooltip=actual),
        *event_marks(run, behavior),
    ]
    return alt.layer(*layers).properties(width=width, height=INTERFERENCE_HEIGHT)


def event_marks(run: Run, behavior: BehaviorInfo, glyphs: bool = False) -> list[alt.Chart]:
    """Rules at the first alert of each level and at the break; `glyphs` marks all alerts."""
    fields = ("step", "level", "detector", "message", "forecast")
    tips = tooltips(**{name: name for name in fields})
    layers = []
    for level, alert in run.first_alerts(behavior.name).items():
        rule = alt.Chart(inline_data(plot_data.alert_rows([alert]))).mark_rule(
            color=style.LEVELS[level], strokeDash=style.DASHES[level], strokeWidth=1.6, clip=True
        )
        layers.append(rule.encode(x=step_axis(), tooltip=tips))
    if glyphs:
        marks = alt.Chart(inline_data(plot_data.alert_rows(run.alerts_of(behavior.name))))
        marks = marks.mark_point(shape="triangle-down", filled=True, size=55, opacity=1)
        layers.append(
            marks.encode(x=step_axis(), y=alt.value(-5), color=color_from_data(), tooltip=tips)
        )
    broke = run.broken_at(behavior)
    if broke is not None:
        rule = alt.Chart(inline_data([{"step": broke, "text": "score under its floor"}]))
        rule = rule.mark_rule(color=style.BREAK, strokeWidth=2, clip=True)
        tips = tooltips(step="broke", text="reason")
        layers.append(rule.encode(x=step_axis(), tooltip=tips))
    return layers


def color_from_data() -> alt.Color:
    """Color from the data row; a color scale would be shared between panels."""
    return alt.Color("color:N", scale=None)
