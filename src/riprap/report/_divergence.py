"""Figure of a divergence: KL by token of the response, and change by layer."""

from __future__ import annotations

import math
from typing import Any

import altair as alt

from riprap.diagnosis import Divergence, Estimate
from riprap.diagnosis.evidence import LayerChange
from riprap.report import _style as style
from riprap.report._charts import apply_style
from riprap.report._panels import inline_data

WIDTH, TOP, HEIGHT = 640, 130, 76
DIRECTIONS = {"KL(reference ‖ model)": style.BLUE, "KL(model ‖ reference)": style.CONE}
MEASURES = ("weights", "activations", "restored")
TITLES = {"weights": "‖θ − θ₀‖ / ‖θ₀‖", "activations": "‖a − a₀‖ / ‖a₀‖", "restored": "share of KL"}
SUBTITLES = {
    "weights": "relative change of each layer's weights",
    "activations": "relative change of the residual stream after it, at the last prompt token",
    "restored": "share of the KL removed by restoring this layer alone to the reference",
}
COLORS = {"weights": style.BLUE, "activations": style.UP, "restored": style.DOWN}
Row = dict[str, Any]


def divergence_figure(divergence: Divergence, title: str = "Divergence from the reference") -> Any:
    """Draw KL in both directions by token of the response, and three measures by layer.

    Bands and whiskers are 95 % intervals over prompts.
    """
    origin = f"teacher-forced on {len(divergence.responses)} responses ({divergence.origin})"
    names = short_names([layer.layer for layer in divergence.layers])
    rows = {
        measure: [
            row
            for layer, name in zip(divergence.layers, names, strict=True)
            if (row := _bar(layer, name, measure))
        ]
        for measure in MEASURES
    }
    layer_panels = [_layer_panel(m, rows[m], names) for m in MEASURES if rows[m]]
    head = alt.TitleParams(title, subtitle=origin, fontSize=16)
    return apply_style(alt.vconcat(_token_panel(divergence), *layer_panels, spacing=18, title=head))


def short_names(layers: list[str]) -> list[str]:
    """Shorten each layer's name to its last part (a block to its number), without duplicates."""
    names: list[str] = []
    for layer in layers:
        short = layer.rpartition(".")[2].removesuffix("_tokens")
        names.append(layer if short in names else short)
    return names


def _token_panel(divergence: Divergence) -> Any:
    """Draw one line with its band for each direction of the KL."""
    directions = zip(DIRECTIONS, (divergence.forward_at, divergence.backward_at), strict=True)
    rows = [
        {"token": at + 1, "direction": direction, "n": estimate.n} | _bounds(estimate)
        for direction, estimates in directions
        for at, estimate in enumerate(estimates)
    ]
    last = len(divergence.forward_at)
    axis = alt.Axis(grid=False, format="d", tickMinStep=1)
    scale = alt.Scale(domain=[1, max(last, 2)])
    x = alt.X("token:Q", title="token of the response", axis=axis, scale=scale)
    colors = alt.Scale(domain=list(DIRECTIONS), range=list(DIRECTIONS.values()))
    legend = alt.Legend(title=None, orient="top", symbolOpacity=1)
    color = alt.Color("direction:N", scale=colors, legend=legend)
    base = alt.Chart(inline_data(rows))
    tooltips = [
        alt.Tooltip("direction:N"),
        alt.Tooltip("token:Q"),
        *(alt.Tooltip(f"{name}:Q", format=".3f") for name in ("mean", "low", "high")),
        alt.Tooltip("n:Q", title="prompts"),
    ]
    band = base.mark_area(opacity=0.18).encode(x=x, y="low:Q", y2="high:Q", color=color)
    line = base.mark_line(point=True, strokeWidth=2).encode(
        x=x, y=alt.Y("mean:Q", title="nats"), color=color, tooltip=tooltips
    )
    title = alt.TitleParams("By token", subtitle="KL of the next token's distributions")
    return alt.layer(band, line).properties(width=WIDTH, height=TOP, title=title)


def _bounds(estimate: Estimate) -> Row:
    """Mean and interval; without an interval, the mean alone."""
    has_interval = math.isfinite(estimate.low) and math.isfinite(estimate.high)
    low, high = (estimate.low, estimate.high) if has_interval else (estimate.mean, estimate.mean)
    return {"mean": estimate.mean, "low": low, "high": high}


def _bar(layer: LayerChange, name: str, measure: str) -> Row | None:
    """Row of one layer; None if the measure has no value there."""
    activation = layer.activation_change
    values = {
        "weights": layer.relative_change,
        "activations": None if activation is None else activation.mean,
        "restored": layer.restored_share,
    }
    value = values[measure]
    if value is None or not math.isfinite(value):
        return None
    row: Row = {"layer": name, "name": layer.layer, "value": value}
    if measure == "activations" and activation is not None:
        bounds = _bounds(activation)
        row |= {"low": bounds["low"], "high": bounds["high"]}
    return row


def _layer_panel(measure: str, rows: list[Row], names: list[str]) -> Any:
    axis = alt.Axis(labelAngle=0, labelOverlap=True, grid=False)
    x = alt.X("layer:N", title=None, scale=alt.Scale(domain=names), axis=axis)
    tooltips = [alt.Tooltip("name:N", title="layer"), alt.Tooltip("value:Q", format=".4f")]
    bars = alt.Chart(inline_data(rows)).mark_bar(color=COLORS[measure])
    bars = bars.encode(x=x, y=alt.Y("value:Q", title=TITLES[measure]), tooltip=tooltips)
    layers = [bars]
    if "low" in rows[0]:
        whiskers = alt.Chart(inline_data(rows)).mark_rule(color=style.INK)
        layers.append(whiskers.encode(x=x, y="low:Q", y2="high:Q"))
    title = alt.TitleParams(f"By layer: {measure}", subtitle=SUBTITLES[measure])
    return alt.layer(*layers).properties(width=WIDTH, height=HEIGHT, title=title)
