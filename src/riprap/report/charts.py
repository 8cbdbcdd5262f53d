"""Figures of one run: a lane a behaviour, an overview, and their static export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import altair as alt

from riprap.evidence import ConfigError
from riprap.record import Writer
from riprap.report import panels, rows, style
from riprap.report.bundle import document
from riprap.report.run import Run, Watched, load
from riprap.report.verdict import Fate, judge

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
    chart = alt.vconcat(
        panels.score_panel(run, watched, width),
        panels.margin_panel(run, watched, width, right),
        panels.interference_panel(run, watched, width),
        spacing=8,
    )
    return chart


def lanes(source: Run | str | Path | Writer, width: int = WIDTH) -> alt.VConcatChart:
    """All lanes of a run as one figure.

    Args:
        width: of the panels, in pixels.

    Raises:
        RecordError: no record there, or not one that can be read.
    """
    run = source if isinstance(source, Run) else load(source)
    title = alt.TitleParams(run.title, subtitle=list(LEGEND), fontSize=17)
    charts = [
        lane(run, watched, width).properties(title=_headline(run, watched))
        for watched in run.behaviors
    ]
    return finish(alt.vconcat(*charts, spacing=26, title=title), run)


def finish(chart: Any, run: Run) -> Any:
    """Give a figure made of lanes its parameters (the steps shown) and the house's style."""
    shown = [
        alt.param(name=panels.FIRST, value=0),
        alt.param(name=panels.LAST, value=rows.last_shown(run)),
    ]
    return styled(chart.add_params(*shown))


def styled(chart: Any) -> Any:
    """Give a figure the house's style."""
    return chart.configure(**style.config())


def _headline(run: Run, watched: Watched) -> alt.TitleParams:
    verdict = judge(run, watched)
    facts = [f"broke at step {verdict.broke:,}" if verdict.fate is Fate.BROKE else verdict.fate]
    facts += [
        f"first {level} at {alert.step:,}"
        for level, alert in run.first_alerts(watched.name).items()
    ]
    if verdict.lead is not None:
        facts.append(f"lead {verdict.lead:,}")
    return alt.TitleParams(watched.name, subtitle=" · ".join(facts))


def overview(run: Run, width: int = WIDTH) -> alt.LayerChart:
    """A strip of all alerts and breaks, on which a range of steps can be chosen."""
    domain = [0, rows.last_shown(run)]
    x = alt.X(
        "step:Q",
        scale=alt.Scale(domain=domain, nice=False),
        axis=alt.Axis(title=None, format=",d", tickMinStep=1, grid=False),
    )
    tips = [
        alt.Tooltip(f"{name}:N", title=name) for name in ("step", "behavior", "level", "message")
    ]
    alerts = alt.Chart(panels.data(rows.alert_rows(run.alerts)))
    alerts = alerts.mark_tick(thickness=2.5, height=18).encode(
        x=x, color=panels.colours(), tooltip=tips
    )
    broken = [
        {"step": step, "behavior": watched.name, "message": "broke", "level": ""}
        for watched in run.behaviors
        if (step := run.broken_at(watched)) is not None
    ]
    breaks = alt.Chart(panels.data(broken))
    breaks = breaks.mark_point(shape="cross", angle=45, filled=True, size=90, color=style.BREAK)
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
        raise ConfigError(f"cannot write a figure to {file}: its name must end in .svg, .png, .html")
    file.parent.mkdir(parents=True, exist_ok=True)
    if kind == "html":
        file.write_text(document(chart.to_dict()), encoding="utf-8")
    else:
        chart.save(file, format=kind, **({"scale_factor": 2} if kind == "png" else {}))
    return file
