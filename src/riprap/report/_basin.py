"""Figures of the basin: along directions, on a plane, and over the checkpoints of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import altair as alt
import numpy as np

from riprap._text import shorten
from riprap.diagnosis import Estimate
from riprap.diagnosis.basins import Array, Basin, Plane
from riprap.report import _style as style
from riprap.report._charts import apply_style
from riprap.report._panels import inline_data
from riprap.types import Level

WIDTH, HEIGHT = 520, 260
SIDE = 230  # of a plane
COLORS = (style.BLUE, style.CONE, style.UP, style.DOWN, style.LEVELS[Level.WATCH], style.INK)
ALPHA_TITLE = "α, in norms of each weight"
SCORE = alt.Scale(domain=[0, 1])
START, HALF_WIDTH = "score of the checkpoint", "half width of the basin"


def basin_figure(basin: Basin, title: str = "Basin") -> Any:
    """Draw the mean score against α with its 95 % interval over directions.

    A dashed line shows the scores by judged answers, if there are any.
    """
    rows, floors = [], []
    for name, profile in basin.behaviors.items():
        label = shorten(name)
        floors.append({"behavior": label, "floor": profile.floor})
        judged = profile.judged
        if judged is None:
            judged = np.full_like(profile.scores, np.nan)
        for alpha, mean, answers in zip(profile.alphas, profile.curve, judged.mean(0), strict=True):
            row = {"behavior": label, "alpha": float(alpha), **_bounds(mean, 0, 1)}
            rows.append(row | ({} if np.isnan(answers) else {"answers": float(answers)}))
    count = len(next(iter(basin.behaviors.values())).scores)
    x = alt.X("alpha:Q", title=ALPHA_TITLE, scale=alt.Scale(nice=False))
    color = _color([shorten(name) for name in basin.behaviors])
    base = alt.Chart(inline_data(rows)).encode(x=x, color=color)
    limits = base.mark_area(opacity=0.18, interpolate="linear").encode(y="low:Q", y2="high:Q")
    line = base.mark_line(strokeWidth=2).encode(y=alt.Y("mean:Q", title="score", scale=SCORE))
    answers = base.transform_filter("isValid(datum.answers)")
    answers = answers.mark_line(strokeWidth=1.6, strokeDash=[5, 3]).encode(y="answers:Q")
    floor = alt.Chart(inline_data(floors)).mark_rule(color=style.MUTED, strokeDash=[2, 3])
    widths = " · ".join(
        f"{shorten(name)}: VISAGE {profile.visage.mean:.2f}, half width "
        f"{'≥ ' if profile.unbounded_share == 1 else ''}{profile.width.mean:.2f}"
        for name, profile in basin.behaviors.items()
    )
    directions = f"{count} random direction{'s' * (count != 1)}, band: 95 % interval of the mean"
    head = alt.TitleParams(shorten(title), subtitle=[widths, f"{directions}; dotted: floor"])
    layers = alt.layer(limits, line, answers, floor.encode(y="floor:Q"))
    return apply_style(layers.properties(width=WIDTH, height=HEIGHT, title=head))


def plane_figure(plane: Plane, title: str = "Basin on a plane") -> Any:
    """Draw a map of the score of each behavior, with the contour at its floor."""
    head = alt.TitleParams(shorten(title), subtitle=["black: the floor; cross: the checkpoint"])
    maps = [_map(plane, name) for name in plane.scores]
    return apply_style(alt.hconcat(*maps, spacing=24, title=head))


def _map(plane: Plane, name: str) -> Any:
    alphas, scores = plane.alphas, plane.scores[name]
    step, radius = float(alphas[1] - alphas[0]), float(alphas[-1])
    rows = [
        {
            "x": float(alphas[i]) - step / 2,
            "x2": float(alphas[i]) + step / 2,
            "y": float(alphas[j]) - step / 2,
            "y2": float(alphas[j]) + step / 2,
            "score": float(scores[i, j]),
        }
        for i, j in np.ndindex(scores.shape)
    ]
    edge = radius + step / 2
    scale = alt.Scale(domain=[-edge, edge], nice=False)
    ticks = alt.Axis(grid=False, values=[-radius, -radius / 2, 0, radius / 2, radius])
    x = alt.X("x:Q", title="α, along d1", scale=scale, axis=ticks)
    y = alt.Y("y:Q", title="β, along d2", scale=scale, axis=ticks)
    legend = alt.Legend(title="score", gradientLength=SIDE - 40)
    blues = alt.Scale(domain=[0, 1], scheme="blues")
    color = alt.Color("score:Q", scale=blues, legend=legend)
    cells = alt.Chart(inline_data(rows)).mark_rect().encode(x=x, x2="x2", y=y, y2="y2", color=color)
    segments = [
        {"x": x0, "y": y0, "x2": x1, "y2": y1}
        for (x0, y0), (x1, y1) in contour(alphas, scores, plane.floors[name])
    ]
    floor = alt.Chart(inline_data(segments)).mark_rule(color=style.BREAK, strokeWidth=1.6)
    floor = floor.encode(x=x, y=y, x2="x2", y2="y2")
    center = alt.Chart(inline_data([{"x": 0, "y": 0}]))
    center = center.mark_point(shape="cross", size=50, filled=True)
    center = center.encode(x=x, y=y, color=alt.value(style.CONE))
    heading = alt.TitleParams(shorten(name), fontSize=12)
    return alt.layer(cells, floor, center).properties(width=SIDE, height=SIDE, title=heading)


ContourPoint = tuple[float, float]


def contour(
    alphas: Array, values: Array, level: float
) -> Iterator[tuple[ContourPoint, ContourPoint]]:
    """Yield the line segments of a contour, interpolated linearly within each grid cell.

    Args:
        alphas: shape (n,), of both axes.
        values: shape (n, n); the first axis is x.
    """
    for i, j in np.ndindex(len(alphas) - 1, len(alphas) - 1):
        corners = [(i, j), (i + 1, j), (i + 1, j + 1), (i, j + 1)]
        crossings = []
        for start, end in pairwise([*corners, corners[0]]):
            low, high = float(values[start]), float(values[end])
            if (low >= level) != (high >= level):
                share = (level - low) / (high - low)
                (x0, y0), (x1, y1) = alphas[[start, end]].tolist()
                crossings.append((x0 + share * (x1 - x0), y0 + share * (y1 - y0)))
        yield from zip(crossings[::2], crossings[1::2], strict=True)


def drift_figure(basins: Mapping[str, Basin], title: str = "Drift of the basin") -> Any:
    """Draw score, VISAGE and half width at each checkpoint, with 95 % intervals over directions.

    Args:
        basins: by checkpoint, in the order of the run.
    """
    rows = []
    for label, basin in basins.items():
        for name, profile in basin.behaviors.items():
            shared = {"checkpoint": shorten(label), "behavior": shorten(name)}
            start = {"mean": profile.start, "low": profile.start, "high": profile.start}
            radius = float(profile.alphas[-1])
            rows.append(shared | start | {"what": START})
            rows.append(shared | _bounds(profile.visage, 0, 1) | {"what": "VISAGE"})
            rows.append(shared | _bounds(profile.width, 0, radius) | {"what": HALF_WIDTH})
    names = [shorten(name) for name in next(iter(basins.values())).behaviors]
    x = alt.X("checkpoint:N", title=None, sort=None, axis=alt.Axis(labelAngle=0))
    panels = []
    for what in (START, "VISAGE", HALF_WIDTH):
        panel_rows = [row for row in rows if row["what"] == what]
        base = alt.Chart(inline_data(panel_rows)).encode(x=x, color=_color(names))
        scale = alt.Scale(domainMin=0) if what == HALF_WIDTH else SCORE
        y = alt.Y("mean:Q", title=None, scale=scale)
        line = base.mark_line(strokeWidth=1.8, point=True).encode(y=y)
        limits = base.mark_rule(strokeWidth=1.4, opacity=0.6).encode(y="low:Q", y2="high:Q")
        heading = alt.TitleParams(what, fontSize=12)
        panels.append(alt.layer(limits, line).properties(width=250, height=190, title=heading))
    return apply_style(alt.hconcat(*panels, spacing=20, title=alt.TitleParams(shorten(title))))


def _bounds(estimate: Estimate, minimum: float, maximum: float) -> dict[str, float]:
    """Mean and interval, clipped to the possible range; without an interval, the mean alone."""
    has_interval = np.isfinite(estimate.low)
    low, high = (estimate.low, estimate.high) if has_interval else (estimate.mean, estimate.mean)
    return {"mean": estimate.mean, "low": max(minimum, low), "high": min(maximum, high)}


def _color(names: list[str]) -> alt.Color:
    scale = alt.Scale(domain=names, range=list(COLORS))
    legend = alt.Legend(title=None, orient="top", symbolOpacity=1)
    return alt.Color("behavior:N", scale=scale, legend=legend)
