"""From visits to forecasts and alerts: the histories of the behaviours, and who judges them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from riprap.behaviors import Behavior
from riprap.detectors import AlertPolicy, BehaviorHistory, score, threshold_margin
from riprap.evaluation import ProbeResult
from riprap.record import alert_from_row, alert_to_row, forecast_from_json, forecast_to_json
from riprap.types import Alert, Forecast, Level, Reading, ReadingStatus


class AlertTracker:
    """Keeps a track of each behaviour and asks a protocol's detectors about it.

    Attributes:
        tracks: what has been measured, by behaviour.
        forecasts: the forecast that stands now, by behaviour; None where none could be made.
        alerts: all alerts raised so far. One is raised when a detector's level rises.
    """

    def __init__(self, behaviors: list[Behavior], policy: AlertPolicy) -> None:
        self.policy = policy
        self.histories = {b.name: BehaviorHistory(b.name, b.floor, n_behaviors=len(behaviors)) for b in behaviors}
        self._diverged: list[Alert] = []  # margins no longer finite, not yet handed on
        self._units = {b.name: b.margins.unit for b in behaviors}
        self.forecasts: dict[str, Forecast | None] = {}
        self.alerts: list[Alert] = []
        self._active_ranks: dict[tuple[str, str], int] = {}

    def add_probe_result(self, step: int, name: str, result: ProbeResult) -> list[Reading]:
        """Take in one behaviour's look; readings of margin and score."""
        track = self.histories[name]
        track.last_probe_step = step
        if result.insufficient:
            return [missing_margin(step, name, ReadingStatus.INSUFFICIENT, result.insufficient)]
        unfit = int((~np.isfinite(result.margins)).sum())
        if unfit:
            text = f"{unfit} of {len(result.margins)} margins are not finite"
            lost = missing_margin(step, name, ReadingStatus.ERROR, text)
            if track.diverged_step is None:
                track.diverged_step = step
                text = f"{text}: the model may have diverged"
                self._diverged.append(Alert(step, name, Level.CRITICAL, "finite", text, (lost,)))
            return [lost]
        track.add_margins(step, result.margins)
        low, unit = threshold_margin(result.margins, track.floor), self._units[name]
        return [
            Reading.of(step, name, "margin", float(result.margins.mean()), unit),
            Reading.of(step, name, "margin_low", low, unit),
            Reading.of(step, name, "score", score(result.margins), "share"),
        ]

    def add_readings(self, readings: list[Reading]) -> None:
        """Add other readings to the tracks of their behaviours."""
        for reading in readings:
            track = self.histories.get(reading.behavior)
            if track is not None and reading.value is not None:
                history = track.signals.setdefault(reading.signal, [])
                history.append((reading.step, reading.value))

    def add_predictions(self, readings: list[Reading]) -> None:
        """Add a step's interference, and its other readings, to the tracks."""
        for reading in readings:
            if reading.signal == "interference" and reading.value is not None:
                self.histories[reading.behavior].predicted[reading.step] = reading.value
        self.add_readings([reading for reading in readings if reading.signal != "interference"])

    def update(self, step: int) -> tuple[list[Alert], list[Reading]]:
        """Alerts and forecasts after a visit at `step`.

        A behaviour that was under its floor before training has nothing to lose: it is not judged.
        """
        alerts, self._diverged = self._diverged, []
        readings: list[Reading] = []
        for name, track in self.histories.items():
            if not track.steps or track.step != step or not track.healthy_at_start:
                continue
            judged = [detector.evaluate(track) for detector in self.policy.detectors]
            alerts += self._newly_raised(name, [alert for alert, _ in judged])
            made = [forecast for _, forecast in judged]
            self.forecasts[name] = next((f for f in made if f is not None), None)
            readings += forecast_readings(step, name, self.forecasts[name])
        self.alerts += alerts
        return alerts, readings

    @property
    def active_levels(self) -> dict[str, Level]:
        """The most serious level that stands now, by behaviour; nothing where none does."""
        ranks: dict[str, int] = {}
        for (_, name), rank in self._active_ranks.items():
            ranks[name] = max(rank, ranks.get(name, 0))
        return {name: list(Level)[rank - 1] for name, rank in ranks.items() if rank}

    def rewind(self, step: int) -> None:
        """Judge from now on as if nothing had been seen after `step`: the weights went back to it.

        That a behaviour was broken since then stays known.
        """
        for name, track in self.histories.items():
            self.histories[name] = replace(track.truncated(step), first_failure_step=track.broken_at)
        self.forecasts.clear()
        self._active_ranks.clear()

    def untestable_reasons(self) -> list[str]:
        """Which detectors can never speak of which healthy behaviour, and why."""
        healthy = [t for t in self.histories.values() if t.steps and t.healthy_at_start]
        asked = [detector.untestable_reason(track) for detector in self.policy.detectors for track in healthy]
        return [text for text in asked if text]

    def metrics(self) -> dict[str, float]:
        """The latest score and mean margin of each behaviour, for loggers."""
        return {
            f"riprap/{name}/{part}": value
            for name, track in self.histories.items()
            if track.steps
            for part, value in (
                ("score", score(track.margins[-1])),
                ("margin", float(track.margins[-1].mean())),
            )
        }

    def _newly_raised(self, name: str, standing: list[Alert | None]) -> list[Alert]:
        rising = []
        for index, alert in enumerate(standing):
            key = (str(index), name)
            rank = 0 if alert is None else alert.level.rank
            if alert is not None and rank > self._active_ranks.get(key, 0):
                rising.append(alert)
            self._active_ranks[key] = rank
        return rising

    def state_dict(self) -> dict[str, Any]:
        """Histories, standing alerts and forecasts, as plain values and tensors."""
        return {
            "tracks": {name: track.state_dict() for name, track in self.histories.items()},
            "forecasts": {
                name: None if forecast is None else forecast_to_json(forecast)
                for name, forecast in self.forecasts.items()
            },
            "alerts": [list(alert_to_row(alert)) for alert in self.alerts],
            "standing": [[*key, level] for key, level in self._active_ranks.items()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        for name, track in self.histories.items():
            track.load_state_dict(state["tracks"][name])
        self.forecasts = {
            name: None if text is None else forecast_from_json(text)
            for name, text in state["forecasts"].items()
        }
        self.alerts = [alert_from_row(tuple(row)) for row in state["alerts"]]
        self._active_ranks = {(index, name): level for index, name, level in state["standing"]}


def missing_margin(step: int, name: str, state: ReadingStatus, why: str) -> Reading:
    """A margin that could not be read, and why."""
    return Reading(step, name, "margin", state=state, detail=why)


def forecast_readings(step: int, behavior: str, forecast: Forecast | None) -> list[Reading]:
    """Median and bounds of a forecast; "not within the horizon" has no value."""
    if forecast is None:
        return []
    readings = []
    for part in ("median", "low", "high"):
        value, signal = getattr(forecast, part), f"forecast_{part}"
        if value <= forecast.horizon:
            readings.append(Reading.of(step, behavior, signal, value, "steps"))
        else:
            state, why = ReadingStatus.INSUFFICIENT, "not within the horizon"
            readings.append(Reading(step, behavior, signal, None, "steps", state, detail=why))
    return readings
