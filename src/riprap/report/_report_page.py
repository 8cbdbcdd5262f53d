"""The HTML report: one file that needs no network, made from one record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from riprap.errors import ConfigError
from riprap.record import Writer
from riprap.report import _charts as charts
from riprap.report import _formatting as words
from riprap.report import _plot_data as rows
from riprap.report import _style as style
from riprap.report import _summary as facts
from riprap.report._bundle import embedded, library
from riprap.report._outcome import headline, judge
from riprap.report._run import Run, load
from riprap.report._signal_panels import multiples
from riprap.types import Alert

_HERE = Path(__file__).parent
_TEMPLATES = Environment(
    loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)


def write_page(run: str | Path | Writer, path: str | Path) -> Path:
    """Write the report of a run, finished or still going, as one self-contained HTML file.

    Args:
        run: a run's folder or record file, or the record that this process writes.

    Returns:
        where the page was written.

    Raises:
        RecordError: no record there, or not one that can be read.
        ConfigError: the page cannot be written there.
    """
    loaded, file = load(run), Path(path)
    page = _TEMPLATES.get_template("page.html").render(_context(loaded))
    try:
        if file.is_symlink():  # a run's folder may be somebody else's, and its links his
            raise ConfigError(f"{file} is a link to another file: name a place for the report")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(page, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot write the report to {file}: {error}") from error
    return file


def _context(run: Run) -> dict[str, Any]:
    figures: list[dict[str, Any]] = []

    def figure(chart: Any) -> int:
        """Keep a figure for the page's script, and name its place."""
        figures.append(chart.to_dict(validate=False))
        return len(figures) - 1

    behaviors = [_behavior(run, watched) for watched in run.behaviors]
    if run.measured:
        overview = figure(charts.overview(run))
        for shown in behaviors:
            shown["figure"] = figure(charts.finish(charts.lane(run, shown["watched"]), run))
        signals = [
            {"of": one, "figure": figure(charts.finish(one.chart, run))} for one in multiples(run)
        ]
    else:
        overview, signals = None, []
    return {
        "run": run,
        "progress": facts.progress(run),
        "behaviors": behaviors,
        "overview": overview,
        "alerts": [_alert(alert) for alert in sorted(run.alerts, key=lambda alert: alert.step)],
        "signals": signals,
        "lacks": facts.lacks(run),
        "protocol": facts.policy(run),
        "tables": facts.tables(run),
        "documents": facts.documents(run),
        "figures": embedded(figures),
        "library": library() if figures else "",
        "last": rows.last_shown(run),
        "css": Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        "script": Markup((_HERE / "page.js").read_text(encoding="utf-8")),
        "levels": {str(level): colour for level, colour in style.LEVELS.items()},
        "style": style,
    }


def _behavior(run: Run, watched: Any) -> dict[str, Any]:
    verdict = judge(run, watched)
    return {
        "watched": watched,
        "verdict": verdict,
        "headline": headline(run, verdict),
        "facts": facts.behaviour_facts(run, watched),
    }


def _alert(alert: Alert) -> dict[str, Any]:
    causes = [
        f"{reading.signal} {words.number(reading.value)}"
        if reading.value is not None
        else f"{reading.signal} {reading.state}"
        for reading in alert.readings
    ]
    return {
        "step": alert.step,
        "behavior": alert.behavior or "the run",
        "level": str(alert.level),
        "detector": alert.detector,
        "message": alert.message,
        "forecast": words.forecast(alert.forecast),
        "causes": ", ".join(causes),
    }
