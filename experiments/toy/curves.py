"""Parts of the figures' panels: bands over seeds on an axis of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np

from riprap.report import inline_data, style

Row = dict[str, Any]
Points = Sequence[tuple[int, float]]

COLORS = {"A": style.BLUE, "B": style.CONE, "over_refusal": style.UP}
DASHES = {"A": [1, 0], "B": [6, 2], "over_refusal": [2, 2]}
LINEAR_UNTIL = 20.0  # steps; the axis is nearly linear before, logarithmic after
FINE, COARSE = 50, 10  # each of the first steps is drawn, then every tenth
TICKS = (0, 10, 50, 200, 1000)


def band(lines: Sequence[Points]) -> list[Row]:
    """Interpolate lines to common steps; return median, least and largest over seeds."""
    arrays = [np.array(sorted(line), dtype=float).T for line in lines if len(line)]
    if not arrays:
        return []
    first, last = max(one[0][0] for one in arrays), min(one[0][-1] for one in arrays)
    steps = range(int(first), int(last) + 1)
    grid = [s for s in steps if s <= FINE or s % COARSE == 0 or s == last]
    values = np.array([np.interp(grid, *line) for line in arrays])
    rows = zip(grid, np.median(values, 0), values.min(0), values.max(0), strict=True)
    names = ("middle", "low", "high")
    return [
        {"step": step} | {name: float(f"{v:.4g}") for name, v in zip(names, own, strict=True)}
        for step, *own in rows
    ]


def steps_axis(last: int, labels: bool) -> alt.X:
    """Return an axis of steps that gives room to the first ones."""
    ticks = [tick for tick in TICKS if tick <= last]
    title = "optimizer step (symlog)" if labels else None
    shown: dict[str, Any] = {"title": title, "labels": labels, "ticks": labels, "values": ticks}
    axis = alt.Axis(**shown, format=",d", gridDash=[1, 3])
    scale = alt.Scale(type="symlog", constant=LINEAR_UNTIL, domain=[0, last], nice=False)
    return alt.X("step:Q", scale=scale, axis=axis)


def band_layers(rows: list[Row], x: alt.X, y: alt.Y, color: str, dash: list[int]) -> list[Any]:
    """Return a translucent band under a line."""
    base = alt.Chart(inline_data(rows))
    area = base.mark_area(color=color, opacity=0.18, clip=True).encode(x=x, y=y, y2="high:Q")
    line = base.mark_line(color=color, strokeWidth=1.6, strokeDash=dash, clip=True)
    return [area, line.encode(x=x, y=alt.Y("middle:Q", title=None))]


def ground(x: alt.X, y: alt.Y) -> alt.Chart:
    """Return the axes, so that they are drawn without data as well."""
    empty = alt.Chart(inline_data([{"step": 0, "low": 0}])).mark_point(opacity=0, clip=True)
    return empty.encode(x=x, y=y)


def level(value: float, **mark: Any) -> alt.Chart:
    """Return a horizontal line."""
    chart = alt.Chart(inline_data([{"level": value}]))
    return chart.mark_rule(**mark).encode(y=alt.Y("level:Q", title=None))


def named(text: str, **more: Any) -> alt.TitleParams:
    """Return the title of one panel, above its left edge."""
    return alt.TitleParams(text, fontSize=11, offset=4, frame="group", **more)


def legend(names: Sequence[str], width: int = 420) -> Any:
    """Return a legend of colors and dashes by behavior."""
    keys, texts = [], []
    for place, name in enumerate(names):
        left = place * 90
        row = inline_data([{"name": name}])
        rule = alt.Chart(row).mark_rule(
            color=COLORS.get(name, style.INK), strokeDash=DASHES.get(name, [1, 0]), strokeWidth=2
        )
        keys.append(rule.encode(x=alt.value(left), x2=alt.value(left + 22), y=alt.value(8)))
        text = alt.Chart(row).mark_text(align="left", color=style.INK, fontSize=11)
        texts.append(text.encode(x=alt.value(left + 27), y=alt.value(8), text="name:N"))
    return alt.layer(*keys, *texts).properties(width=width, height=14)


def grid(
    rows: Mapping[str, Sequence[Any]], title: str, lines: Sequence[str], gap: int, top: Any = None
) -> alt.VConcatChart:
    """Arrange panels in rows, each row under its name, below a title and its subtitles.

    Args:
        gap: between panels of a row, in pixels; their axes lie in it.
    """
    strips = [
        alt.hconcat(*charts, spacing=gap, bounds="flush").properties(
            title=alt.TitleParams(name, fontSize=12, offset=4)
        )
        for name, charts in rows.items()
    ]
    parts = strips if top is None else [top, *strips]
    header = alt.TitleParams(title, subtitle=list(lines), fontSize=16)
    return alt.vconcat(*parts, spacing=16, title=header)
