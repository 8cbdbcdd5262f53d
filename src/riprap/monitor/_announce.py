"""Alerts told once: in the terminal or the log, and to the user's own function."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

from riprap._extras import is_installed
from riprap._text import escape_control_chars
from riprap._warnings import LOGGER
from riprap.types import Alert, Level, OwnDetector

if TYPE_CHECKING:
    from rich.console import Console

# Alerts that tell of no break: they have one level, and no guard gets them.
NO_BREAK = (OwnDetector.NOT_TRAINING, OwnDetector.UNWATCHED_CHANGE, OwnDetector.UNMEASURED)

PATIENCE_SECONDS = 1.0  # silence before a word about work in progress
_STYLES = {Level.WATCH: "yellow", Level.WARNING: "bold yellow", Level.CRITICAL: "bold red"}
_TABLES: list[Console] = []  # of open live tables on the terminal; lines go above the last one


class Announcer:
    """Tells of each alert that raises the level of a behavior.

    In a terminal, if rich is installed, it prints; elsewhere it logs to `riprap` at WARNING.

    Args:
        on_alert: called with each such alert as well; its failures go to `on_failure`.
        quiet: print and log nothing, as on all ranks but the first.
    """

    def __init__(
        self,
        on_alert: Callable[[Alert], object] | None,
        on_failure: Callable[[int, str, Exception], None],
        quiet: bool = False,
    ) -> None:
        self._on_alert, self._on_failure, self._quiet = on_alert, on_failure, quiet
        self._told: dict[tuple[str, str], int] = {}  # highest rank, by behavior and kind

    def tell(self, alerts: list[Alert]) -> list[Alert]:
        """Tell of the alerts whose level is higher than any before; return these."""
        risen = []
        for alert in sorted(alerts, key=lambda alert: -alert.level.rank):
            own = alert.detector if alert.detector in NO_BREAK else ""
            key = (alert.behavior, own)
            # The monitor's own alerts have one level: each raise is news.
            if own or alert.level.rank > self._told.get(key, 0):
                self._told[key] = alert.level.rank
                risen.append(alert)
        for alert in risen:
            if not self._quiet:
                say(str(alert), alert.level)
            if self._on_alert is not None:
                try:
                    self._on_alert(alert)
                except Exception as error:  # noqa: BLE001 the user's function never ends a run
                    self._on_failure(alert.step, "on_alert", error)
        return risen

    def withdraw(self, step: int, behavior: str, now: Level | None, active: Level | None) -> None:
        """Say that a level was withdrawn, so that the next rise is told again.

        Args:
            now: level of the detector that withdrew; None: none.
            active: the highest level of all detectors for this behavior; None: none.
        """
        rank = max(level.rank if level else 0 for level in (now, active))
        key = (behavior, "")
        if rank < self._told.get(key, 0):
            self._told[key] = rank
            left = max((now, active), key=lambda level: level.rank if level else 0)
            fell = "the alert is withdrawn" if left is None else f"the alert level fell to {left}"
            self.note(f"step {step}: {behavior}: {fell}")

    def note(self, text: str, critical: bool = False) -> None:
        """Say one line that is no alert."""
        if not self._quiet:
            say(text, Level.CRITICAL if critical else None)

    def forget(self) -> None:
        """Tell of all levels again, after earlier weights were restored."""
        self._told.clear()

    @contextmanager
    def progress(self, n_behaviors: int) -> Iterator[Callable[[int], None]]:
        """Say after a second that the first evaluation runs, and at its end what it took.

        The body calls what it gets with the number of probes.
        """
        began = time.monotonic()
        text = f"evaluating the probes of {n_behaviors} behaviors before training …"
        timer = threading.Timer(PATIENCE_SECONDS, lambda: say(text))
        timer.daemon = True

        def done(n_probes: int) -> None:
            seconds = time.monotonic() - began
            if seconds > PATIENCE_SECONDS and not self._quiet:
                say(f"evaluated {n_probes} probes in {seconds:.1f} s")

        if not self._quiet:
            timer.start()
        try:
            yield done
        finally:
            timer.cancel()


def say(text: str, level: Level | None = None) -> None:
    """Print one line in a terminal with rich, or log it: at WARNING with a level, else at INFO.

    A line at INFO that no logger would show goes to standard error.
    """
    line = escape_control_chars(f"riprap: {text}").replace("\n", " ")
    if in_terminal():
        from rich.console import Console
        from rich.text import Text

        console = _TABLES[-1] if _TABLES else Console(stderr=True)
        with beside_progress_bars():
            console.print(Text(line, style=_STYLES.get(level, "") if level else ""))
    elif level is None and LOGGER.isEnabledFor(logging.INFO):
        LOGGER.info(line)
    elif level is None:
        print(line, file=sys.stderr)
    else:
        LOGGER.warning(line)


@contextmanager
def above_table(console: Console) -> Iterator[None]:
    """Say lines on the console of a live table while it is open: its redraws erase all others."""
    _TABLES.append(console)
    try:
        yield
    finally:
        _TABLES.remove(console)


def in_terminal() -> bool:
    """Return whether what is said goes to a terminal, by rich."""
    return sys.stderr is not None and sys.stderr.isatty() and is_installed("rich")


def beside_progress_bars() -> AbstractContextManager[object]:
    """Take the bars of tqdm away while the body writes to the terminal."""
    if "tqdm" not in sys.modules:
        return nullcontext()
    from tqdm import tqdm

    return tqdm.external_write_mode(file=sys.stderr)
