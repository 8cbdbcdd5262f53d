"""The session of one watch: everything that happens around a step, without failing training."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from riprap.guards import Guard
from riprap.linalg import Vector
from riprap.monitor._alert_tracker import AlertTracker, missing_margin
from riprap.monitor._guard_session import GuardSession
from riprap.monitor._hooks import StepHooks
from riprap.monitor._probe_runner import ProbeRunner
from riprap.monitor._probe_schedule import ProbeSchedule
from riprap.monitor._resilient_record import ResilientRecord
from riprap.record import clean_readings
from riprap.signals import ProbeView, Signal, StepView
from riprap.types import Alert, Reading, ReadingStatus


@dataclass
class MonitoredRun:
    """Parts of a monitor that outlive a single watch.

    Attributes:
        step: optimizer steps seen so far.
        stop_reason: reason why the guard wants training to stop; None: it does not.
    """

    signals: Sequence[Signal]
    tracker: AlertTracker
    schedule: ProbeSchedule
    record: ResilientRecord
    step: int = 0
    stop_reason: str | None = None


class WatchSession:
    """Parts of a monitor that live during one watch: probe runner, guard and hooks.

    At each step: the signals read gradient and update, the probes are evaluated if they are due,
    the detectors raise alerts, the guard acts, and everything is recorded.
    """

    def __init__(
        self,
        run: MonitoredRun,
        probe_runner: ProbeRunner,
        optimizer: torch.optim.Optimizer,
        guard: Guard | None,
    ) -> None:
        self.run, self.probe_runner = run, probe_runner
        self.guard: GuardSession | None = None
        if guard is not None:
            callbacks = (run.record.add_actions, self.on_restore, self.on_stop)
            self.guard = GuardSession(guard, probe_runner, run.tracker, optimizer, *callbacks)
        self.hooks = StepHooks(
            optimizer,
            probe_runner.parameters,
            self.before_step,
            self.after_step,
            self.record_failure,
            self.guard,
        )

    def before_step(self, gradient: Vector | None) -> None:
        """Read the task gradient of the coming step; None if there is none."""
        view = StepView(self.run.step + 1, gradient, None, self.probe_runner.protected_gradients)
        readings = self._collect_readings("on_gradient", view)
        self.run.record.add_readings(readings)
        self.run.tracker.add_readings(readings)

    def after_step(self, update: Vector) -> None:
        """Read the applied update, and evaluate the probes if they are due."""
        run = self.run
        run.step += 1
        view = StepView(run.step, None, update, self.probe_runner.protected_gradients)
        readings = self._collect_readings("on_update", view)
        run.record.add_readings(readings)
        run.tracker.add_interference(readings)
        if run.schedule.is_due(run.step, run.tracker.histories.values()):
            refresh = run.schedule.should_refresh_gradients(run.step)
            self.evaluate_probes(refresh or self._guard_needs_gradients)
        if self._guard_needs_gradients:  # also of a guard that this evaluation has activated
            self.probe_runner.run(run.step, refresh=True)

    @property
    def _guard_needs_gradients(self) -> bool:
        return self.guard is not None and self.guard.needs_fresh_gradients

    def _collect_readings(self, hook: str, view: StepView | ProbeView) -> list[Reading]:
        """Call a hook of every signal; the failure of one does not affect the others."""
        readings: list[Reading] = []
        for signal in self.run.signals:
            try:
                readings += clean_readings(getattr(signal, hook)(view), view.step)
            except Exception as error:  # noqa: BLE001 an observer's failure never ends a run
                self.run.record.add_failure(view.step, signal.name, error)
        return readings

    def record_failure(self, error: Exception) -> None:
        """Record that the monitor itself failed; training goes on."""
        self.run.record.add_failure(self.run.step, "monitor", error)

    def end(self) -> None:
        """Remove the hooks, evaluate the probes a last time, and end the record."""
        self.hooks.remove()
        try:
            histories = self.run.tracker.histories.values()
            if any(history.steps and history.step < self.run.step for history in histories):
                self.evaluate_probes(refresh=False)
        except Exception as error:  # noqa: BLE001 an observer's failure never ends a run
            self.record_failure(error)
        try:
            if self.guard is not None:
                self.guard.after_step()
        finally:
            self.run.record.end(self.run.step)

    def on_restore(self, step: int) -> None:
        """Start afresh after the weights of an earlier step were restored.

        Later measurements no longer apply, and the protected gradients are of other weights.
        """
        try:
            self.run.tracker.rewind(step)
            self.evaluate_probes(refresh=True)
        except Exception as error:  # noqa: BLE001 an observer's failure never ends a run
            self.record_failure(error)

    def on_stop(self, reason: str) -> None:
        """Note that the guard wants training to stop."""
        self.run.stop_reason = reason
        warnings.warn(f"riprap: {reason}", stacklevel=2)

    def evaluate_probes(self, refresh: bool) -> None:
        """Evaluate the probes, process the results, and inform the guard."""
        alerts = self.process_probe_results(self.probe_runner.run(self.run.step, refresh))
        if self.guard is not None:
            self.guard.on_probe_evaluation(alerts)

    def process_probe_results(self, view: ProbeView) -> list[Alert]:
        """Record readings, forecasts and alerts, and plan the next evaluation; return alerts."""
        run = self.run
        for name, text in self.probe_runner.failures.items():
            warnings.warn(f"riprap could not evaluate {name!r}: {text}", stacklevel=2)
            run.record.add_readings([missing_margin(run.step, name, ReadingStatus.ERROR, text)])
        readings: list[Reading] = []
        for name, result in view.results.items():
            readings += run.tracker.add_probe_result(run.step, name, result)
        for name, history in run.tracker.histories.items():
            if history.steps and history.step == run.step:
                run.record.add_margins(run.step, name, history.margins[-1])
        from_signals = self._collect_readings("on_probe_evaluation", view)
        run.record.add_readings([*readings, *from_signals])
        run.tracker.add_readings(from_signals)
        alerts, forecasts = run.tracker.update(run.step)
        run.record.add_readings(forecasts)
        for alert in alerts:
            run.record.add_alert(alert)
        run.schedule.plan(run.step, run.tracker.forecasts.values())
        return alerts
