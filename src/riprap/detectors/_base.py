"""Base class of detectors: frozen thresholds, and a pure function of a behavior's history."""

from __future__ import annotations

from riprap._config import StrictModel
from riprap.detectors._history import BehaviorHistory
from riprap.types import Alert, Forecast


class Detector(StrictModel):
    """Rule that turns the history of one behavior into at most one alert.

    The fields of a detector are its thresholds, which an alert policy freezes. `check` is called
    after each probe evaluation and depends on the history alone, so that any record can be
    re-evaluated.
    """

    kind: str

    def check(self, history: BehaviorHistory) -> Alert | None:
        """Return the alert that holds after the last probe evaluation, or None."""
        raise NotImplementedError

    def forecast(self, history: BehaviorHistory) -> Forecast | None:
        """Return the forecast after the last probe evaluation; None if the detector makes none."""
        return None

    def evaluate(self, history: BehaviorHistory) -> tuple[Alert | None, Forecast | None]:
        """Return the results of `check` and of `forecast`."""
        return self.check(history), self.forecast(history)

    def untestable_reason(self, history: BehaviorHistory) -> str:
        """Return the reason why this detector can never alert on a behavior; empty if it can.

        Called once, after the probe evaluation before training.
        """
        return ""
