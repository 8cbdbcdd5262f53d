"""Figures of a diagnosis: the evidence for one behavior, and a comparison of repairs."""

from __future__ import annotations

import math
from typing import Any

import altair as alt

from riprap.diagnosis import BehaviorDiagnosis, Diagnosis, Estimate
from riprap.report import _style as style
from riprap.report._charts import apply_style
from riprap.report._divergence import short_names
from riprap.report._panels import inline_data

WIDTH, HEIGHT = 300, 150
TUNED, BASE, CONTROL = "tuned", "base", "shuffled labels"
COLORS = {TUNED: style.CONE, BASE: style.BLUE, CONTROL: style.MUTED}
SOURCES = {
    "own": "own examples",
    "unrelated": "unrelated examples",
    "naive_model": "naive model",
    "reference": "base model",
}
Row = dict[str, Any]


def evidence_figure(behavior: BehaviorDiagnosis) -> Any:
    """Draw recovery, prefix forcing, decodability and path, two panels a row, if measured."""
    kinds = (_recovery_panel, _prefix_forcing_panel, _decodability_panel, _linear_path_panel)
    drawn = [panel for draw in kinds if (panel := draw(behavior)) is not None]
    chart = alt.concat(*drawn, columns=2, spacing=28).resolve_scale(color="independent")
    return apply_style(chart)


def _bounds(name: str, estimate: Estimate) -> Row:
    has_interval = math.isfinite(estimate.low) and math.isfinite(estimate.high)
    low, high = (estimate.low, estimate.high) if has_interval else (estimate.mean, estimate.mean)
    # The interval of two draws can be wider than the range of a score.
    return {name: estimate.mean, "low": min(max(low, 0.0), 1.0), "high": min(max(high, 0.0), 1.0)}


def _share_axis(title: str) -> dict[str, Any]:
    return {"title": title, "scale": alt.Scale(domain=[0, 1.02], nice=False)}


def _color(domain: list[str]) -> alt.Color:
    legend = alt.Legend(title=None, orient="top", symbolOpacity=1)
    scale = alt.Scale(domain=domain, range=[COLORS[name] for name in domain])
    return alt.Color("which:N", scale=scale, legend=legend)


def _title(text: str, subtitle: str) -> alt.TitleParams:
    return alt.TitleParams(text, subtitle=subtitle, fontSize=13)


def _recovery_panel(behavior: BehaviorDiagnosis) -> Any:
    """Draw scores after relearning by source of the examples, beside the two models' scores."""
    if behavior.recovery is None:
        return None
    recovery = behavior.recovery
    rows = [
        {"source": f"{SOURCES[point.source]} ({point.count})"} | _bounds("score", point.score)
        for point in recovery.curve
    ]
    lines = [
        {"score": recovery.evidence.score_now, "which": TUNED},
        {"score": recovery.evidence.score_before, "which": BASE},
    ]
    x = alt.X("score:Q", **_share_axis("score after relearning"))
    axis = alt.Axis(minExtent=130, maxExtent=150, labelLimit=150)
    y = alt.Y("source:N", title=None, sort=[row["source"] for row in rows], axis=axis)
    base = alt.Chart(inline_data(rows))
    bars = base.mark_rule(strokeWidth=2, color=style.INK).encode(x="low:Q", x2="high:Q", y=y)
    points = base.mark_point(filled=True, size=70, opacity=1, color=style.INK).encode(x=x, y=y)
    marks = alt.Chart(inline_data(lines)).mark_rule(strokeDash=[4, 3], strokeWidth=2)
    marks = marks.encode(x=alt.X("score:Q"), color=_color([TUNED, BASE]))
    subtitle = "on held-out probes; bars: 95 % interval over draws"
    return alt.layer(marks, bars, points).properties(
        width=WIDTH - 90, height=HEIGHT, title=_title("Recovery", subtitle)
    )


def _prefix_forcing_panel(behavior: BehaviorDiagnosis) -> Any:
    forcing = behavior.prefix_forcing
    if forcing is None:
        return None
    sides = ((TUNED, forcing.now), (BASE, forcing.reference or ()))
    rows = [
        {"given": point.count, "which": which} | _bounds("share", point.next_token)
        for which, side in sides
        for point in side
        if point.next_token is not None
    ]
    if not rows:
        return None
    x = alt.X("given:Q", title="tokens given", axis=alt.Axis(tickMinStep=1, grid=False, format="d"))
    base = alt.Chart(inline_data(rows))
    y, color = alt.Y("share:Q", **_share_axis("next token continues")), _color([TUNED, BASE])
    band = base.mark_rule(strokeWidth=1.5).encode(x=x, y="low:Q", y2="high:Q", color=color)
    line = base.mark_line(point=True).encode(x=x, y=y, color=color)
    subtitle = "given the base model's first tokens, does it continue?"
    return alt.layer(band, line).properties(
        width=WIDTH, height=HEIGHT, title=_title("Prefix forcing", subtitle)
    )


def _decodability_panel(behavior: BehaviorDiagnosis) -> Any:
    if behavior.decodability is None or not behavior.decodability.layers:
        return None
    layers = behavior.decodability.layers
    names = short_names([layer.layer for layer in layers])
    rows = [
        {"layer": name, "accuracy": value, "which": which}
        for name, layer in zip(names, layers, strict=True)
        for which, value in ((TUNED, layer.now), (BASE, layer.reference), (CONTROL, layer.control))
    ]
    axis = alt.Axis(labelAngle=0, labelOverlap=True, grid=False)
    chart = alt.Chart(inline_data(rows)).mark_line(point={"size": 14})
    chart = chart.encode(
        x=alt.X("layer:N", title="layer", sort=names, axis=axis),
        y=alt.Y("accuracy:Q", **_share_axis("accuracy")),
        color=_color([TUNED, BASE, CONTROL]),
    )
    title = _title("Linear decodability", "linear probes on held-out rows")
    return chart.properties(width=WIDTH, height=HEIGHT, title=title)


def _linear_path_panel(behavior: BehaviorDiagnosis) -> Any:
    path = behavior.linear_path
    if path is None:
        return None
    pairs = zip(path.alphas.tolist(), path.scores.tolist(), strict=True)
    rows = [{"alpha": alpha, "score": score} for alpha, score in pairs]
    axis = alt.Axis(format=".1f", grid=False)
    x = alt.X("alpha:Q", title="α: 0 tuned, 1 base", axis=axis)
    y = alt.Y("score:Q", **_share_axis("score"))
    scores = alt.Chart(inline_data(rows)).mark_line(point={"color": style.INK}, color=style.INK)
    ends = alt.Chart(inline_data([rows[0], rows[-1]]))
    straight = ends.mark_line(strokeDash=[3, 3], color=style.MUTED)
    floor = alt.Chart(inline_data([{"floor": path.floor}]))
    floor = floor.mark_rule(color=style.UP, strokeWidth=1.5)
    subtitle = f"barrier {path.barrier:.2f}; green: the floor, {path.floor:g}"
    lines = [chart.encode(x=x, y=y) for chart in (straight, scores)]
    title = _title("Linear path to the base model", subtitle)
    layers = alt.layer(floor.encode(y="floor:Q"), *lines)
    return layers.properties(width=WIDTH, height=HEIGHT, title=title)


def repairs_figure(diagnosis: Diagnosis) -> Any:
    """Draw the scores after each repair relative to their floors, and the cost of each repair."""
    rows, costs = [], []
    floors = diagnosis.floors
    names = list(floors)
    for repair in diagnosis.repairs:
        label = repair.kind + " (cheapest)" * (repair is diagnosis.cheapest_repair)
        rows += [
            {"repair": label, "behavior": name, "over": score - floors[name], "score": score}
            for name, score in repair.scores.items()
        ]
        costs.append({"repair": label, "cost": repair.divergence or 0.0})
    order = [str(row["repair"]) for row in costs]
    axis = alt.Axis(minExtent=150, maxExtent=160, labelLimit=160)
    y = alt.Y("repair:N", title=None, sort=order, axis=axis)
    heat = alt.Chart(inline_data(rows)).encode(
        x=alt.X("behavior:N", title=None, sort=names, axis=alt.Axis(labelAngle=0)), y=y
    )
    shades = ["#d98c6a", "#fdf3ec", "#dcefe8", "#bfe0d4"]
    scale = alt.Scale(domain=[-0.5, -1e-6, 0, 0.1], range=shades, clamp=True)
    color = alt.Color("over:Q", scale=scale, legend=None)
    text = heat.mark_text(color=style.INK).encode(text=alt.Text("score:Q", format=".0%"))
    cells = heat.mark_rect(stroke="white", strokeWidth=2).encode(color=color)
    table = alt.layer(cells, text).properties(
        width=90 * max(len(names), 1),
        height=alt.Step(28),
        title=_title("Scores after each repair", "green: at the floor or above"),
    )
    limit = alt.Axis(titleLimit=220, tickCount=5)
    bars = alt.Chart(inline_data(costs)).mark_bar(color=style.CONE)
    bars = bars.encode(
        x=alt.X("cost:Q", title="KL from the tuned model, nats per token", axis=limit),
        y=alt.Y("repair:N", title=None, sort=order, axis=None),
    ).properties(width=200, height=alt.Step(28), title=_title("Cost", diagnosis.cost_measure))
    return apply_style(alt.hconcat(table, bars, spacing=20))
