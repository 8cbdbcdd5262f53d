"""Runs on disk: one line a run, so that an interrupted bench goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

from experiments.guards_bench.plan import Key
from experiments.guards_bench.simulate import Run


class Store:
    """A file of runs. Of two runs of the same key the later one counts."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> dict[Key, Run]:
        """Return the runs by key; a last line that was cut off is left out."""
        runs: dict[Key, Run] = {}
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True):
                if line.endswith("\n"):
                    run = Run.of(json.loads(line))
                    runs[run.key] = run
        return runs

    def add(self, run: Run) -> None:
        """Append a run."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        if text and not text.endswith("\n"):  # a bench that was killed while it wrote
            self.path.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(run.document()) + "\n")
