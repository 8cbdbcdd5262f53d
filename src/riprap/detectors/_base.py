"""What every detector is: a frozen set of numbers, and a pure function of a behaviour's history."""

from __future__ import annotations

from riprap._config import StrictModel
from riprap.detectors._history import BehaviorHistory
from riprap.types import Alert, Forecast


class Detector(StrictModel):
    """Turns the history of one behaviour into at most one alert.

    The fields of a detector are its thresholds, as a protocol freezes them. `check` is called after
    each visit and knows nothing but the history, so that any record can be judged again.
    """

    kind: str

    def check(self, track: BehaviorHistory) -> Alert | None:
        """The alert that stands after the last visit, or None."""
        raise NotImplementedError

    def forecast(self, track: BehaviorHistory) -> Forecast | None:
        """The forecast that stands after the last visit; None for a detector that makes none."""
        return None

    def evaluate(self, track: BehaviorHistory) -> tuple[Alert | None, Forecast | None]:
        """Both at once."""
        return self.check(track), self.forecast(track)

    def untestable_reason(self, track: BehaviorHistory) -> str:
        """Why this detector can never speak of a behaviour; empty where it can.

        Asked once, after the visit before training.
        """
        return ""
