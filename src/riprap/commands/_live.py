"""Show a monitor during training, and summarize the run at its end."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from riprap._extras import EXTRAS, is_installed
from riprap.conclusion import conclude
from riprap.integrations.terminal import LiveTable
from riprap.monitor import Monitor


def live_table(monitor: Monitor, steps: int, quiet: bool = False) -> LiveTable:
    """Make the live table of a run; `quiet` draws it on standard error."""
    console = Console(file=sys.stderr) if quiet else None
    return LiveTable([behavior.name for behavior in monitor.behaviors], steps, console)


def summarize_run(monitor: Monitor, run_dir: Path) -> dict[str, Any]:
    """Write the report of a finished run, and return its paths, breaks and alerts.

    Without the extra `report` no report is written, and its path is None.
    """
    report, withdrawn = None, monitor.withdrawals
    if all(map(is_installed, EXTRAS["report"])):
        from riprap.report import write_report

        report = str(write_report(monitor.record, run_dir / "report.html"))
    return {
        "conclusion": conclude(monitor.record).to_dict(),
        "run": str(run_dir),
        "report": report,
        "steps": monitor.step,
        "broken": monitor.broken(),
        "below_floor": monitor.below_floor(),
        "summary": monitor.summary(),
        "alerts": [
            {
                "step": alert.step,
                "behavior": alert.behavior,
                "level": str(alert.level),
                "detector": alert.detector,
                "message": alert.message,
                "withdrawn": withdrawn.get(place),
            }
            for place, alert in enumerate(monitor.alerts)
        ],
    }
