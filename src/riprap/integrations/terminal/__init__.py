"""Live table of a training in the terminal: `Monitor(..., trackers=[Terminal()])` (`riprap[cli]`).

- `Terminal`: the tracker, for any loop.
- `LiveTable`, `BehaviorRow`, `behavior_rows`: its table, for a program that draws it itself.
"""

# ruff: noqa: E402
from riprap._extras import require

require("cli", "rich")

from riprap.integrations.terminal._table import BehaviorRow, LiveTable
from riprap.integrations.terminal._terminal import Terminal, behavior_rows

__all__ = ["BehaviorRow", "LiveTable", "Terminal", "behavior_rows"]
