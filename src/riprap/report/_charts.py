"""Figures of one run: panels of each behavior, the alert strip, export to files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import altair as alt

from riprap._text import shorten
from riprap.errors import ConfigError
from riprap.record import Writer
from riprap.report import _panels as panels
from riprap.report import _plot_data as plot_data
from riprap.report import _style as style
from riprap.report._bundle import figure_page
from riprap.report._run import BehaviorInfo, Run, load_run
from riprap.report._summary import headline

WIDTH = 860
LEGEND = (
    "blue: score, mean margin; band: 10 % to 90 % of the probes; dashed: threshold margin; "
    "cones: its forecast (80 %)",
    "bars: predicted change of the mean margin per step since the reading before, dark lines: "
    "realized",
    "vertical: first alerts (yellow watch, orange warning, red critical), black: break",
)
THINNED = "long run: each stretch of steps is drawn by its smallest and its largest value"


def behavior_figure(run: Run, behavior: BehaviorInfo, width: int = WIDTH) -> alt.VConcatChart:
    """Score, margin and interference of one behavior over the same steps."""
    right = plot_data.last_shown_step(run)
    return alt.vconcat(
        panels.score_panel(run, behavior, width),
        panels.margin_panel(run, behavior, width, right),
        panels.interference_panel(run, behavior, width),
        spacing=8,
    )


def run_figure(source: Run | str | Path | Writer, width: int = WIDTH) -> alt.VConcatChart:
    """Figure of a run, with the panels of all behaviors.

    Args:
        width: width of the panels, in pixels.

    Raises:
        RecordError: there is no readable record at `source`.
    """
    run = source if isinstance(source, Run) else load_run(source)
    if not run.behaviors:
        return add_step_range(alt.vconcat(_empty_chart(width)), run)
    lines = [*LEGEND, THINNED] if plot_data.is_thinned(run) else [*LEGEND]
    title = alt.TitleParams(shorten(run.title), subtitle=lines, fontSize=17)
    charts = [
        behavior_figure(run, behavior, width).properties(title=_behavior_title(run, behavior))
        for behavior in run.behaviors
    ]
    return add_step_range(alt.vconcat(*charts, spacing=26, title=title), run)


def _empty_chart(width: int) -> alt.Chart:
    """Chart of a run without readings."""
    text = alt.Chart(panels.inline_data([{"text": "nothing has been measured yet"}]))
    text = text.mark_text(fontSize=14, color=style.MUTED).encode(text="text:N")
    return text.properties(width=width, height=80)


def add_step_range(chart: Any, run: Run) -> Any:
    """Add the style and the two parameters (first and last step shown) to a figure, in place."""
    apply_style(chart).params = [
        alt.VariableParameter(name=panels.FIRST_STEP, value=0),
        alt.VariableParameter(name=panels.LAST_STEP, value=plot_data.last_shown_step(run)),
    ]
    return chart


def apply_style(chart: Any) -> Any:
    """Apply the style to a figure, in place: altair's `configure` would copy the figure."""
    chart.config = style.vega_config()
    return chart


def _behavior_title(run: Run, behavior: BehaviorInfo) -> alt.TitleParams:
    return alt.TitleParams(behavior.name, subtitle=headline(run, run.outcome(behavior.name)))


def alert_strip(run: Run, width: int = WIDTH) -> alt.LayerChart:
    """Strip of all alerts and breaks, on which a range of steps can be selected."""
    scale = alt.Scale(domain=[0, plot_data.last_shown_step(run)], nice=False)
    x = alt.X("step:Q", scale=scale, axis=panels.labeled_steps(None))
    tips = panels.tooltips(step="step", behavior="behavior", level="level", message="message")
    alerts = alt.Chart(panels.inline_data(plot_data.alert_rows(run.alerts)))
    alerts = alerts.mark_tick(thickness=2.5, height=18).encode(
        x=x, color=panels.color_from_data(), tooltip=tips
    )
    broken = [
        {"step": step, "behavior": behavior.name, "message": "broke", "level": ""}
        for behavior in run.behaviors
        if (step := run.broken_at(behavior)) is not None
    ]
    breaks = alt.Chart(panels.inline_data(broken))
    breaks = breaks.mark_point(
        shape="M-1,-1L1,1M-1,1L1,-1", strokeWidth=2.5, size=45, opacity=1, color=style.BREAK
    )
    focus = alt.selection_interval(name="focus", encodings=["x"])
    ground = alt.Chart(panels.inline_data([{"step": 0}])).mark_point(opacity=0).encode(x=x)
    chart = alt.layer(ground.add_params(focus), alerts, breaks.encode(x=x, tooltip=tips))
    return apply_style(chart.properties(width=width, height=24))


def save_figure(chart: Any, path: str | Path) -> Path:
    """Write a figure as .svg, .png or self-contained .html, without a browser or a network.

    Raises:
        ConfigError: the file name has another extension.
    """
    file = Path(path)
    kind = file.suffix.lower().removeprefix(".")
    if kind not in ("svg", "png", "html"):
        raise ConfigError(
            f"cannot write a figure to {file}: the name must end in .svg, .png or .html"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    if kind == "html":
        file.write_text(figure_page(chart.to_dict()), encoding="utf-8")
    else:
        chart.save(file, format=kind, **({"scale_factor": 2} if kind == "png" else {}))
    return file
