"""What is done around each step of a watch and at each visit, without a failure into training."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from riprap._text import escape_control_chars
from riprap.linalg import Vector
from riprap.monitor._alert_tracker import Judge, no_margin
from riprap.monitor._guard_session import Guarding
from riprap.monitor._probe_runner import Visitor
from riprap.monitor._probe_schedule import Cadence
from riprap.monitor._resilient_record import Ledger
from riprap.signals import Signal, StepView, VisitView
from riprap.types import RUN, Reading, ReadingStatus


class Watchman:
    """Reads, judges and writes down: around each step, and whenever the probes are visited.

    Attributes:
        step: optimizer steps seen so far.
        visitor: who visits the probes; None while nothing is watched.
        guarding: the guard at work, if there is one.
        should_stop: why the guard wants training to stop; empty: it does not.
    """

    def __init__(
        self, signals: Sequence[Signal], judge: Judge, cadence: Cadence, ledger: Ledger
    ) -> None:
        self.signals, self.judge, self.cadence, self.ledger = signals, judge, cadence, ledger
        self.step = 0
        self.visitor: Visitor | None = None
        self.guarding: Guarding | None = None
        self.should_stop = ""

    def before_step(self, gradient: Vector | None) -> None:
        """Read the task gradient of the step to come; None where there is none."""
        assert self.visitor is not None
        view = StepView(self.step + 1, gradient, None, self.visitor.held)
        readings = self._ask("on_gradient", view)
        self.ledger.readings(readings)
        self.judge.note(readings)

    def after_step(self, update: Vector) -> None:
        """Read the applied update, and visit the probes where it is time."""
        assert self.visitor is not None
        self.step += 1
        view = StepView(self.step, None, update, self.visitor.held)
        readings = self._ask("on_update", view)
        self.ledger.readings(readings)
        self.judge.predict(readings)
        if self.cadence.is_due(self.step, self.judge.tracks.values()):
            refresh = self.cadence.refreshes(self.step)
            self.take_in(self.visitor.visit(self.step, refresh or self._wants_fresh))
        if self._wants_fresh:  # a guard's gradients are due, or it was woken by what was just seen
            self.visitor.visit(self.step, refresh=True)

    @property
    def _wants_fresh(self) -> bool:
        return self.guarding is not None and self.guarding.wants_fresh

    def _ask(self, moment: str, view: StepView | VisitView) -> list[Reading]:
        """What the signals read at a moment; one that fails spares the others."""
        readings: list[Reading] = []
        for signal in self.signals:
            try:
                readings += getattr(signal, moment)(view)
            except Exception as error:  # noqa: BLE001 an observer's failure never ends a run
                self.failed(error, signal.name, view.step)
        return readings

    def failed(self, error: Exception, what: str = "monitor", step: int | None = None) -> None:
        """Note that the observer itself failed; training goes on."""
        at, text = (
            self.step if step is None else step,
            escape_control_chars(f"{type(error).__name__}: {error}"),
        )
        warnings.warn(f"riprap: {what} failed at step {at}: {text}", stacklevel=2)
        failure = Reading(at, RUN, what, state=ReadingStatus.ERROR, detail=text)
        self.ledger.readings([failure])

    def skipped(self, why: str) -> None:
        """Note a step that the optimizer was not let take."""
        text = f"no step after step {self.step}: {why}"
        reading = Reading(self.step, RUN, "step", state=ReadingStatus.NOT_RUN, detail=text)
        self.ledger.readings([reading])

    def end(self) -> None:
        """Visit the probes a last time, and say in the record that the watch has ended."""
        assert self.visitor is not None
        try:
            tracks = self.judge.tracks.values()
            if any(track.steps and track.step < self.step for track in tracks):
                self.take_in(self.visitor.visit(self.step, refresh=False))
        except Exception as error:  # noqa: BLE001 an observer's failure never ends a run
            self.failed(error)
        try:
            if self.guarding is not None:
                self.guarding.settle()
        finally:
            self.ledger.end(self.step)
            self.visitor = self.guarding = None

    def went_back(self, to: int) -> None:
        """Begin afresh after the weights of an earlier step were put back.

        What was seen since then is of a way that was given up, and held gradients are of other
        weights.
        """
        assert self.visitor is not None
        try:
            self.judge.undo(to)
            self.take_in(self.visitor.visit(self.step, refresh=True))
        except Exception as error:  # noqa: BLE001 an observer's failure never ends a run
            self.failed(error)

    def stop(self, why: str) -> None:
        """Note that the guard wants training to stop."""
        self.should_stop = why
        warnings.warn(f"riprap: {why}", stacklevel=2)

    def take_in(self, view: VisitView) -> None:
        """All that follows from a visit: readings, forecasts, alerts, the next visit."""
        assert self.visitor is not None
        for name, text in self.visitor.failures.items():
            warnings.warn(f"riprap could not visit {name!r}: {text}", stacklevel=2)
            self.ledger.readings([no_margin(self.step, name, ReadingStatus.ERROR, text)])
        readings = [
            r for name, look in view.looks.items() for r in self.judge.see(self.step, name, look)
        ]
        for name, track in self.judge.tracks.items():
            if track.steps and track.step == self.step:
                self.ledger.margins(self.step, name, track.margins[-1])
        signals = self._ask("on_visit", view)
        self.ledger.readings([*readings, *signals])
        self.judge.note(signals)
        alerts, forecasts = self.judge.judge(self.step)
        self.ledger.readings(forecasts)
        for alert in alerts:
            self.ledger.alert(alert)
            if self.guarding is not None:
                self.guarding.alert(alert)
        if self.guarding is not None:
            self.guarding.visited = True
        self.cadence.plan(self.step, self.judge.forecasts.values())
