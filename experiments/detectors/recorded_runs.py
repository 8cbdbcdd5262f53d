"""What every detector would have said in the real runs: no resampling, all signals."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.detectors.runs import folder_of
from experiments.detectors.simulate import MARGINS
from riprap.detectors import BehaviorHistory, Detector, history_from_record, reevaluate, score
from riprap.record import Reader
from riprap.types import Level


@dataclass
class Run:
    """One finished real run.

    Attributes:
        tracks: as its monitor knew them, at its own visits.
        margins: by behaviour, at every step, shape (steps + 1, n_probes).
        floors: by behaviour.
    """

    condition: str
    seed: int
    tracks: dict[str, BehaviorHistory]
    margins: dict[str, np.ndarray]
    floors: dict[str, float]

    @classmethod
    def load(cls, condition: str, seed: int) -> Run:
        """Read a run's record and margins."""
        folder: Path = folder_of(condition, seed)
        with Reader(folder) as reader:
            readings, behaviors = reader.readings(), reader.meta()["behaviors"]
            floors = {b["name"]: float(b["floor"]) for b in behaviors}
            tracks = {
                name: history_from_record(
                    name, floor, reader.margins(name), readings, watched=len(floors)
                )
                for name, floor in floors.items()
            }
        with np.load(folder / MARGINS) as arrays:
            margins = {name: arrays[name] for name in floors}
        return cls(condition, seed, tracks, margins, floors)

    def broke(self, name: str) -> int | None:
        """First step whose score on the probes was under the floor."""
        under = [score(values) < self.floors[name] for values in self.margins[name]]
        return int(np.argmax(under)) if any(under) else None

    def first(self, detector: Detector, name: str, level: Level) -> int | None:
        """First visit at which a detector stood at a level or above."""
        alerts = reevaluate(detector, self.tracks[name])
        return next((a.step for a in alerts if a.level.rank >= level.rank), None)
