"""Figure of a divergence: KL by token of the response, and movement by layer."""

from __future__ import annotations

import math
from typing import Any

import altair as alt

from riprap.diagnosis import Estimate
from riprap.diagnosis.evidence import Divergence, LayerMoved
from riprap.report import _style as style
from riprap.report._charts import styled
from riprap.report._panels import data

WIDTH, TOP, HEIGHT = 640, 130, 76
WAYS = {"KL(reference ‖ model)": style.BLUE, "KL(model ‖ reference)": style.CONE}
BARS = ("moved", "activations", "brought back")
TITLES = {
    "moved": "‖θ − θ₀‖ / ‖θ₀‖",
    "activations": "‖a − a₀‖ / ‖a₀‖",
    "brought back": "share of KL",
}
ABOUT = {
    "moved": "how far each layer's weights moved, as a share of their size",
    "activations": "how far the residual stream moved after it, at the last prompt token",
    "brought back": "what setting this layer alone back to the reference brings back",
}
COLOURS = {"moved": style.BLUE, "activations": style.UP, "brought back": style.DOWN}
Row = dict[str, Any]


def divergence_figure(found: Divergence, title: str = "Divergence from the reference") -> Any:
    """KL both ways by token of the response above, and three measures by layer below.

    Bands and whiskers are 95 % intervals over prompts.
    """
    origin = f"teacher-forced on {len(found.responses)} responses ({found.origin})"
    names = short_names([layer.layer for layer in found.layers])
    rows = {
        kind: [
            row
            for layer, name in zip(found.layers, names, strict=True)
            if (row := _bar(layer, name, kind))
        ]
        for kind in BARS
    }
    panels = [_tokens(found), *(_by_layer(kind, rows[kind], names) for kind in BARS if rows[kind])]
    head = alt.TitleParams(title, subtitle=origin, fontSize=16)
    return styled(alt.vconcat(*panels, spacing=18, title=head))


def short_names(layers: list[str]) -> list[str]:
    """A block by its number, any other layer by the last part of its name; each once."""
    found: list[str] = []
    for layer in layers:
        short = layer.rpartition(".")[2].removesuffix("_tokens")
        found.append(layer if short in found else short)
    return found


def _tokens(found: Divergence) -> Any:
    """Two lines with their bands."""
    ways = zip(WAYS, (found.forward_at, found.backward_at), strict=True)
    rows = [
        {"token": at + 1, "way": way, "n": one.n} | _bounds(one)
        for way, each in ways
        for at, one in enumerate(each)
    ]
    axis = alt.Axis(grid=False, format="d", tickMinStep=1)
    last = len(found.forward_at)
    x = alt.X(
        "token:Q",
        title="token of the response",
        axis=axis,
        scale=alt.Scale(domain=[1, max(last, 2)]),
    )
    colour = alt.Color(
        "way:N",
        scale=alt.Scale(domain=list(WAYS), range=list(WAYS.values())),
        legend=alt.Legend(title=None, orient="top", symbolOpacity=1),
    )
    base = alt.Chart(data(rows))
    tips = [alt.Tooltip(f"{name}:Q", format=".3f") for name in ("mean", "low", "high")]
    tips = [
        alt.Tooltip("way:N"),
        alt.Tooltip("token:Q"),
        *tips,
        alt.Tooltip("n:Q", title="prompts"),
    ]
    band = base.mark_area(opacity=0.18).encode(x=x, y="low:Q", y2="high:Q", color=colour)
    line = base.mark_line(point=True, strokeWidth=2).encode(
        x=x, y=alt.Y("mean:Q", title="nats"), color=colour, tooltip=tips
    )
    about = alt.TitleParams("By token", subtitle="how far the next token's distribution is from it")
    return alt.layer(band, line).properties(width=WIDTH, height=TOP, title=about)


def _bounds(one: Estimate) -> Row:
    """Mean and interval; without an interval the mean alone."""
    whole = math.isfinite(one.low) and math.isfinite(one.high)
    low, high = (one.low, one.high) if whole else (one.mean, one.mean)
    return {"mean": one.mean, "low": low, "high": high}


def _bar(layer: LayerMoved, name: str, kind: str) -> Row | None:
    """One layer's value; None where it has none."""
    activation = layer.activation
    values = {
        "moved": layer.relative,
        "activations": None if activation is None else activation.mean,
        "brought back": layer.back,
    }
    value = values[kind]
    if value is None or not math.isfinite(value):
        return None
    row: Row = {"layer": name, "name": layer.layer, "value": value}
    if kind == "activations" and activation is not None:
        bounds = _bounds(activation)
        row |= {"low": bounds["low"], "high": bounds["high"]}
    return row


def _by_layer(kind: str, rows: list[Row], names: list[str]) -> Any:
    x = alt.X(
        "layer:N",
        title=None,
        scale=alt.Scale(domain=names),
        axis=alt.Axis(labelAngle=0, labelOverlap=True, grid=False),
    )
    tips = [alt.Tooltip("name:N", title="layer"), alt.Tooltip("value:Q", format=".4f")]
    bars = alt.Chart(data(rows)).mark_bar(color=COLOURS[kind])
    bars = bars.encode(x=x, y=alt.Y("value:Q", title=TITLES[kind]), tooltip=tips)
    layers = [bars]
    if "low" in rows[0]:
        whiskers = alt.Chart(data(rows)).mark_rule(color=style.INK)
        layers.append(whiskers.encode(x=x, y="low:Q", y2="high:Q"))
    about = alt.TitleParams(f"By layer: {kind}", subtitle=ABOUT[kind])
    return alt.layer(*layers).properties(width=WIDTH, height=HEIGHT, title=about)
