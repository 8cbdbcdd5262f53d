"""Figures of a diagnosis: one behaviour's evidence, and what the repairs do and take."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import altair as alt

from riprap.diagnosis import Estimate
from riprap.report import _style as style
from riprap.report._charts import styled
from riprap.report._divergence import short_names
from riprap.report._panels import data

if TYPE_CHECKING:
    from riprap.report._diagnosis_page import Diagnosed, Diagnosis

WIDTH, HEIGHT = 300, 150
TUNED, BASE, CONTROL = "tuned", "base", "shuffled labels"
COLOURS = {TUNED: style.CONE, BASE: style.BLUE, CONTROL: style.QUIET}
SOURCES = {
    "own": "own examples",
    "irrelevant": "irrelevant examples",
    "control": "a model without it",
    "reference": "base model",
}
Row = dict[str, Any]


def evidence_figure(one: Diagnosed) -> Any:
    """Two panels a row: recovery, forced prefix, decodability, path; those that were measured."""
    panels = [
        panel
        for panel in (_recovery(one), _forced(one), _decoded(one), _along(one))
        if panel is not None
    ]
    chart = alt.concat(*panels, columns=2, spacing=28).resolve_scale(color="independent")
    return styled(chart)


def _bounds(name: str, one: Estimate) -> Row:
    whole = math.isfinite(one.low) and math.isfinite(one.high)
    low, high = (one.low, one.high) if whole else (one.mean, one.mean)
    # An interval of two draws is wider than any score can be.
    return {name: one.mean, "low": min(max(low, 0.0), 1.0), "high": min(max(high, 0.0), 1.0)}


def _unit(title: str) -> dict[str, Any]:
    return {"title": title, "scale": alt.Scale(domain=[0, 1.02], nice=False)}


def _colour(domain: list[str]) -> alt.Color:
    legend = alt.Legend(title=None, orient="top", symbolOpacity=1)
    scale = alt.Scale(domain=domain, range=[COLOURS[name] for name in domain])
    return alt.Color("which:N", scale=scale, legend=legend)


def _head(text: str, about: str) -> alt.TitleParams:
    return alt.TitleParams(text, subtitle=about, fontSize=13)


def _recovery(one: Diagnosed) -> Any:
    """Scores after examples, by whose examples; lines at the model as it is and at the base."""
    if one.recovery is None:
        return None
    found = one.recovery
    rows = [
        {"source": f"{SOURCES[point.source]} ({point.count})"} | _bounds("score", point.score)
        for point in found.curve
    ]
    lines = [
        {"score": found.evidence.score_now, "which": TUNED},
        {"score": found.evidence.score_before, "which": BASE},
    ]
    x = alt.X("score:Q", **_unit("score after learning them"))
    axis = alt.Axis(minExtent=130, maxExtent=150, labelLimit=150)
    y = alt.Y("source:N", title=None, sort=[row["source"] for row in rows], axis=axis)
    base = alt.Chart(data(rows))
    bars = base.mark_rule(strokeWidth=2, color=style.INK).encode(x="low:Q", x2="high:Q", y=y)
    points = base.mark_point(filled=True, size=70, opacity=1, color=style.INK).encode(x=x, y=y)
    marks = alt.Chart(data(lines)).mark_rule(strokeDash=[4, 3], strokeWidth=2)
    marks = marks.encode(x=alt.X("score:Q"), color=_colour([TUNED, BASE]))
    about = "on probes that chose nothing; bars: 95 % over draws"
    return alt.layer(marks, bars, points).properties(
        width=WIDTH - 90, height=HEIGHT, title=_head("Recovery", about)
    )


def _forced(one: Diagnosed) -> Any:
    if one.forced is None:
        return None
    sides = ((TUNED, one.forced.now), (BASE, one.forced.reference or ()))
    rows = [
        {"given": given.count, "which": which} | _bounds("share", given.next)
        for which, side in sides
        for given in side
        if given.next is not None
    ]
    if not rows:
        return None
    x = alt.X("given:Q", title="tokens given", axis=alt.Axis(tickMinStep=1, grid=False, format="d"))
    base = alt.Chart(data(rows))
    band = base.mark_rule(strokeWidth=1.5).encode(
        x=x, y="low:Q", y2="high:Q", color=_colour([TUNED, BASE])
    )
    line = base.mark_line(point=True).encode(
        x=x, y=alt.Y("share:Q", **_unit("next token follows")), color=_colour([TUNED, BASE])
    )
    about = "the base model's answer is begun: does it go on?"
    return alt.layer(band, line).properties(
        width=WIDTH, height=HEIGHT, title=_head("Forced prefix", about)
    )


def _decoded(one: Diagnosed) -> Any:
    if one.decoded is None or not one.decoded.layers:
        return None
    layers = one.decoded.layers
    names = short_names([layer.layer for layer in layers])
    rows = [
        {"layer": name, "accuracy": value, "which": which}
        for name, layer in zip(names, layers, strict=True)
        for which, value in ((TUNED, layer.now), (BASE, layer.reference), (CONTROL, layer.control))
    ]
    axis = alt.Axis(labelAngle=0, labelOverlap=True, grid=False)
    chart = alt.Chart(data(rows)).mark_line(point={"size": 14})
    chart = chart.encode(
        x=alt.X("layer:N", title="layer", sort=names, axis=axis),
        y=alt.Y("accuracy:Q", **_unit("accuracy")),
        color=_colour([TUNED, BASE, CONTROL]),
    )
    about = "linear probes on rows they never saw"
    return chart.properties(width=WIDTH, height=HEIGHT, title=_head("Decodability", about))


def _along(one: Diagnosed) -> Any:
    if one.along is None:
        return None
    along = one.along
    ends = [float(along.scores[0]), float(along.scores[-1])]
    rows = [
        {"share": float(share), "score": float(score)}
        for share, score in zip(along.shares, along.scores, strict=True)
    ]
    line = [{"share": 0.0, "score": ends[0]}, {"share": 1.0, "score": ends[1]}]
    axis = alt.Axis(format=".1f", grid=False)
    x = alt.X("share:Q", title="share of the way back", axis=axis)
    y = alt.Y("score:Q", **_unit("score"))
    way = (
        alt.Chart(data(rows))
        .mark_line(point={"color": style.INK}, color=style.INK)
        .encode(x=x, y=y)
    )
    straight = alt.Chart(data(line)).mark_line(strokeDash=[3, 3], color=style.QUIET)
    floor = alt.Chart(data([{"floor": along.floor}])).mark_rule(color=style.UP, strokeWidth=1.5)
    about = f"barrier {along.barrier:.2f}; green: the floor, {along.floor:g}"
    return alt.layer(floor.encode(y="floor:Q"), straight.encode(x=x, y=y), way).properties(
        width=WIDTH, height=HEIGHT, title=_head("Path back", about)
    )


def repairs_figure(found: Diagnosis) -> Any:
    """Each repair's scores by behaviour above their floors, and what it takes."""
    rows, costs = [], []
    names = list(found.floors)
    for one in found.repairs:
        label = one.kind + (" (cheapest)" if one is found.cheapest else "")
        rows += [
            {"repair": label, "behaviour": name, "over": score - found.floors[name], "score": score}
            for name, score in one.scores.items()
        ]
        costs.append({"repair": label, "cost": one.divergence or 0.0})
    order = [str(row["repair"]) for row in costs]
    axis = alt.Axis(minExtent=150, maxExtent=160, labelLimit=160)
    y = alt.Y("repair:N", title=None, sort=order, axis=axis)
    heat = alt.Chart(data(rows)).encode(
        x=alt.X("behaviour:N", title=None, sort=names, axis=alt.Axis(labelAngle=0)), y=y
    )
    colour = alt.Color(
        "over:Q",
        scale=alt.Scale(
            domain=[-0.5, -1e-6, 0, 0.1],
            range=["#d98c6a", "#fdf3ec", "#dcefe8", "#bfe0d4"],
            clamp=True,
        ),
        legend=None,
    )
    text = heat.mark_text(color=style.INK).encode(text=alt.Text("score:Q", format=".0%"))
    table = alt.layer(
        heat.mark_rect(stroke="white", strokeWidth=2).encode(color=colour), text
    ).properties(
        width=90 * max(len(names), 1),
        height=alt.Step(28),
        title=_head("Scores after each repair", "green: at its floor or above"),
    )
    limit = alt.Axis(titleLimit=220, tickCount=5)
    bars = alt.Chart(data(costs)).mark_bar(color=style.CONE)
    bars = bars.encode(
        x=alt.X("cost:Q", title="KL(tuned ‖ repaired), nats per token", axis=limit),
        y=alt.Y("repair:N", title=None, sort=order, axis=None),
    ).properties(width=200, height=alt.Step(28), title=_head("What it takes", found.price))
    return styled(alt.hconcat(table, bars, spacing=20))
