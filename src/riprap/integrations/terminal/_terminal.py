"""Live table of a monitor, as one of its trackers."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from typing import Any, ClassVar

from rich.console import Console
from rich.file_proxy import FileProxy
from rich.panel import Panel
from rich.text import Text

from riprap._formatting import format_forecast, format_number
from riprap._text import escape_control_chars
from riprap.detectors import score
from riprap.integrations.terminal._table import BehaviorRow, LiveTable
from riprap.monitor import Monitor, Tracker, beside_progress_bars
from riprap.types import Alert

SHOWN_NUMBERS = ("reward", "loss", "eval_loss")  # of a training, beside the number of steps
REDRAW_SECONDS = 1.0  # between evaluations, where only the count of steps moves


class Terminal(Tracker):
    """Live table on standard error: `Monitor(..., trackers=[Terminal()])`, and the summary.

    One line for each behavior, a progress bar if the number of steps is known (`steps=` of
    `Monitor.watch`), and the training loss if it is logged; it opens after the first step. Where
    the output is no terminal, or once it shows bars of tqdm, some ten plain lines and one for each
    piece of news. A Trainer shows the table with `disable_tqdm=True`.

    When the watch ends, the summary of the run is printed below.

    Args:
        console: where to draw; None: standard error.
    """

    says_the_end: ClassVar[bool] = True

    def __init__(self, console: Console | None = None) -> None:
        self._given = console
        self._reset()

    def _reset(self) -> None:
        self._monitor: Monitor | None = None
        self._table: LiveTable | None = None
        self._is_open = False
        self._is_new = False  # whether more than the number of steps has changed
        self._drawn_at = -math.inf
        self._latest: dict[str, float] = {}
        self._busy = ""  # what the training does between two steps

    def __getstate__(self) -> dict[str, Any]:
        return {"_given": None}  # a console is not copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_given"])  # type: ignore[misc]

    def begin(self, monitor: Monitor) -> None:
        """Prepare the table; it opens when all bars that a loop makes at its start are there."""
        self._reset()
        plans = [own.schedule for own in monitor.behavior_histories.values() if own.schedule]
        total = plans[0].first + plans[0].n_steps if plans else 0
        names = [behavior.name for behavior in monitor.behaviors]
        console = self._console()
        self._monitor, self._table = monitor, LiveTable(names, total, console)
        if not console.is_terminal:
            self._show(monitor.step)

    def _console(self) -> Console:
        if self._given is not None:
            return self._given
        return Console(stderr=True, force_terminal=False if _shows_bars() else None)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Note that probes were evaluated."""
        self._is_new = True

    def alert(self, alert: Alert) -> None:
        """Note that an alert was raised."""
        self._is_new = True

    def train(self, numbers: Mapping[str, float], step: int) -> None:
        """Show reward and loss beside the number of steps."""
        self._latest |= {name: numbers[name] for name in SHOWN_NUMBERS if name in numbers}

    def note(self, text: str) -> None:
        """Show what the training does until its next step, beside the number of steps."""
        self._busy = text
        if self._monitor is not None and time.monotonic() - self._drawn_at >= REDRAW_SECONDS:
            self._show(self._monitor.step)

    def step(self, step: int) -> None:
        """Draw the table again if there is news, or if a second has passed."""
        self._busy = ""
        if self._is_new or time.monotonic() - self._drawn_at >= REDRAW_SECONDS:
            self._show(step)

    def _show(self, step: int) -> None:
        if self._table is not None and self._monitor is not None:
            self._is_new, self._drawn_at = False, time.monotonic()
            with beside_progress_bars():
                if self._given is None and _shows_bars():
                    self._table.print_lines()
                    _free_bars()
                elif not self._is_open:
                    self._is_open = True
                    self._table.__enter__()
                texts = [f"{name} {format_number(value)}" for name, value in self._latest.items()]
                self._table.note(", ".join([*texts, self._busy] if self._busy else texts))
                self._table.update(step, behavior_rows(self._monitor))

    def flush(self) -> None:
        """Close the table; its last state stays visible."""
        if self._table is not None and self._monitor is not None:
            self._show(self._monitor.step)
            self._table.__exit__(None, None, None)
            self._table = None

    def end(self) -> None:
        """Print the summary of the run."""
        monitor, self._monitor = self._monitor, None
        if monitor is None:
            return
        text = Text(escape_control_chars(monitor.summary()))
        console = self._console()
        with beside_progress_bars():
            if console.is_terminal:
                console.print(Panel(text, title="riprap", title_align="left"))
            else:
                console.print(text, soft_wrap=True)


def _shows_bars() -> bool:
    """Return whether tqdm shows a bar now: a live table cannot stand beside it."""
    return bool(getattr(getattr(sys.modules.get("tqdm"), "tqdm", None), "_instances", ()))


def _free_bars() -> None:
    """Let bars that were made beside an open table write to the terminal, and not above it."""
    for bar in list(sys.modules["tqdm"].tqdm._instances):
        if isinstance(getattr(bar.fp, "_wrapped", None), FileProxy):
            bar.fp, bar.sp = sys.stderr, bar.status_printer(sys.stderr)


def behavior_rows(monitor: Monitor) -> list[BehaviorRow]:
    """Return the rows of the live table after the latest step, one per behavior."""
    return [_row(monitor, name) for name in monitor.behavior_histories]


def _row(monitor: Monitor, name: str) -> BehaviorRow:
    history = monitor.behavior_histories[name]
    if not history.steps:
        return BehaviorRow(name)
    change = history.latest_interference_per_step()
    return BehaviorRow(
        name,
        score(history.margins[-1]),
        float(history.margins[-1].mean()),
        None if math.isnan(change) else change,
        format_forecast(monitor.forecasts.get(name)),
        monitor.standing_level(name),
        history.broken_at,
        history.step,
    )
