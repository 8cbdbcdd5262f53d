"""Live table: one line per behavior, and a progress bar."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from rich.align import AlignMethod
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from riprap._formatting import format_number
from riprap._text import shorten
from riprap.monitor import above_table
from riprap.types import Level

REDRAW_SECONDS = 1 / 8
REDRAW_REST = 1000  # times as long as the last drawing took
MAX_REST = 10.0  # seconds: one slow drawing must not stop the table
COLUMNS: tuple[tuple[str, AlignMethod, int], ...] = (  # heading, side, smallest width
    *(("behavior", "left", 10), ("at step", "right", 5), ("score", "right", 5)),
    *(("margin", "right", 6), ("Δ/step", "right", 6), ("forecast break", "left", 22)),
    *(("alert", "left", 8), ("broke", "left", 9)),
)
MAX_NAME = 30
MAX_PLAIN_LINES = 10  # per run, if the output is not a terminal
STYLES = {Level.WATCH: "yellow", Level.WARNING: "bold yellow", Level.CRITICAL: "bold red"}


@dataclass(frozen=True)
class BehaviorRow:
    """One line of the table; None stands for an unknown value.

    Attributes:
        interference: predicted change of the mean margin per step, at the last reading.
        forecast: steps until the score reaches its floor, as text.
        level: highest level of an alert that stands.
        broken_at: first evaluated step with a score under the floor.
        read_at: step of the evaluation from which score, margin and forecast are.
    """

    behavior: str
    score: float | None = None
    margin: float | None = None
    interference: float | None = None
    forecast: str = ""
    level: Level | None = None
    broken_at: int | None = None
    read_at: int | None = None


class LiveTable:
    """Table that is redrawn in the terminal, at most eight times per second and 0.1 % of the time.

    If the output is not a terminal, a plain line is printed about every tenth of the run. In both
    forms, a behavior that breaks or whose alert level rises is shown at once.
    """

    def __init__(
        self, behaviors: Sequence[str], total_steps: int, console: Console | None = None
    ) -> None:
        self._console = Console() if console is None else console
        self._rows = {name: BehaviorRow(name) for name in behaviors}
        self._step, self._total = 0, total_steps
        self._next_drawing = self._printed_step = float("-inf")
        self._progress = Progress(
            TextColumn("steps"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        )
        self._bar = self._progress.add_task("", total=total_steps or None)
        self._live: Live | None = None
        self._lines_above = ExitStack()
        self._is_plain = not self._console.is_terminal
        self._note = ""

    def note(self, text: str) -> None:
        """Show a short text beside the step, such as the training loss."""
        self._note = text

    def __enter__(self) -> LiveTable:
        if not self._is_plain:
            if self._console.file.isatty():  # else what is said goes elsewhere
                self._lines_above.enter_context(above_table(self._console))
            self._live = Live(self._render(), console=self._console, auto_refresh=False)
            self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.update(self._render())
            self._stop(self._live)  # draws it
        elif self._is_plain and self._printed_step < self._step:
            self._print_line()

    def print_lines(self) -> None:
        """Take the table away, and print plain lines from now on."""
        self._is_plain = True
        if self._live is not None:
            self._live.transient = True
            self._stop(self._live)

    def _stop(self, live: Live) -> None:
        live.stop()
        self._live = None
        self._lines_above.close()

    def update(self, step: int, rows: Sequence[BehaviorRow]) -> None:
        """Show the state after `step`; behaviors without a row stay as they are."""
        worse = any(_is_worse(self._rows.get(row.behavior), row) for row in rows)
        self._step = step
        self._rows |= {row.behavior: row for row in rows}
        self._progress.update(self._bar, completed=step)
        if self._live is not None:
            if worse or time.monotonic() >= self._next_drawing:
                self._draw(self._live)
        elif worse or step - self._printed_step >= self._interval():
            self._print_line()

    def _draw(self, live: Live) -> None:
        began = time.monotonic()
        live.update(self._render(), refresh=True)
        ended = time.monotonic()
        rest = min(REDRAW_REST * (ended - began), MAX_REST)
        self._next_drawing = ended + max(REDRAW_SECONDS, rest)

    def _interval(self) -> float:
        """Return the steps between two plain lines: a tenth of the run, or of the steps so far."""
        return max((self._total or self._step) / MAX_PLAIN_LINES, 1)

    def _render(self) -> Group:
        lines = [[Text(heading, style="dim") for heading, _, _ in COLUMNS]]
        lines += [_cells(row) for row in self._rows.values()]
        return Group(
            _aligned(lines, self._console.width),
            Text(self._note, style="dim"),
            self._progress.get_renderable(),
        )

    def _print_line(self) -> None:
        """Print one plain line with the state of all behaviors."""
        self._printed_step = self._step
        states = "; ".join(_plain_text(row, self._step) for row in self._rows.values())
        total = f"/{self._total}" if self._total else ""
        place = f"step {self._step}{total}" + (f", {self._note}" if self._note else "")
        self._console.print(Text(f"{place}: {states}"), soft_wrap=True)


def _is_worse(old: BehaviorRow | None, new: BehaviorRow) -> bool:
    """True if a behavior has just broken or its alert level has risen."""
    if old is None:
        return True
    old_rank, new_rank = (0 if row.level is None else row.level.rank for row in (old, new))
    return new_rank > old_rank or (old.broken_at is None and new.broken_at is not None)


def _aligned(lines: list[list[Text]], width: int) -> Text:
    """Return cells as lines of equal columns; `rich.table` takes several times as long."""
    widths = [
        max(least, *(cell.cell_len for cell in column))
        for (_, _, least), column in zip(COLUMNS, zip(*lines, strict=True), strict=True)
    ]
    left = width - sum(widths[1:]) - len(widths) + 1
    widths[0] = max(min(widths[0], MAX_NAME, left), COLUMNS[0][2])
    for line in lines:
        for cell, (_, side, _), size in zip(line, COLUMNS, widths, strict=True):
            cell.truncate(size, overflow="ellipsis")
            cell.align(side, size)
    text = Text("\n").join(Text(" ").join(line) for line in lines)
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _cells(row: BehaviorRow) -> list[Text]:
    """Cells of a row, as `Text`: brackets in a name are not markup."""
    falling = row.interference is not None and row.interference < 0
    change = "–" if row.interference is None else f"{row.interference:+.3f}"
    return [
        Text(shorten(row.behavior), style="bold"),
        Text("–" if row.read_at is None else f"{row.read_at}"),
        Text("–" if row.score is None else f"{row.score:.2f}"),
        Text("–" if row.margin is None else f"{row.margin:.2f}"),
        Text(change, style="magenta" if falling else ""),
        Text(row.forecast),
        Text("") if row.level is None else Text(str(row.level), style=STYLES[row.level]),
        Text("") if row.broken_at is None else Text(f"step {row.broken_at}", style="reverse"),
    ]


def _plain_text(row: BehaviorRow, step: int) -> str:
    parts = [shorten(row.behavior)]
    if row.score is not None:
        parts.append(f"score {row.score:.2f}")
    if row.margin is not None:
        parts.append(f"margin {format_number(row.margin)}")
    if row.read_at not in (None, step):
        parts.append(f"(read at step {row.read_at})")
    if row.broken_at is not None:
        parts.append(f"broke at step {row.broken_at}")
    elif row.level is not None:
        parts.append(f"{row.level}, forecast {row.forecast}" if row.forecast else str(row.level))
    return " ".join(parts)
