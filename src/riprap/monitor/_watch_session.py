"""What is done around each step of a watch and at each visit, without a failure into training."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from riprap._text import escape_control_chars
from riprap.linalg import Vector
from riprap.monitor._alert_tracker import AlertTracker, missing_margin
from riprap.monitor._guard_session import GuardSession
from riprap.monitor._probe_runner import ProbeRunner
from riprap.monitor._probe_schedule import ProbeSchedule
from riprap.monitor._resilient_record import ResilientRecord
from riprap.signals import Signal, StepView, ProbeView
from riprap.types import RUN, Reading, ReadingStatus


class WatchSession:
    """Reads, judges and writes down: around each step, and whenever the probes are visited.

    Attributes:
        step: optimizer steps seen so far.
        visitor: who visits the probes; None while nothing is watched.
        guarding: the guard at work, if there is one.
        should_stop: why the guard wants training to stop; empty: it does not.
    """

    def __init__(
        self, signals: Sequence[Signal], judge: AlertTracker, cadence: ProbeSchedule, ledger: ResilientRecord
    ) -> None:
        self.signals, self.judge, self.cadence, self.ledger = signals, judge, cadence, ledger
        self.step = 0
        self.visitor: ProbeRunner | None = None
        self.guarding: GuardSession | None = None
        self.should_stop = ""

    def before_step(self, gradient: Vector | None) -> None:
        """Read the task gradient of the step to come; None where there is none."""
        assert self.visitor is not None
        view = StepView(self.step + 1, gradient, None, self.visitor.protected_gradients)
        readings = self._collect_readings("on_gradient", view)
        self.ledger.readings(readings)
        self.judge.add_readings(readings)

    def after_step(self, update: Vector) -> None:
        """Read the applied update, and visit the probes where it is time."""
        assert self.visitor is not None
        self.step += 1
        view = StepView(self.step, None, update, self.visitor.protected_gradients)
        readings = self._collect_readings("on_update", view)
        self.ledger.readings(readings)
        self.judge.add_predictions(readings)
        if self.cadence.is_due(self.step, self.judge.histories.values()):
            refresh = self.cadence.should_refresh_gradients(self.step)
            self.process_probe_results(self.visitor.run(self.step, refresh or self._needs_fresh_gradients))
        if self._needs_fresh_gradients:  # a guard's gradients are due, or it was woken by what was just seen
            self.visitor.run(self.step, refresh=True)

    @property
    def _needs_fresh_gradients(self) -> bool:
        return self.guarding is not None and self.guarding.needs_fresh_gradients

    def _collect_readings(self, moment: str, view: StepView | ProbeView) -> list[Reading]:
        """What the signals read at a moment; one that fails spares the others."""
        readings: list[Reading] = []
        for signal in self.signals:
            try:
                readings += getattr(signal, moment)(view)
            except Exception as error:  # noqa: BLE001 an observer's failure never ends a run
                self.record_failure(error, signal.name, view.step)
        return readings

    def record_failure(self, error: Exception, what: str = "monitor", step: int | None = None) -> None:
        """Note that the observer itself failed; training goes on."""
        at, text = (
            self.step if step is None else step,
            escape_control_chars(f"{type(error).__name__}: {error}"),
        )
        warnings.warn(f"riprap: {what} failed at step {at}: {text}", stacklevel=2)
        failure = Reading(at, RUN, what, state=ReadingStatus.ERROR, detail=text)
        self.ledger.readings([failure])

    def record_skipped_step(self, why: str) -> None:
        """Note a step that the optimizer was not let take."""
        text = f"no step after step {self.step}: {why}"
        reading = Reading(self.step, RUN, "step", state=ReadingStatus.NOT_RUN, detail=text)
        self.ledger.readings([reading])

    def end(self) -> None:
        """Visit the probes a last time, and say in the record that the watch has ended."""
        assert self.visitor is not None
        try:
            tracks = self.judge.histories.values()
            if any(track.steps and track.step < self.step for track in tracks):
                self.process_probe_results(self.visitor.run(self.step, refresh=False))
        except Exception as error:  # noqa: BLE001 an observer's failure never ends a run
            self.record_failure(error)
        try:
            if self.guarding is not None:
                self.guarding.after_step()
        finally:
            self.ledger.end(self.step)
            self.visitor = self.guarding = None

    def on_restore(self, to: int) -> None:
        """Begin afresh after the weights of an earlier step were put back.

        What was seen since then is of a way that was given up, and held gradients are of other
        weights.
        """
        assert self.visitor is not None
        try:
            self.judge.rewind(to)
            self.process_probe_results(self.visitor.run(self.step, refresh=True))
        except Exception as error:  # noqa: BLE001 an observer's failure never ends a run
            self.record_failure(error)

    def stop(self, why: str) -> None:
        """Note that the guard wants training to stop."""
        self.should_stop = why
        warnings.warn(f"riprap: {why}", stacklevel=2)

    def process_probe_results(self, view: ProbeView) -> None:
        """All that follows from a visit: readings, forecasts, alerts, the next visit."""
        assert self.visitor is not None
        for name, text in self.visitor.failures.items():
            warnings.warn(f"riprap could not visit {name!r}: {text}", stacklevel=2)
            self.ledger.readings([missing_margin(self.step, name, ReadingStatus.ERROR, text)])
        readings = [
            r for name, look in view.results.items() for r in self.judge.add_probe_result(self.step, name, look)
        ]
        for name, track in self.judge.histories.items():
            if track.steps and track.step == self.step:
                self.ledger.margins(self.step, name, track.margins[-1])
        signals = self._collect_readings("on_probes", view)
        self.ledger.readings([*readings, *signals])
        self.judge.add_readings(signals)
        alerts, forecasts = self.judge.update(self.step)
        self.ledger.readings(forecasts)
        for alert in alerts:
            self.ledger.alert(alert)
            if self.guarding is not None:
                self.guarding.on_alert(alert)
        if self.guarding is not None:
            self.guarding.probes_evaluated = True
        self.cadence.plan(self.step, self.judge.forecasts.values())
