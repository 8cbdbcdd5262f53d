"""The three panels of a lane: score, margin, interference."""

from __future__ import annotations

import json
from typing import Any

import altair as alt

from riprap.report import _plot_data as rows
from riprap.report import _style as style
from riprap.report._run import Run, Watched

SCORE_HEIGHT, MARGIN_HEIGHT, INTERFERENCE_HEIGHT = 64, 130, 56
UNSEEN = 1e-6  # what is wholly transparent meets no pointer
DOTS = 80  # visits that are marked one by one
FIRST, LAST = "x_first", "x_last"  # parameters of every lane: the steps shown


def data(values: list[rows.Row]) -> Any:
    """Rows as inline data.

    As one string: altair copies a figure's data whenever figures are put together, row by row.
    """
    text = json.dumps(values, allow_nan=False, separators=(",", ":"))
    return alt.InlineData(values=text, format=alt.DataFormat(type="json"))


def steps(field: str = "step", axis: Any = alt.Undefined) -> alt.X:
    """Steps from left to right, between the two parameters of every lane."""
    domain = [alt.ExprRef(FIRST), alt.ExprRef(LAST)]
    return alt.X(f"{field}:Q", scale=alt.Scale(domain=domain, nice=False), axis=axis)


def labelled(title: str | None) -> alt.Axis:
    """An axis of steps with whole numbers."""
    return alt.Axis(title=title, grid=False, format=",d", tickMinStep=1)


def _ground(labels: bool = False) -> alt.Chart:
    """The axis of steps, there whatever else is; only the lowest panel of a lane labels it."""
    bare = alt.Axis(title=None, labels=False, ticks=False, grid=False)
    chart = alt.Chart(data([{"step": 0}])).mark_point(opacity=0)
    return chart.encode(x=steps(axis=labelled("optimizer step") if labels else bare))


def _tip(field: str, title: str) -> alt.Tooltip:
    """A tooltip's line, shown as the row holds it."""
    return alt.Tooltip(f"{field}:N", title=title)


def _horizontal(value: float, **mark: Any) -> alt.Chart:
    return alt.Chart(data([{"value": value}])).mark_rule(**mark).encode(y=alt.Y("value:Q"))


def _hover(values: list[rows.Row], tips: list[alt.Tooltip]) -> alt.Chart:
    """Unseen rules, wide enough to be met by a pointer, that carry a visit's tooltip."""
    mark = alt.Chart(data(values)).mark_rule(opacity=UNSEEN, strokeWidth=7, clip=True)
    return mark.encode(x=steps(), tooltip=[_tip("step", "step"), *tips])


def _line(chart: alt.Chart, visits: int) -> alt.Chart:
    """A line whose visits are dots, as long as dots can be told apart."""
    point = {"size": 12, "color": style.BLUE} if visits <= DOTS else False
    return chart.mark_line(color=style.BLUE, strokeWidth=1.8, clip=True, point=point)


def score_panel(run: Run, watched: Watched, width: int) -> Any:
    """Score at each visit, with the floor."""
    values = rows.score_rows(run, watched)
    y = alt.Y(
        "score:Q",
        title="score",
        scale=alt.Scale(domain=[0, 1.04], nice=False),
        axis=alt.Axis(values=[0, 0.5, 1], format=".1f"),
    )
    line = _line(alt.Chart(data(values)), len(values))
    floor = _horizontal(watched.floor, color=style.QUIET, strokeDash=[4, 3])
    label = alt.Chart(data([{"value": watched.floor, "text": f"floor {watched.floor:g}"}]))
    label = label.mark_text(align="right", dy=9, dx=-2, fontSize=10, color=style.QUIET)
    return alt.layer(
        _ground(),
        floor,
        label.encode(x=alt.value("width"), y="value:Q", text="text:N"),
        line.encode(x=steps(), y=y),
        _hover(values, [_tip("text", "score")]),
        *events(run, watched, glyphs=True),
    ).properties(width=width, height=SCORE_HEIGHT)


def margin_panel(run: Run, watched: Watched, width: int, right: float) -> Any:
    """Mean margin, the band of the probes, the deciding margin and its forecasts."""
    values = rows.margin_rows(run, watched)
    unit = f" ({watched.unit})" if watched.unit not in ("", "margin") else ""
    y = alt.Y("mean:Q", title=f"margin{unit}", axis=alt.Axis(tickCount=5))
    base = alt.Chart(data(values))
    band = base.mark_area(color=style.BAND, opacity=0.45, clip=True)
    low = base.mark_line(color=style.CONE, strokeWidth=1.2, strokeDash=[3, 2], clip=True)
    mean = _line(base, len(values))
    tips = [
        _tip("mean", "mean margin"),
        _tip("p10", "10 % of probes below"),
        _tip("p90", "10 % of probes above"),
        _tip("low", "margin that decides the floor"),
        _tip("forecast", "forecast break"),
    ]
    layers = [
        _ground(),
        band.encode(x=steps(), y=alt.Y("p10:Q"), y2="p90:Q"),
        _horizontal(0, color=style.INK, strokeWidth=0.8),
        *_forecasts(run, watched, right),
        low.encode(x=steps(), y="low:Q"),
        mean.encode(x=steps(), y=y),
        _hover(values, tips),
        *events(run, watched),
    ]
    return alt.layer(*layers).properties(width=width, height=MARGIN_HEIGHT)


def _forecasts(run: Run, watched: Watched, right: float) -> list[alt.Chart]:
    """Cones of the 80 % interval, and a thin line of the median from every visit."""
    tips = [_tip("name", "cone"), _tip("made", "made at step"), _tip("forecast", "forecast break")]
    layers = []
    if cones := rows.cone_rows(run, watched, right):
        cone = alt.Chart(data(cones)).mark_area(color=style.CONE, opacity=0.25, clip=True)
        layers.append(
            cone.encode(x=steps(), y="lower:Q", y2="upper:Q", detail="cone:N", tooltip=tips)
        )
    if segments := rows.segment_rows(run, watched):
        segment = alt.Chart(data(segments))
        segment = segment.mark_rule(color=style.CONE, opacity=0.4, strokeWidth=0.8, clip=True)
        layers.append(segment.encode(x=steps(), x2="end:Q", y="low:Q", y2=alt.datum(0)))
    return layers


def interference_panel(run: Run, watched: Watched, width: int) -> Any:
    """Predicted change of the mean margin a step, beside the change that came."""
    bars = alt.Chart(data(rows.bar_rows(run.of(watched.name, "interference"))))
    y = alt.Y("value:Q", title="change a step", axis=alt.Axis(tickCount=3))
    realised = alt.Chart(data(rows.realised_rows(run, watched)))
    realised = realised.mark_rule(color=style.INK, strokeWidth=1.4, clip=True)
    predicted = [_tip("steps", "step"), _tip("text", "predicted change of the mean margin")]
    came = [_tip("step", "from step"), _tip("end", "to step"), _tip("text", "realised, a step")]
    layers = [
        _ground(labels=True),
        bars.mark_bar(clip=True, strokeWidth=0.6).encode(
            x=steps(),
            x2="end:Q",
            y=y,
            y2=alt.datum(0),
            color=given_colour(),
            stroke=alt.Stroke("colour:N", scale=None),
            tooltip=predicted,
        ),
        _horizontal(0, color=style.INK, strokeWidth=0.8),
        realised.encode(x=steps(), x2="end:Q", y="value:Q", tooltip=came),
        *events(run, watched),
    ]
    return alt.layer(*layers).properties(width=width, height=INTERFERENCE_HEIGHT)


def events(run: Run, watched: Watched, glyphs: bool = False) -> list[alt.Chart]:
    """The first alert of each level and the break as vertical rules; `glyphs` marks all alerts."""
    tips = [_tip(name, name) for name in ("step", "level", "detector", "message", "forecast")]
    layers = []
    for level, alert in run.first_alerts(watched.name).items():
        rule = alt.Chart(data(rows.alert_rows([alert]))).mark_rule(
            color=style.LEVELS[level], strokeDash=style.DASHES[level], strokeWidth=1.6, clip=True
        )
        layers.append(rule.encode(x=steps(), tooltip=tips))
    if glyphs:
        marks = alt.Chart(data(rows.alert_rows(run.alerts_of(watched.name))))
        marks = marks.mark_point(shape="triangle-down", filled=True, size=55, opacity=1)
        layers.append(marks.encode(x=steps(), y=alt.value(-5), color=given_colour(), tooltip=tips))
    broke = run.broken_at(watched)
    if broke is not None:
        rule = alt.Chart(data([{"step": broke, "text": "score under the floor"}]))
        rule = rule.mark_rule(color=style.BREAK, strokeWidth=2, clip=True)
        layers.append(rule.encode(x=steps(), tooltip=[_tip("step", "broke"), _tip("text", "why")]))
    return layers


def given_colour() -> alt.Color:
    """The colour that a row names; scales of colour would be shared between panels."""
    return alt.Color("colour:N", scale=None)
