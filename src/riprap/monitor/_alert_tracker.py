"""From probe results to forecasts and alerts: the behaviors' histories, and the alert policy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import Tensor

from riprap.behaviors import Behavior
from riprap.detectors import RATE_SUM, AlertPolicy, BehaviorHistory, score
from riprap.evaluation import ProbeResult
from riprap.record import (
    alert_from_row,
    alert_to_row,
    check_fields,
    detector_name,
    forecast_from_json,
    forecast_to_json,
)
from riprap.types import RUN, Alert, Forecast, Level, OwnDetector, Reading, ReadingStatus

MAX_UNMEASURED = 2  # evaluations in a row without margins, before an alert
CLEAR_AFTER = 2  # evaluations in a row with a lower level, before a level is withdrawn
HAPPENED = ("unwatched_change",)  # own alerts about what happened once: they are never withdrawn


@dataclass
class Standing:
    """Level of a detector for a behavior that was said and not withdrawn.

    Attributes:
        rank: rank of the level; 0: none.
        detector: what the alert of this level calls its detector.
        lower: ranks at the latest evaluations in a row that were lower.
        alerts: step and rank of the alerts that stand.
    """

    rank: int = 0
    detector: str = ""
    lower: list[int] = field(default_factory=list)
    alerts: list[tuple[int, int]] = field(default_factory=list)

    def fall(self, now: int) -> list[tuple[int, int]]:
        """Fall to a rank; return step and rank of the alerts that stand no longer."""
        fallen = [own for own in self.alerts if own[1] > now]
        self.alerts = [own for own in self.alerts if own[1] <= now]
        self.rank, self.lower = now, []
        return fallen


class AlertTracker:
    """Histories of all behaviors, and the alerts that a policy's detectors raise on them.

    Attributes:
        histories: measurements, by behavior.
        forecasts: current forecast, by behavior; None where none is possible.
        alerts: all alerts raised so far. An alert is raised when a detector's level rises.
        rate_sum: sum of the learning rates of all steps so far; NaN: an optimizer has none.
        withdrawals: step and facts of each event `cleared`; see `riprap.record.withdrawn_alerts`.
    """

    def __init__(self, behaviors: list[Behavior], policy: AlertPolicy) -> None:
        self.policy = policy
        n = len(behaviors)
        self.histories = {
            b.name: BehaviorHistory(b.name, b.floor, n_behaviors=n) for b in behaviors
        }
        self._pending_alerts: list[Alert] = []  # on margins not finite; for the next `update`
        self._units = {b.name: b.margins.unit for b in behaviors}
        self.forecasts: dict[str, Forecast | None] = {}
        self.alerts: list[Alert] = []
        # By the index of a detector and behavior: rank at the last evaluation, and what stands.
        self._active_ranks: dict[tuple[str, str], int] = {}
        self._standing: dict[tuple[str, str], Standing] = {}
        self.withdrawals: list[tuple[int, dict[str, Any]]] = []
        self._n_taken = 0  # of the withdrawals, by `take_cleared`
        self._unmeasured = dict.fromkeys(self.histories, 0)  # evaluations in a row
        # Step and level of the monitor's own alerts that stand, by detector and behavior.
        self._active_own: dict[tuple[str, str], tuple[int, str]] = {}
        self.kept: dict[str, list[int]] = {}  # indices of the probes that `keep_passing` kept
        self.rate_sum: float | Tensor = 0.0

    def rate_sum_reading(self, step: int) -> Reading:
        """Return the sum of the learning rates until a step, or why there is none."""
        total = float(self.rate_sum)
        if math.isfinite(total):
            return Reading.of(step, RUN, RATE_SUM, total)
        reason = "an optimizer has no learning rate that is a number"
        return Reading(step, RUN, RATE_SUM, state=ReadingStatus.NOT_RUN, detail=reason)

    def add_probe_result(self, step: int, name: str, result: ProbeResult) -> list[Reading]:
        """Add the result of a behavior's probes; return readings of margin and score."""
        history = self.histories[name]
        history.last_probe_step = step
        if result.insufficient:
            reading = missing_margin(step, name, ReadingStatus.INSUFFICIENT, result.insufficient)
            return [self.add_unmeasured(reading)]
        n_not_finite = int((~np.isfinite(result.margins)).sum())
        if n_not_finite:
            text = f"{n_not_finite} of {len(result.margins)} margins are not finite"
            reading = missing_margin(step, name, ReadingStatus.ERROR, text)
            if history.diverged_step is None:
                history.diverged_step = step
            text = f"{text}: the model may have diverged"
            alert = Alert(step, name, Level.CRITICAL, OwnDetector.NOT_FINITE, text, (reading,))
            self._pending_alerts += self.own_alert(alert)
            return [self.add_unmeasured(reading)]
        self._unmeasured[name] = 0
        for detector in (OwnDetector.UNMEASURED, OwnDetector.NOT_FINITE):
            self._end_own(step, detector, name)
        history.add_margins(step, result.margins, float(self.rate_sum))
        unit = self._units[name]
        return [
            Reading.of(step, name, "margin", float(result.margins.mean()), unit),
            Reading.of(step, name, "margin_low", history.threshold_margin, unit),
            Reading.of(step, name, "score", score(result.margins), "share"),
        ]

    def add_unmeasured(self, reading: Reading) -> Reading:
        """Count an evaluation in which a behavior gave no margins; return its reading."""
        name = reading.behavior
        self._unmeasured[name] += 1
        if self._unmeasured[name] >= MAX_UNMEASURED:
            count = self._unmeasured[name]
            text = f"not measured at {count} probe evaluations in a row: {reading.detail}"
            alert = Alert(
                reading.step, name, Level.WARNING, OwnDetector.UNMEASURED, text, (reading,)
            )
            self._pending_alerts += self.own_alert(alert)
        return reading

    def own_alert(self, alert: Alert, active: bool = True) -> list[Alert]:
        """Return an alert of the monitor itself in a list, unless it stands already.

        Args:
            active: whether the reason for it holds now.
        """
        key = (alert.detector, alert.behavior)
        if not active:
            self._end_own(alert.step, *key)
            return []
        if key in self._active_own:
            return []
        self._active_own[key] = (alert.step, str(alert.level))
        return [alert]

    def _end_own(self, step: int, detector: str, name: str) -> None:
        """Withdraw an alert of the monitor itself, if it stands: its reason holds no longer."""
        raised = self._active_own.pop((detector, name), None)
        if raised is not None and detector not in HAPPENED:
            self._withdraw(step, name, detector, raised[1], None, [raised])

    def _withdraw(
        self,
        step: int,
        name: str,
        detector: str,
        level: str | None,
        now: str | None,
        alerts: list[tuple[int, str]],
    ) -> None:
        """Note that a level has fallen, and which alerts stand no longer, by step and level."""
        facts: dict[str, Any] = {"behavior": name, "detector": detector, "level": level, "now": now}
        facts["alerts"] = [{"step": raised, "level": own} for raised, own in alerts]
        self.withdrawals.append((step, facts))

    def is_measured(self, name: str) -> bool:
        """Return whether the last probe evaluation gave margins of this behavior."""
        return bool(self.histories[name].steps) and not self._unmeasured[name]

    def add_readings(self, readings: list[Reading]) -> None:
        """Add other readings to the histories of their behaviors."""
        for reading in readings:
            history = self.histories.get(reading.behavior)
            if history is not None and reading.value is not None:
                history.signals.setdefault(reading.signal, []).append((reading.step, reading.value))

    def add_interference(self, readings: list[Reading]) -> None:
        """Add a step's interference, and its other readings, to the histories."""
        for reading in readings:
            if reading.signal == "interference" and reading.behavior in self.histories:
                self.histories[reading.behavior].add_interference(reading.step, reading.value)
        self.add_readings([reading for reading in readings if reading.signal != "interference"])

    def update(
        self, step: int, remarks: Mapping[str, str] = MappingProxyType({})
    ) -> tuple[list[Alert], list[Reading]]:
        """Run the detectors after a probe evaluation at `step`; return new alerts and forecasts.

        A behavior that was under its floor before training has nothing to lose and is left out.

        Args:
            remarks: what the alerts on a behavior say beside what its detector says, by behavior.
        """
        alerts, self._pending_alerts = self._pending_alerts, []
        readings: list[Reading] = []
        for name, history in self.histories.items():
            if not history.steps or history.step != step or not history.healthy_at_start:
                continue
            results = [detector.evaluate(history) for detector in self.policy.detectors]
            raised = self._newly_raised(step, name, [alert for alert, _ in results])
            alerts += [_with_remark(alert, remarks.get(name)) for alert in raised]
            forecasts = [forecast for _, forecast in results]
            self.forecasts[name] = next((f for f in forecasts if f is not None), None)
            readings += forecast_readings(step, name, self.forecasts[name])
        self.alerts += alerts
        return alerts, readings

    def is_declining(self) -> bool:
        """Return whether a behavior has a warning, or a more serious alert, and is not broken."""
        return any(
            level.rank >= Level.WARNING.rank
            and score(self.histories[name].margins[-1]) >= self.histories[name].floor
            for name, level in self.active_levels.items()
        )

    def aged_forecasts(self, step: int) -> list[Forecast]:
        """Return the forecasts as counted from `step`: some are of an earlier evaluation."""
        aged = []
        for name, forecast in self.forecasts.items():
            if forecast is not None and forecast.low > 0:
                low = max(forecast.low - (step - self.histories[name].step), 1.0)
                aged.append(replace(forecast, low=low))
        return aged

    def take_cleared(self) -> list[tuple[int, dict[str, Any]]]:
        """Return step and facts of the levels that were withdrawn since the last call."""
        new = self.withdrawals[self._n_taken :]
        self._n_taken = len(self.withdrawals)
        return new

    def standing_level(self, name: str) -> Level | None:
        """Return the highest level of a behavior that was said and not withdrawn."""
        ranks = [own.rank for (_, behavior), own in self._standing.items() if behavior == name]
        highest = max(ranks, default=0)
        return list(Level)[highest - 1] if highest else None

    @property
    def active_levels(self) -> dict[str, Level]:
        """The most serious active level, by behavior; behaviors without one are left out."""
        ranks: dict[str, int] = {}
        for (_, name), rank in self._active_ranks.items():
            ranks[name] = max(rank, ranks.get(name, 0))
        return {name: list(Level)[rank - 1] for name, rank in ranks.items() if rank}

    def rewind(self, step: int, now: int) -> None:
        """Forget measurements after `step`, because the weights of that step were restored.

        What stands is withdrawn at step `now`; the next evaluation may raise it again.
        `BehaviorHistory.broken_at` still tells that a behavior was broken after it.
        """
        for name, history in self.histories.items():
            earlier = history.truncated(step)
            self.histories[name] = replace(earlier, first_failure_step=history.broken_at)
            if earlier.rate_sums:  # time goes back with the weights
                self.rate_sum = earlier.rate_sums[-1]
        self.forecasts.clear()
        self._active_ranks.clear()
        for (_, name), standing in self._standing.items():
            self._fall(now, name, standing, 0)
        self._standing.clear()

    def untestable_reasons(self) -> list[str]:
        """Return the reasons why a detector can never alert on a healthy behavior."""
        healthy = [h for h in self.histories.values() if h.steps and h.healthy_at_start]
        reasons = [
            d.untestable_reason(history) for d in self.policy.detectors for history in healthy
        ]
        return [reason for reason in reasons if reason]

    def metrics(self) -> dict[str, float]:
        """Return the latest score and mean margin of each behavior, for loggers.

        A behavior that the last evaluation could not measure is left out.
        """
        return {
            f"riprap/{name}/{part}": value
            for name, history in self.histories.items()
            if self.is_measured(name)
            for margins in [history.margins[-1]]
            for part, value in (("score", score(margins)), ("margin", float(margins.mean())))
        }

    def _newly_raised(self, step: int, name: str, current: list[Alert | None]) -> list[Alert]:
        """Return the alerts that are higher than those that stand, and note what is withdrawn.

        A level falls after `CLEAR_AFTER` evaluations in a row with lower ones, to the highest of
        them, so that a detector at its bound does not say the same again and again.
        """
        raised = []
        for index, alert in enumerate(current):
            key = (str(index), name)
            rank = self._active_ranks[key] = 0 if alert is None else alert.level.rank
            standing = self._standing.setdefault(key, Standing())
            if alert is not None and rank > standing.rank:
                raised.append(alert)
                standing.detector = alert.detector
                standing.alerts.append((alert.step, rank))
            if rank >= standing.rank:
                standing.rank, standing.lower = rank, []
                continue
            standing.lower.append(rank)
            if len(standing.lower) >= CLEAR_AFTER:
                self._fall(step, name, standing, max(standing.lower))
        return raised

    def _fall(self, step: int, name: str, standing: Standing, now: int) -> None:
        """Let a level fall to a lower rank, if it is higher, and note it."""
        if standing.rank <= now:
            return
        level = _level(standing.rank)
        fallen = [(raised, str(_level(rank))) for raised, rank in standing.fall(now)]
        self._withdraw(step, name, standing.detector, level, _level(now), fallen)

    def state_dict(self) -> dict[str, Any]:
        """Return histories, alerts and forecasts, as plain values and tensors."""
        return {
            "histories": {name: history.state_dict() for name, history in self.histories.items()},
            "forecasts": {
                name: None if forecast is None else forecast_to_json(forecast)
                for name, forecast in self.forecasts.items()
            },
            "alerts": [list(alert_to_row(alert)) for alert in self.alerts],
            "active": [
                [*key, rank, own.rank, own.detector, list(own.lower), list(map(list, own.alerts))]
                for key, rank in self._active_ranks.items()
                for own in [self._standing[key]]
            ],
            "active_own": [[*key, *raised] for key, raised in sorted(self._active_own.items())],
            "withdrawals": [list(own) for own in self.withdrawals],
            "unmeasured": dict(self._unmeasured),
            "rate_sum": float(self.rate_sum),
            "kept": {name: list(indices) for name, indices in self.kept.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; the session restores `check`.

        Raises:
            AttributeError, LookupError, TypeError, ValueError: the state is malformed.
        """
        check_fields(
            state,
            histories=dict,
            forecasts=dict,
            alerts=list,
            active=list,
            active_own=list,
            withdrawals=list,
            unmeasured=dict,
            rate_sum=float,
            kept=dict,
            check=dict,
        )
        check_fields(state["unmeasured"], **dict.fromkeys(self.histories, int))
        check_fields(state["histories"], **dict.fromkeys(self.histories, dict))
        for name, history in self.histories.items():
            history.load_state_dict(state["histories"][name])
        self.forecasts = {
            name: None if text is None else forecast_from_json(text)
            for name, text in state["forecasts"].items()
        }
        self.alerts = [alert_from_row(tuple(row)) for row in state["alerts"]]
        self._unmeasured = dict(state["unmeasured"])
        self.rate_sum = state["rate_sum"]
        self._active_own = {
            (detector_name(detector), name): (int(step), str(level))
            for detector, name, step, level in state["active_own"]
        }
        self.withdrawals = [(int(step), dict(facts)) for step, facts in state["withdrawals"]]
        self._n_taken = len(self.withdrawals)
        self.kept = {name: list(indices) for name, indices in state["kept"].items()}
        self._active_ranks, self._standing = {}, {}
        for index, name, rank, standing, detector, lower, alerts in state["active"]:
            raised = [(int(step), own) for step, own in alerts]
            ranks = (rank, standing, *lower, *(own for _, own in raised))
            known = all(own in range(len(Level) + 1) for own in ranks)
            if name not in self.histories or not known:
                raise ValueError("an active level must be of a monitored behavior")
            self._active_ranks[index, name] = rank
            self._standing[index, name] = Standing(standing, str(detector), list(lower), raised)


def _with_remark(alert: Alert, remark: str | None) -> Alert:
    return replace(alert, message=f"{alert.message}; {remark}") if remark else alert


def _level(rank: int) -> str | None:
    return str(list(Level)[rank - 1]) if rank else None


def missing_margin(step: int, name: str, status: ReadingStatus, reason: str) -> Reading:
    """Return a margin that could not be read, with the reason."""
    return Reading(step, name, "margin", state=status, detail=reason)


def forecast_readings(step: int, behavior: str, forecast: Forecast | None) -> list[Reading]:
    """Return median and bounds of a forecast, and the probability of a break within its horizon.

    A number of steps that is not within the horizon has no value.
    """
    if forecast is None:
        return []
    readings = []
    for part in ("median", "low", "high"):
        value, signal = getattr(forecast, part), f"forecast_{part}"
        if value <= forecast.horizon:
            readings.append(Reading.of(step, behavior, signal, value, "steps"))
        else:
            status, reason = ReadingStatus.INSUFFICIENT, "no break is expected within the horizon"
            readings.append(Reading(step, behavior, signal, None, "steps", status, detail=reason))
    if forecast.probability is not None:
        probability = forecast.probability
        readings.append(Reading.of(step, behavior, "forecast_probability", probability, "share"))
    return readings
