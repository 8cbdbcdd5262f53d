"""Show a monitor during training, and summarize the run at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from riprap._extras import EXTRAS, is_installed
from riprap.conclusion import conclude
from riprap.integrations.terminal import Terminal
from riprap.monitor import Monitor

Stage = Callable[[str, int, int], None]  # name of a stage, how much is done, of how much


@contextmanager
def show_stages(console: Console) -> Iterator[Stage]:
    """Show the stages of what comes before a training, each as a bar that is drawn at once."""
    columns = Progress.get_default_columns()[:2]
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task("")

        def show(stage: str, done: int, total: int) -> None:
            is_new = bars.tasks[0].description != stage
            bars.update(bar, description=stage, completed=done, total=total or None, refresh=is_new)

        yield show


class CommandTable(Terminal):
    """The live table of a command, which prints the summary itself.

    Args:
        quiet: draw on standard error.
    """

    def __init__(self, quiet: bool = False) -> None:
        super().__init__(Console(stderr=quiet))

    def end(self) -> None:
        """Leave the summary to the command."""


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
