"""Shared parts of callbacks: checks of their arguments, a word at the end, callbacks never used."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

from riprap._distributed import rank
from riprap._extras import EXTRAS, is_installed
from riprap._text import escape_control_chars
from riprap._warnings import LOGGER, warn
from riprap.errors import ConfigError
from riprap.guards import Guard
from riprap.monitor import Monitor, beside_progress_bars, in_terminal


def check_monitor(monitor: Any, guard: Any, callback: str) -> None:
    """Check what a callback was given.

    Raises:
        ConfigError: `monitor` is not a `Monitor`, or `guard` is neither a `Guard` nor None.
    """
    if not isinstance(monitor, Monitor):
        raise ConfigError(
            f"{callback} needs a Monitor, and got {describe(monitor)}: give "
            f"{callback}(Monitor([...]))"
        )
    if guard is not None and not isinstance(guard, Guard):
        raise ConfigError(
            f"{callback} got {describe(guard)} as guard: give a guard, such as "
            "guard=riprap.guards.AGEM(), or None"
        )


def describe(value: Any) -> str:
    """Name the kind of a wrong argument: a class, a text, or an instance."""
    if isinstance(value, type):
        return f"the class {value.__name__}, not an instance of it"
    if isinstance(value, str):
        return f"the text {value!r}"
    return "nothing" if value is None else f"a {type(value).__name__}"


def say_the_end(monitor: Monitor) -> None:
    """Say the run's summary, and write its report into `run_dir`; on the first rank only.

    The summary is left out if a tracker has said it.
    """
    if rank() != 0:
        return
    is_said = any(tracker.says_the_end for tracker in monitor.trackers)
    lines = [] if is_said else [monitor.summary()]
    if monitor.record.path is not None:
        lines += [f"Record: {monitor.record.path}", _report_line(monitor, monitor.record.path)]
    if not lines:
        return
    text = escape_control_chars("\n".join(lines))
    with beside_progress_bars():
        if in_terminal():
            from rich.console import Console
            from rich.panel import Panel
            from rich.text import Text

            Console(stderr=True).print(Panel(Text(text), title="riprap", title_align="left"))
        else:
            LOGGER.warning("riprap: %s", text)


def _report_line(monitor: Monitor, record: Path) -> str:
    if not all(map(is_installed, EXTRAS["report"])):
        return f"Report: pip install 'riprap[report]', then riprap report {record.parent}"
    try:
        from riprap.report import write_report

        return f"Report: {write_report(monitor.record, record.with_name('report.html'))}"
    except Exception as error:  # noqa: BLE001 training is over, and must not fail for its report
        return f"Report: not written ({type(error).__name__}: {error})"


class Usage:
    """Says so if a callback never sees training: when it is deleted, or when Python exits.

    Attributes:
        began: whether training has begun, or the callback was copied to begin elsewhere.
    """

    def __init__(self, callback: Any) -> None:
        self.began = False
        weakref.finalize(callback, _say_unused, self, type(callback).__name__)


def _say_unused(usage: Usage, name: str) -> None:
    if not usage.began and rank() == 0:
        LOGGER.warning(
            "riprap: a %s never saw training and did nothing: pass it as "
            "Trainer(..., callbacks=[...]), and train",
            name,
        )


def warn_without_steps(monitor: Monitor, before: int, taken: int) -> None:
    """Warn if a training took steps of which the monitor saw none."""
    if taken > 0 and monitor.step == before:
        warn(
            f"training took {taken} steps, and the monitor saw none: the trainer does not call "
            "step() of the optimizer that it passes to its callbacks",
        )
