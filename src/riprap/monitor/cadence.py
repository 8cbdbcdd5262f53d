"""When to visit the probes: densely at the start, at once when it is urgent, seldom while calm."""

from __future__ import annotations

from dataclasses import dataclass

from riprap.detectors.track import Track
from riprap.evidence import Forecast

GROWTH = 4  # the gap grows to a quarter of the steps already taken
PATIENCE = 4  # visits to fit in before the forecast's earliest break
USED_UP = 0.5  # share of the deciding margin that may be predicted away between visits


@dataclass
class Cadence:
    """The step of the next visit.

    Attributes:
        every: the longest gap between two visits, in steps.
        due: step of the next visit.
    """

    every: int
    due: int = 0

    def visited(self, step: int, forecasts: list[Forecast | None]) -> None:
        """Plan the next visit after one at `step`, given what is forecast now."""
        gap = min(max(step // GROWTH, 1), self.every)
        for forecast in forecasts:
            if forecast is not None and forecast.low < float("inf"):
                gap = min(gap, max(int(forecast.low) // PATIENCE, 1))
        self.due = step + gap

    def is_due(self, step: int, tracks: list[Track]) -> bool:
        """Whether to visit after this step: planned, or interference says it cannot wait."""
        return step >= self.due or any(waiting_is_too_late(track) for track in tracks)


def waiting_is_too_late(track: Track) -> bool:
    """Whether the updates since the last visit have used up too much of the deciding margin."""
    if not track.steps or track.low <= 0:
        return False
    return track.predicted_since_visit() < -USED_UP * track.low
