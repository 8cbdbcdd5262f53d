"""Feature and gradient signals over steps, by condition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from experiments.toy import curves
from experiments.toy.analysis import Run
from experiments.toy.curves import Points, Row
from experiments.toy.tables import CHANCE, OVERLAP
from experiments.toy.traces import cells, series
from riprap.report import _panels as panels
from riprap.report import _style as style
from riprap.report import styled

WIDTH, HEIGHT = 150, 62
LEAST = 5  # steps a noisy signal is averaged over; later the last quarter of all steps


def by_step(points: Points) -> list[tuple[int, float]]:
    """Mean over layers, by step."""
    means = pd.DataFrame(points, columns=["step", "value"]).groupby("step").value.mean()
    return [(int(str(step)), float(value)) for step, value in means.items()]


def summed(points: Points) -> list[tuple[int, float]]:
    """Running sum, from 0 before the first step."""
    known = by_step(points)
    total = np.cumsum([value for _, value in known])
    return [(0, 0.0), *((step, float(sum_)) for (step, _), sum_ in zip(known, total, strict=True))]


def smoothed(points: Points) -> list[tuple[int, float]]:
    """Mean over the last steps, ever more of them, as the axis draws them ever closer."""
    known = by_step(points)
    values = np.array([value for _, value in known])
    return [
        (step, float(values[max(0, place - max(LEAST, place // 4)) : place + 1].mean()))
        for place, (step, _) in enumerate(known)
    ]


@dataclass(frozen=True)
class Lane:
    """A row of panels: which signal, what is done to it, what it is called."""

    signal: str
    shaped: Callable[[Points], list[tuple[int, float]]]
    title: str


LANES = (
    Lane("drift_mean", by_step, "Feature: drift of the mean activation (share of its norm)"),
    Lane("projection_ratio", by_step, "Feature: projection on the behaviour's direction (ratio)"),
    Lane("energy_ratio", by_step, "Feature: energy in the behaviour's subspace of the start"),
    Lane("interference", summed, "Gradient: interference, summed over steps (logits)"),
    Lane(
        "cosine_margin",
        smoothed,
        "Gradient: cosine_margin, mean of the last quarter of the steps so far",
    ),
    Lane(
        "cosine_loss",
        smoothed,
        "Gradient: cosine_loss, mean of the last quarter of the steps so far",
    ),
)
OVERLAP_TITLE = "Feature: subspace overlap of A and B (dashed: chance)"
FEATURES = 3  # lanes before the overlap


def signals_figure(runs: Sequence[Run]) -> alt.VConcatChart:
    """Signals by condition, coloured by behaviour; where behaviours broke is marked."""
    found = {lane.title: _lane_bands(runs, lane) for lane in LANES[:FEATURES]}
    found[OVERLAP_TITLE] = _overlap_bands(runs)
    found |= {lane.title: _lane_bands(runs, lane) for lane in LANES[FEATURES:]}
    read = {title: bands for title, bands in found.items() if any(bands.values())}
    marks = {OVERLAP_TITLE: _chance(runs)}
    rows = {
        title: _row(runs, bands, title == list(read)[-1], marks.get(title, []))
        for title, bands in read.items()
    }
    lines = (
        "line: median over seeds, band: least to largest; vertical: median break of the behaviour "
        "of that colour, where most seeds broke",
        "a projection needs a contrast, so A has none",
    )
    names = list(dict.fromkeys(name for run in runs for name in run.tracks))
    title = "Feature and gradient signals during the new task"
    return styled(curves.grid(rows, title, lines, 16, curves.legend(names)))


Bands = dict[str, list[Row]]


def _lane_bands(runs: Sequence[Run], lane: Lane) -> dict[str, Bands]:
    found: dict[str, Bands] = {run.condition: {} for run in runs}
    for (condition, name), group in cells(runs).items():
        lines = [run.tracks[name].signals.get(lane.signal, []) for run in group]
        if lane.signal == "interference":  # a track keeps it apart, by step
            lines = [list(run.tracks[name].predicted.items()) for run in group]
        if any(lines):
            found[condition][name] = curves.band([lane.shaped(line) for line in lines if line])
    return found


def _overlap_bands(runs: Sequence[Run]) -> dict[str, Bands]:
    found: dict[str, list[Points]] = {run.condition: [] for run in runs}
    for run in runs:
        found[run.condition] += [by_step(p) for s, p in series(run).items() if s == OVERLAP]
    return {c: {"": curves.band(lines)} if lines else {} for c, lines in found.items()}


def _chance(runs: Sequence[Run]) -> list[float]:
    values = [value for run in runs for _, value in series(run).get(CHANCE, [])]
    return [float(np.mean(values))] if values else []


def _row(
    runs: Sequence[Run], found: dict[str, Bands], lowest: bool, marks: list[float]
) -> list[Any]:
    rows = [row for bands in found.values() for band in bands.values() for row in band]
    lows = [row["low"] for row in rows] + marks
    highs = [row["high"] for row in rows] + marks
    room = 0.04 * (max(highs) - min(lows))
    scale = alt.Scale(domain=[min(lows) - room, max(highs) + room], nice=False)
    charts = []
    for column, (condition, bands) in enumerate(found.items()):
        own = [run for run in runs if run.condition == condition]
        axis = alt.Axis(tickCount=4, labels=column == 0, ticks=column == 0, title=None)
        y = alt.Y("low:Q", scale=scale, axis=axis)
        charts.append(
            _panel(own, bands, y, lowest, marks).properties(title=curves.named(condition))
        )
    return charts


def _panel(runs: Sequence[Run], bands: Bands, y: alt.Y, lowest: bool, marks: list[float]) -> Any:
    last = max(len(margins) for run in runs for margins in run.margins.values()) - 1
    x = curves.steps_axis(last, labels=lowest)
    layers: list[Any] = [curves.ground(x, y)]
    layers += [curves.level(mark, color=style.QUIET, strokeDash=[4, 3]) for mark in marks]
    for name, rows in bands.items():
        colour, dash = curves.COLOURS.get(name, style.INK), curves.DASHES.get(name, [1, 0])
        layers += curves.band_layers(rows, x, y, colour, dash)
    for name in runs[0].tracks:
        step = median_break(runs, name)
        if step is not None:
            rule = alt.Chart(panels.data([{"step": step}])).mark_rule(
                color=curves.COLOURS.get(name, style.INK), strokeWidth=1.1, opacity=0.8
            )
            layers.append(rule.encode(x=x))
    return alt.layer(*layers).properties(width=WIDTH, height=HEIGHT)


def median_break(runs: Sequence[Run], name: str) -> float | None:
    """Median step of the break, None unless most seeds broke."""
    broke = [step for run in runs if (step := run.broke(name)) is not None]
    return float(np.median(broke)) if 2 * len(broke) > len(runs) else None
