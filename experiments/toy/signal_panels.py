"""Figure: feature and gradient signals over steps, by condition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from experiments.toy import curves
from experiments.toy.analysis import Run, cells, series
from experiments.toy.curves import Points, Row
from experiments.toy.tables import CHANCE, OVERLAP
from riprap.report import apply_style, inline_data, style

WIDTH, HEIGHT = 150, 62
LEAST = 5  # steps over which a noisy signal is averaged; later the last quarter of all steps


def by_step(points: Points) -> list[tuple[int, float]]:
    """Average over layers, by step."""
    means = pd.DataFrame(points, columns=["step", "value"]).groupby("step").value.mean()
    return [(int(str(step)), float(value)) for step, value in means.items()]


def summed(points: Points) -> list[tuple[int, float]]:
    """Return the running sum, from 0 before the first step."""
    known = by_step(points)
    total = np.cumsum([value for _, value in known])
    return [(0, 0.0), *((step, float(sum_)) for (step, _), sum_ in zip(known, total, strict=True))]


def smoothed(points: Points) -> list[tuple[int, float]]:
    """Average over the last steps, over more of them as the axis becomes denser."""
    known = by_step(points)
    values = np.array([value for _, value in known])
    return [
        (step, float(values[max(0, place - max(LEAST, place // 4)) : place + 1].mean()))
        for place, (step, _) in enumerate(known)
    ]


@dataclass(frozen=True)
class Lane:
    """A row of panels: a signal, its transformation and its title."""

    signal: str
    shaped: Callable[[Points], list[tuple[int, float]]]
    title: str


QUARTER = "mean of the last quarter of the steps so far"
LANES = (
    Lane("drift_mean", by_step, "Feature: drift of the mean activation (share of its norm)"),
    Lane("projection_ratio", by_step, "Feature: projection on the behavior's direction (ratio)"),
    Lane("energy_ratio", by_step, "Feature: energy in the behavior's subspace of the start"),
    Lane("interference", summed, "Gradient: interference, summed over steps (logits)"),
    Lane("cosine_margin", smoothed, f"Gradient: cosine_margin, {QUARTER}"),
    Lane("cosine_loss", smoothed, f"Gradient: cosine_loss, {QUARTER}"),
)
OVERLAP_TITLE = "Feature: subspace overlap of A and B (dashed: chance)"
FEATURES = 3  # lanes before the overlap


def signals_figure(runs: Sequence[Run]) -> alt.VConcatChart:
    """Plot signals by condition, colored by behavior, with the breaks of the behaviors."""
    by_title = {lane.title: _lane_bands(runs, lane) for lane in LANES[:FEATURES]}
    by_title[OVERLAP_TITLE] = _overlap_bands(runs)
    by_title |= {lane.title: _lane_bands(runs, lane) for lane in LANES[FEATURES:]}
    read = {title: bands for title, bands in by_title.items() if any(bands.values())}
    chance = [value for run in runs for _, value in series(run).get(CHANCE, [])]
    marks = {OVERLAP_TITLE: [float(np.mean(chance))] if chance else []}
    rows = {
        title: _row(runs, bands, title == list(read)[-1], marks.get(title, []))
        for title, bands in read.items()
    }
    lines = (
        "line: median over seeds, band: least to largest; vertical: median break of the behavior "
        "of that color, where most seeds broke",
        "a projection needs a contrast, so A has none",
    )
    names = list(dict.fromkeys(name for run in runs for name in run.histories))
    title = "Feature and gradient signals during the new task"
    return apply_style(curves.grid(rows, title, lines, 16, curves.legend(names)))


Bands = dict[str, list[Row]]


def _lane_bands(runs: Sequence[Run], lane: Lane) -> dict[str, Bands]:
    bands: dict[str, Bands] = {run.condition: {} for run in runs}
    for (condition, name), group in cells(runs).items():
        lines = [run.histories[name].signals.get(lane.signal, []) for run in group]
        if lane.signal == "interference":  # a history holds it apart, by step
            lines = [list(run.histories[name].interference.items()) for run in group]
        if any(lines):
            bands[condition][name] = curves.band([lane.shaped(line) for line in lines if line])
    return bands


def _overlap_bands(runs: Sequence[Run]) -> dict[str, Bands]:
    bands: dict[str, list[Points]] = {run.condition: [] for run in runs}
    for run in runs:
        bands[run.condition] += [by_step(p) for s, p in series(run).items() if s == OVERLAP]
    return {c: {"": curves.band(lines)} if lines else {} for c, lines in bands.items()}


def _row(
    runs: Sequence[Run], bands: dict[str, Bands], lowest: bool, marks: list[float]
) -> list[Any]:
    rows = [row for bands in bands.values() for band in bands.values() for row in band]
    lows = [row["low"] for row in rows] + marks
    highs = [row["high"] for row in rows] + marks
    room = 0.04 * (max(highs) - min(lows))
    scale = alt.Scale(domain=[min(lows) - room, max(highs) + room], nice=False)
    charts = []
    for column, (condition, own_bands) in enumerate(bands.items()):
        own = [run for run in runs if run.condition == condition]
        axis = alt.Axis(tickCount=4, labels=column == 0, ticks=column == 0, title=None)
        y = alt.Y("low:Q", scale=scale, axis=axis)
        panel = _panel(own, own_bands, y, lowest, marks)
        charts.append(panel.properties(title=curves.named(condition)))
    return charts


def _panel(runs: Sequence[Run], bands: Bands, y: alt.Y, lowest: bool, marks: list[float]) -> Any:
    last = max(len(margins) for run in runs for margins in run.margins.values()) - 1
    x = curves.steps_axis(last, labels=lowest)
    layers: list[Any] = [curves.ground(x, y)]
    layers += [curves.level(mark, color=style.MUTED, strokeDash=[4, 3]) for mark in marks]
    for name, rows in bands.items():
        color, dash = curves.COLORS.get(name, style.INK), curves.DASHES.get(name, [1, 0])
        layers += curves.band_layers(rows, x, y, color, dash)
    for name in runs[0].histories:
        step = median_break(runs, name)
        if step is not None:
            rule = alt.Chart(inline_data([{"step": step}])).mark_rule(
                color=curves.COLORS.get(name, style.INK), strokeWidth=1.1, opacity=0.8
            )
            layers.append(rule.encode(x=x))
    return alt.layer(*layers).properties(width=WIDTH, height=HEIGHT)


def median_break(runs: Sequence[Run], name: str) -> float | None:
    """Return the median step of the break; None unless most seeds broke."""
    broke = [step for run in runs if (step := run.broke(name)) is not None]
    return float(np.median(broke)) if 2 * len(broke) > len(runs) else None
