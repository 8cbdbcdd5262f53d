"""Alerts of every detector in recorded runs: no resampling, all signals."""

from __future__ import annotations

from experiments.harness.recorded_run import RecordedRun
from riprap.detectors import Detector, reevaluate
from riprap.types import Level


class Run(RecordedRun):
    """One finished run of which detectors are evaluated again."""

    def first(self, detector: Detector, name: str, level: Level) -> int | None:
        """Return the first probe evaluation with an alert at a level or above."""
        alerts = reevaluate(detector, self.histories[name])
        return next((a.step for a in alerts if a.level.rank >= level.rank), None)
