"""Figures of one run: a lane a behaviour, an overview, and their static export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import altair as alt

from riprap._text import shorten
from riprap.errors import ConfigError
from riprap.record import Writer
from riprap.report import _panels as panels
from riprap.report import _plot_data as rows
from riprap.report import _style as style
from riprap.report._bundle import document
from riprap.report._outcome import headline, judge
from riprap.report._run import Run, Watched, load

WIDTH = 860
LEGEND = (
    "blue: score, mean margin; band: 10 to 90 % of probes; dashed: the margin that decides the "
    "floor, cones: its forecast (80 %)",
    "bars: predicted change of the mean margin, dark lines: realised; vertical: first alerts "
    "(yellow watch, orange warning, red critical), black: break",
)


def lane(run: Run, watched: Watched, width: int = WIDTH) -> alt.VConcatChart:
    """Score, margin and interference of one behaviour over the same steps."""
    right = rows.last_shown(run)
    return alt.vconcat(
        panels.score_panel(run, watched, width),
        panels.margin_panel(run, watched, width, right),
        panels.interference_panel(run, watched, width),
        spacing=8,
    )


def lanes(source: Run | str | Path | Writer, width: int = WIDTH) -> alt.VConcatChart:
    """All lanes of a run as one figure.

    Args:
        width: of the panels, in pixels.

    Raises:
        RecordError: no record there, or not one that can be read.
    """
    run = source if isinstance(source, Run) else load(source)
    if not run.behaviors:
        return finish(alt.vconcat(_nothing(width)), run)
    title = alt.TitleParams(shorten(run.title), subtitle=list(LEGEND), fontSize=17)
    charts = [
        lane(run, watched, width).properties(title=_headline(run, watched))
        for watched in run.behaviors
    ]
    return finish(alt.vconcat(*charts, spacing=26, title=title), run)


def _nothing(width: int) -> alt.Chart:
    """What is drawn of a run in which nothing was measured."""
    text = alt.Chart(panels.data([{"text": "nothing has been measured yet"}]))
    text = text.mark_text(fontSize=14, color=style.QUIET).encode(text="text:N")
    return text.properties(width=width, height=80)


def finish(chart: Any, run: Run) -> Any:
    """Give a figure made of lanes its parameters (the steps shown) and the house's style."""
    styled(chart).params = [
        alt.VariableParameter(name=panels.FIRST, value=0),
        alt.VariableParameter(name=panels.LAST, value=rows.last_shown(run)),
    ]
    return chart


def styled(chart: Any) -> Any:
    """Give a figure the house's style; in place, since altair's own way copies all of it."""
    chart.config = style.config()
    return chart


def _headline(run: Run, watched: Watched) -> alt.TitleParams:
    verdict = judge(run, watched)
    return alt.TitleParams(watched.name, subtitle=headline(run, verdict))


def overview(run: Run, width: int = WIDTH) -> alt.LayerChart:
    """A strip of all alerts and breaks, on which a range of steps can be chosen."""
    domain = [0, rows.last_shown(run)]
    scale = alt.Scale(domain=domain, nice=False)
    x = alt.X("step:Q", scale=scale, axis=panels.labelled(None))
    tips = [
        alt.Tooltip(f"{name}:N", title=name) for name in ("step", "behavior", "level", "message")
    ]
    alerts = alt.Chart(panels.data(rows.alert_rows(run.alerts)))
    alerts = alerts.mark_tick(thickness=2.5, height=18).encode(
        x=x, color=panels.given_colour(), tooltip=tips
    )
    broken = [
        {"step": step, "behavior": watched.name, "message": "broke", "level": ""}
        for watched in run.behaviors
        if (step := run.broken_at(watched)) is not None
    ]
    breaks = alt.Chart(panels.data(broken))
    breaks = breaks.mark_point(
        shape="M-1,-1L1,1M-1,1L1,-1", strokeWidth=2.5, size=45, opacity=1, color=style.BREAK
    )
    focus = alt.selection_interval(name="focus", encodings=["x"])
    ground = alt.Chart(panels.data([{"step": 0}])).mark_point(opacity=0).encode(x=x)
    chart = alt.layer(ground.add_params(focus), alerts, breaks.encode(x=x, tooltip=tips))
    return styled(chart.properties(width=width, height=24))


def save(chart: Any, path: str | Path) -> Path:
    """Write a figure as .svg, .png or a self-contained .html, without a browser or a network.

    Raises:
        ConfigError: the name ends otherwise.
    """
    file = Path(path)
    kind = file.suffix.lower().removeprefix(".")
    if kind not in ("svg", "png", "html"):
        raise ConfigError(
            f"cannot write a figure to {file}: its name must end in .svg, .png, .html"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    if kind == "html":
        file.write_text(document(chart.to_dict()), encoding="utf-8")
    else:
        chart.save(file, format=kind, **({"scale_factor": 2} if kind == "png" else {}))
    return file
