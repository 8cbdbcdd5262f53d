"""From visits to forecasts and alerts: the histories of the behaviours, and who judges them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from riprap.behaviors import Behavior
from riprap.detectors import AlertPolicy, Track, low_margin, score
from riprap.evaluation import Look
from riprap.record import alert_of, alert_row, forecast_of, forecast_text
from riprap.types import Alert, Forecast, Level, Reading, ReadingStatus


class Judge:
    """Keeps a track of each behaviour and asks a protocol's detectors about it.

    Attributes:
        tracks: what has been measured, by behaviour.
        forecasts: the forecast that stands now, by behaviour; None where none could be made.
        alerts: all alerts raised so far. One is raised when a detector's level rises.
    """

    def __init__(self, behaviors: list[Behavior], policy: AlertPolicy) -> None:
        self.policy = policy
        self.tracks = {b.name: Track(b.name, b.floor, watched=len(behaviors)) for b in behaviors}
        self._lost: list[Alert] = []  # margins no longer finite, not yet handed on
        self._units = {b.name: getattr(b.margins, "unit", "margin") for b in behaviors}
        self.forecasts: dict[str, Forecast | None] = {}
        self.alerts: list[Alert] = []
        self._standing: dict[tuple[str, str], int] = {}

    def see(self, step: int, name: str, look: Look) -> list[Reading]:
        """Take in one behaviour's look; readings of margin and score."""
        track = self.tracks[name]
        track.looked_at = step
        if look.insufficient:
            return [no_margin(step, name, ReadingStatus.INSUFFICIENT, look.insufficient)]
        unfit = int((~np.isfinite(look.margins)).sum())
        if unfit:
            text = f"{unfit} of {len(look.margins)} margins are not finite"
            lost = no_margin(step, name, ReadingStatus.ERROR, text)
            if track.lost_at is None:
                track.lost_at = step
                text = f"{text}: the model may have diverged"
                self._lost.append(Alert(step, name, Level.CRITICAL, "finite", text, (lost,)))
            return [lost]
        track.visit(step, look.margins)
        low, unit = low_margin(look.margins, track.floor), self._units[name]
        return [
            Reading.of(step, name, "margin", float(look.margins.mean()), unit),
            Reading.of(step, name, "margin_low", low, unit),
            Reading.of(step, name, "score", score(look.margins), "share"),
        ]

    def note(self, readings: list[Reading]) -> None:
        """Add other readings to the tracks of their behaviours."""
        for reading in readings:
            track = self.tracks.get(reading.behavior)
            if track is not None and reading.value is not None:
                history = track.signals.setdefault(reading.signal, [])
                history.append((reading.step, reading.value))

    def predict(self, readings: list[Reading]) -> None:
        """Add a step's interference, and its other readings, to the tracks."""
        for reading in readings:
            if reading.signal == "interference" and reading.value is not None:
                self.tracks[reading.behavior].predicted[reading.step] = reading.value
        self.note([reading for reading in readings if reading.signal != "interference"])

    def judge(self, step: int) -> tuple[list[Alert], list[Reading]]:
        """Alerts and forecasts after a visit at `step`.

        A behaviour that was under its floor before training has nothing to lose: it is not judged.
        """
        alerts, self._lost = self._lost, []
        readings: list[Reading] = []
        for name, track in self.tracks.items():
            if not track.steps or track.step != step or not track.healthy_at_start:
                continue
            judged = [detector.judge(track) for detector in self.policy.detectors]
            alerts += self._rising(name, [alert for alert, _ in judged])
            made = [forecast for _, forecast in judged]
            self.forecasts[name] = next((f for f in made if f is not None), None)
            readings += forecast_readings(step, name, self.forecasts[name])
        self.alerts += alerts
        return alerts, readings

    @property
    def standing(self) -> dict[str, Level]:
        """The most serious level that stands now, by behaviour; nothing where none does."""
        ranks: dict[str, int] = {}
        for (_, name), rank in self._standing.items():
            ranks[name] = max(rank, ranks.get(name, 0))
        return {name: list(Level)[rank - 1] for name, rank in ranks.items() if rank}

    def undo(self, step: int) -> None:
        """Judge from now on as if nothing had been seen after `step`: the weights went back to it.

        That a behaviour was broken since then stays known.
        """
        for name, track in self.tracks.items():
            self.tracks[name] = replace(track.until(step), fell_at=track.broken_at)
        self.forecasts.clear()
        self._standing.clear()

    def unfit(self) -> list[str]:
        """Which detectors can never speak of which healthy behaviour, and why."""
        healthy = [t for t in self.tracks.values() if t.steps and t.healthy_at_start]
        asked = [detector.unfit(track) for detector in self.policy.detectors for track in healthy]
        return [text for text in asked if text]

    def summary(self) -> dict[str, float]:
        """The latest score and mean margin of each behaviour, for loggers."""
        return {
            f"riprap/{name}/{part}": value
            for name, track in self.tracks.items()
            if track.steps
            for part, value in (
                ("score", score(track.margins[-1])),
                ("margin", float(track.margins[-1].mean())),
            )
        }

    def _rising(self, name: str, standing: list[Alert | None]) -> list[Alert]:
        rising = []
        for index, alert in enumerate(standing):
            key = (str(index), name)
            rank = 0 if alert is None else alert.level.rank
            if alert is not None and rank > self._standing.get(key, 0):
                rising.append(alert)
            self._standing[key] = rank
        return rising

    def state_dict(self) -> dict[str, Any]:
        """Histories, standing alerts and forecasts, as plain values and tensors."""
        return {
            "tracks": {name: track.state_dict() for name, track in self.tracks.items()},
            "forecasts": {
                name: None if forecast is None else forecast_text(forecast)
                for name, forecast in self.forecasts.items()
            },
            "alerts": [list(alert_row(alert)) for alert in self.alerts],
            "standing": [[*key, level] for key, level in self._standing.items()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        for name, track in self.tracks.items():
            track.load_state_dict(state["tracks"][name])
        self.forecasts = {
            name: None if text is None else forecast_of(text)
            for name, text in state["forecasts"].items()
        }
        self.alerts = [alert_of(tuple(row)) for row in state["alerts"]]
        self._standing = {(index, name): level for index, name, level in state["standing"]}


def no_margin(step: int, name: str, state: ReadingStatus, why: str) -> Reading:
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
