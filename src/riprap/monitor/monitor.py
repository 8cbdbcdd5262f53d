"""The monitor: signals, detectors and record around a training loop that it never changes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from riprap import probing
from riprap.behaviors import Behavior
from riprap.detectors import Protocol
from riprap.detectors.track import Track
from riprap.distributed import rank, unwrapped
from riprap.evidence import (
    RUN,
    Action,
    Alert,
    ConfigError,
    EvidenceState,
    Forecast,
    Reading,
)
from riprap.guards import Guard
from riprap.monitor import state
from riprap.monitor.cadence import Cadence
from riprap.monitor.checks import check_arguments, unhealthy
from riprap.monitor.facts import facts_of
from riprap.monitor.guarding import Guarding
from riprap.monitor.hooks import StepHooks, innermost, trained_parameters
from riprap.monitor.judge import Judge, no_margin
from riprap.monitor.ledger import Ledger
from riprap.monitor.visits import Visitor
from riprap.plain import plain
from riprap.record import Reader, Writer, table
from riprap.signals import Signal, StepView, VisitView, default
from riprap.tensors import Vector


class Monitor:
    """Watches behaviours while a model is trained, and says what is about to break.

    Training with a monitor is bit-identical to training without it.

    Args:
        behaviors: what to watch; names are unique.
        protocol: detectors with their thresholds; None: `Protocol.default()`.
        every: the longest gap between two visits to the probes, in optimizer steps. Visits are
            denser at the start, and at once when interference says that waiting is too late.
        run: folder of the run's record, which must not hold one yet; None keeps it in memory.
        resume: go on with the record in `run`, where there is one: from the step of
            `load_state_dict`, or from the start.
        signals: what to read; None: `signals.default()`.
        layer: name of the module whose output is read as features; None: the middle layer of the
            model's stack of layers.
        notes: facts to keep in the record, such as a configuration.
        kept: how finely protected gradients are kept between visits: "float32", "bfloat16" or
            "int8"; a copy of the watched parameters a behaviour, in that precision.
        within: names of modules in whose parameters gradients and updates are read; empty: in all
            that are trained. What other parameters do shows at the next visit only.

    Raises:
        ConfigError: no behaviours, two of one name, `every` under 1, or
            no such `kept`.
        RecordError: the run's record cannot be made, or there is one already.
        ProtocolError: the protocol is frozen and does not verify.
    """

    def __init__(
        self,
        behaviors: Sequence[Behavior],
        protocol: Protocol | None = None,
        every: int = 20,
        run: str | Path | None = None,
        signals: Sequence[Signal] | None = None,
        layer: str | None = None,
        notes: dict[str, Any] | None = None,
        resume: bool = False,
        kept: str = "float32",
        within: Sequence[str] = (),
    ) -> None:
        check_arguments(behaviors, every, kept)
        self.behaviors = list(behaviors)
        self.protocol = Protocol.default() if protocol is None else protocol
        if self.protocol.hash is not None:
            self.protocol.verify()
        self.signals = default() if signals is None else list(signals)
        self.step = 0
        self._judge = Judge(self.behaviors, self.protocol)
        self._cadence = Cadence(every)
        self._layer = layer
        self._notes = notes or {}
        self._kept, self._within = kept, tuple(within)
        self._started = False
        self._resumed: dict[str, Any] | None = None  # a state that waits for its model
        self._visitor: Visitor | None = None
        self._hooks: StepHooks | None = None
        self._guarding: Guarding | None = None
        self.record = Writer(run if rank() == 0 else None, resume)  # one rank writes, all watch
        self._ledger = Ledger(self.record)

    @contextmanager
    def watch(
        self, model: nn.Module, optimizer: Any, guard: Guard | None = None
    ) -> Iterator[Monitor]:
        """Watch the steps that `optimizer` takes while the context is open.

        Entering visits the probes once, before any step; leaving visits them a last time. A later
        `watch` of the same model goes on with the count of steps.

        Args:
            guard: changes steps so that behaviours are kept; what it does is recorded. Without one
                nothing is changed.

        Raises:
            ConfigError: nothing trainable to watch, the monitor is in use already, or the guard
                cannot work here.
            BehaviorError: margins of a wrong shape, or not finite before training.
        """
        self.begin(model, optimizer, guard)
        try:
            yield self
        finally:
            self.end()

    def begin(self, model: nn.Module, optimizer: Any, guard: Guard | None = None) -> None:
        """Start to watch; `watch` as a pair of calls, for callbacks."""
        if self._hooks is not None:
            raise ConfigError("this monitor is watching already: leave its context first")
        model, inner = unwrapped(model), innermost(optimizer)
        parameters = trained_parameters(model, inner, self._within)
        layer = probing.find_layer(model, self._layer)
        wants_losses = any(signal.needs_loss_gradient for signal in self.signals)
        if guard is not None:
            wants_losses |= any("loss" in leaf.needs for leaf in guard.leaves())
        visitor = Visitor(self.behaviors, model, parameters, layer, wants_losses, self._kept)
        self._visitor = visitor
        resumed, self._guarding = self._resumed, None
        if resumed is not None:
            self._go_on(visitor, resumed)
        elif not self._started:
            self._start(visitor)
        else:
            self._take_in(visitor.visit(self.step, refresh=True))
        if guard is not None:
            self._guarding = Guarding(guard, visitor, self._judge, inner, self._ledger.actions)
            self._guarding.start(self.step)
            if resumed is not None:
                self._guarding.load_state_dict(resumed["guard"])
        self._started, self._resumed = True, None
        self._hooks = StepHooks(
            inner, parameters, self._before_step, self._after_step, self._failed, self._guarding
        )

    def end(self) -> None:
        """Stop watching, after a last visit to the probes."""
        if self._hooks is None or self._visitor is None:
            return
        self._hooks.remove()
        self._hooks = None
        try:
            if any(track.steps and track.step < self.step for track in self.tracks.values()):
                self._take_in(self._visitor.visit(self.step, refresh=False))
            self._ledger.end(self.step)
        except Exception as error:  # noqa: BLE001 an observer's failure never ends a training run
            self._failed(error)
        self._visitor = self._guarding = None

    def state_dict(self) -> dict[str, Any]:
        """All that a run needs to be taken up again after this step: plain values and tensors.

        To be saved beside the model and the optimizer, at the same step. Commits the record.

        Raises:
            ConfigError: nothing is being watched.
        """
        if not self.watching or self._visitor is None:
            raise ConfigError("the monitor watches nothing now: save its state while it watches")
        return {
            "format": state.FORMAT,
            **self._identity(),
            "step": self.step,
            "position": self.record.position(),
            "cadence": self._cadence.state_dict(),
            "judge": self._judge.state_dict(),
            "held": self._visitor.state_dict(),
            "behaviors": state.behaviors_state(self.behaviors),
            "signals": state.signals_state(self.signals),
            "guard": None if self._guarding is None else self._guarding.state_dict(),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take up a run again; to be called before `watch`, which then visits nothing anew.

        The readings from here on are those of a run that was never interrupted, if training is.

        Raises:
            ConfigError: it is no state, one of a monitor made otherwise, or watching has begun.
        """
        if self._started:
            raise ConfigError("this monitor has begun already: load a state into a new one")
        state.check(saved, **self._identity())
        self._resumed = saved

    def _identity(self) -> dict[str, Any]:
        """What must be the same in a monitor that takes up a run again."""
        return {
            "behaviors watched": {b.name: b.floor for b in self.behaviors},
            "protocol": self.protocol.hash or self.protocol.content_hash(),
            "every": self._cadence.every,
            "signals read": [signal.name for signal in self.signals],
            "kept": self._kept,
            "within": list(self._within),
        }

    @property
    def watching(self) -> bool:
        """Whether a watch is open."""
        return self._hooks is not None

    @property
    def alerts(self) -> list[Alert]:
        """All alerts raised so far."""
        return self._judge.alerts

    @property
    def tracks(self) -> dict[str, Track]:
        """What has been measured of each behaviour."""
        return self._judge.tracks

    @property
    def forecasts(self) -> dict[str, Forecast | None]:
        """The forecast that stands now for each behaviour; None where none could be made."""
        return self._judge.forecasts

    @property
    def actions(self) -> list[Action]:
        """What the guard did so far, as it is recorded."""
        return Reader(self.record).actions()

    def history(self) -> pd.DataFrame:
        """All readings: step, behavior, signal, value, state, unit, layer, detail."""
        return table(Reader(self.record).readings())

    def broken(self) -> dict[str, int | None]:
        """For each behaviour the first visited step whose score was under its floor, or None."""
        return {name: track.broken_at for name, track in self.tracks.items()}

    def summary(self) -> dict[str, float]:
        """The latest score and mean margin of each behaviour, for loggers."""
        return self._judge.summary()

    def skipped(self, why: str) -> None:
        """Record that the optimizer was not let take its step; for integrations that can see it."""
        text = f"no step after step {self.step}: {why}"
        reading = Reading(self.step, RUN, "step", state=EvidenceState.NOT_RUN, detail=text)
        self._ledger.readings([reading])

    # --- around a step ---------------------------------------------------------------------

    def _before_step(self, gradient: Vector | None) -> None:
        assert self._visitor is not None
        view = StepView(self.step + 1, gradient, None, self._visitor.held)
        readings = self._ask("on_gradient", view)
        self._ledger.readings(readings)
        self._judge.note(readings)

    def _after_step(self, update: Vector) -> None:
        assert self._visitor is not None
        self.step += 1
        view = StepView(self.step, None, update, self._visitor.held)
        readings = self._ask("on_update", view)
        self._ledger.readings(readings)
        self._judge.predict(readings)
        if self._cadence.is_due(self.step, self.tracks.values()):
            refresh = self._cadence.refreshes(self.step)
            self._take_in(self._visitor.visit(self.step, refresh or self._wants_fresh))
        if self._wants_fresh:  # a guard's gradients are due, or it was woken by what was just seen
            self._visitor.visit(self.step, refresh=True)

    @property
    def _wants_fresh(self) -> bool:
        return self._guarding is not None and self._guarding.wants_fresh

    def _ask(self, moment: str, view: StepView | VisitView) -> list[Reading]:
        """What the signals read at a moment; one that fails spares the others."""
        readings: list[Reading] = []
        for signal in self.signals:
            try:
                readings += getattr(signal, moment)(view)
            except Exception as error:  # noqa: BLE001 an observer's failure never ends a run
                self._failed(error, signal.name, view.step)
        return readings

    def _failed(self, error: Exception, what: str = "monitor", step: int | None = None) -> None:
        """Note that the observer itself failed; training goes on."""
        at, text = self.step if step is None else step, plain(f"{type(error).__name__}: {error}")
        warnings.warn(f"riprap: {what} failed at step {at}: {text}", stacklevel=2)
        failure = Reading(at, RUN, what, state=EvidenceState.ERROR, detail=text)
        self._ledger.readings([failure])

    # --- visits to the probes ----------------------------------------------------------------

    def _start(self, visitor: Visitor) -> None:
        """Visit the probes before the first step; what cannot be watched is refused here."""
        view = visitor.start()
        for signal in self.signals:
            signal.start(view)
        self._introduce(visitor.layer, {})
        self._take_in(view)
        for track in self.tracks.values():
            if track.steps and not track.healthy_at_start:
                warnings.warn(unhealthy(track), stacklevel=5)
        for text in self._judge.unfit():
            warnings.warn(f"riprap: {text}", stacklevel=5)

    def _introduce(self, layer: str | None, position: dict[str, int]) -> None:
        facts = facts_of(self.behaviors, self.protocol, self._cadence.every)
        self._ledger.begin(self.step, position, facts, {"notes": self._notes, "layer": layer})

    def _go_on(self, visitor: Visitor, saved: dict[str, Any]) -> None:
        """Take up the run that a state is of; no probe is visited."""
        state.load_behaviors(visitor, saved["behaviors"])
        state.load_signals(self.signals, saved["signals"], visitor.parameters)
        visitor.load_state_dict(saved["held"])
        self._judge.load_state_dict(saved["judge"])
        self._cadence.load_state_dict(saved["cadence"])
        self.step = saved["step"]
        self._introduce(visitor.layer, saved["position"])

    def _take_in(self, view: VisitView) -> None:
        """All that follows from a visit: readings, forecasts, alerts, the next visit."""
        assert self._visitor is not None
        for name, text in self._visitor.failures.items():
            warnings.warn(f"riprap could not visit {name!r}: {text}", stacklevel=2)
            self._ledger.readings([no_margin(self.step, name, EvidenceState.ERROR, text)])
        readings = [
            r for name, look in view.looks.items() for r in self._judge.see(self.step, name, look)
        ]
        for name, track in self.tracks.items():
            if track.steps and track.step == self.step:
                self._ledger.margins(self.step, name, track.margins[-1])
        signals = self._ask("on_visit", view)
        self._ledger.readings([*readings, *signals])
        self._judge.note(signals)
        alerts, forecasts = self._judge.judge(self.step)
        self._ledger.readings(forecasts)
        for alert in alerts:
            self._ledger.alert(alert)
            if self._guarding is not None:
                self._guarding.alert(alert)
        self._cadence.plan(self.step, self.forecasts.values())
