"""What a person sees of a monitor while training goes on, and what remains afterwards."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from riprap.detectors import score
from riprap.monitor import Monitor
from riprap.report import LiveTable, Row, write_page
from riprap.report import _formatting as words
from riprap.types import Level


def rows(monitor: Monitor) -> list[Row]:
    """One row a behaviour, as things stand."""
    return [_row(monitor, name) for name in monitor.tracks]


def _row(monitor: Monitor, name: str) -> Row:
    track = monitor.tracks[name]
    if not track.steps:
        return Row(name)
    levels = [alert.level for alert in monitor.alerts if alert.behavior == name]
    return Row(
        name,
        score(track.margins[-1]),
        float(track.margins[-1].mean()),
        track.predicted.get(monitor.step),
        words.forecast(monitor.forecasts.get(name)),
        max(levels, key=lambda level: Level(level).rank, default=None),
        track.broken_at,
    )


def live_table(monitor: Monitor, steps: int, quiet: bool = False) -> LiveTable:
    """The live table of a run; a quiet one writes to standard error, plainly."""
    console = Console(file=sys.stderr) if quiet else None
    return LiveTable([behavior.name for behavior in monitor.behaviors], steps, console)


def outcome(monitor: Monitor, run: Path) -> dict[str, Any]:
    """What a watched run ended with; writes its report."""
    return {
        "run": str(run),
        "report": str(write_page(monitor.record, run / "report.html")),
        "steps": monitor.step,
        "broken": monitor.broken(),
        "alerts": [
            {
                "step": alert.step,
                "behavior": alert.behavior,
                "level": str(alert.level),
                "detector": alert.detector,
                "message": alert.message,
            }
            for alert in monitor.alerts
        ],
    }
