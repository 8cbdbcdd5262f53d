"""The monitor: signals, detectors and record around a training loop that it never changes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn

from riprap import probing
from riprap.behaviors import Behavior
from riprap.detectors.protocol import Protocol
from riprap.detectors.track import Track, low_margin, score
from riprap.evidence import (
    RUN,
    Alert,
    BehaviorError,
    ConfigError,
    EvidenceState,
    Forecast,
    Reading,
)
from riprap.monitor.cadence import Cadence
from riprap.monitor.facts import facts_of
from riprap.monitor.hooks import StepHooks, innermost, trained_parameters
from riprap.record import Reader, Writer, table
from riprap.signals import Held, Signal, StepView, VisitView, default
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
        signals: what to read; None: `signals.default()`.
        layer: name of the module whose output is read as features; None: the middle layer of the
            model's stack of layers.
        notes: facts to keep in the record, such as a configuration.

    Raises:
        ConfigError: no behaviours, two of one name, or `every` under 1.
        RecordError: the run's record cannot be made.
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
    ) -> None:
        _check(behaviors, every)
        self.behaviors = list(behaviors)
        self.protocol = Protocol.default() if protocol is None else protocol
        if self.protocol.hash is not None:
            self.protocol.verify()
        self.signals = default() if signals is None else list(signals)
        self.step = 0
        self.tracks = {b.name: Track(b.name, b.floor) for b in self.behaviors}
        self.forecasts: dict[str, Forecast | None] = {}
        self.alerts: list[Alert] = []
        self._standing: dict[tuple[str, str], int] = {}
        self._held: dict[str, Held] = {}
        self._layer_name = layer
        self._notes = notes or {}
        self._cadence = Cadence(every)
        self._watched: _Watched | None = None
        self._record = Writer(run)

    @contextmanager
    def watch(self, model: nn.Module, optimizer: Any) -> Iterator[Monitor]:
        """Watch the steps that `optimizer` takes while the context is open.

        Entering visits the probes once, before any step; leaving visits them a last time. A later
        `watch` of the same model goes on with the count of steps.

        Raises:
            ConfigError: nothing trainable to watch, or the monitor is in use already.
            BehaviorError: margins of a wrong shape, or not finite before training.
        """
        self.begin(model, optimizer)
        try:
            yield self
        finally:
            self.end()

    def begin(self, model: nn.Module, optimizer: Any) -> None:
        """Start to watch; `watch` as a pair of calls, for callbacks."""
        if self._watched is not None:
            raise ConfigError("this monitor is watching already: leave its context first")
        inner = innermost(optimizer)
        parameters = trained_parameters(model, inner)
        layer = probing.find_layer(model, self._layer_name)
        self._watched = _Watched(model, parameters, layer)
        try:
            if self.step == 0 and not any(track.steps for track in self.tracks.values()):
                self._start()
            self._watched.hooks = StepHooks(
                inner, parameters, self._before_step, self._after_step, self._failed
            )
        except BaseException:
            self._watched = None
            raise

    def end(self) -> None:
        """Stop watching, after a last visit to the probes."""
        if self._watched is None:
            return
        try:
            if any(track.steps and track.step < self.step for track in self.tracks.values()):
                self._visit()
        finally:
            if self._watched.hooks is not None:
                self._watched.hooks.remove()
            self._watched = None
            self._record.flush()

    def history(self) -> pd.DataFrame:
        """All readings: step, behavior, signal, value, state, unit, layer, detail."""
        return table(Reader(self._record).readings())

    def broken(self) -> dict[str, int | None]:
        """For each behaviour the first visited step whose score was under its floor, or None."""
        return {name: track.broken_at for name, track in self.tracks.items()}

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

    @property
    def record(self) -> Writer:
        """The run's record."""
        return self._record

    # --- around a step ---------------------------------------------------------------------

    def _before_step(self, gradient: Vector | None) -> None:
        view = StepView(self.step + 1, gradient, None, self._held)
        self._record.readings([r for signal in self.signals for r in signal.on_gradient(view)])

    def _after_step(self, update: Vector) -> None:
        self.step += 1
        view = StepView(self.step, None, update, self._held)
        readings = [r for signal in self.signals for r in signal.on_update(view)]
        self._record.readings(readings)
        for reading in readings:
            if reading.signal == "interference" and reading.value is not None:
                self.tracks[reading.behavior].predicted[self.step] = reading.value
        if self._cadence.is_due(self.step, list(self.tracks.values())):
            self._visit()

    def _failed(self, error: Exception) -> None:
        """Note that the observer itself failed; training goes on."""
        text = f"{type(error).__name__}: {error}"
        warnings.warn(f"riprap could not read step {self.step}: {text}", stacklevel=2)
        state = EvidenceState.ERROR
        self._record.readings([Reading(self.step, RUN, "monitor", state=state, detail=text)])

    # --- visits to the probes ----------------------------------------------------------------

    @property
    def _target(self) -> _Watched:
        if self._watched is None:
            raise ConfigError("the monitor is not watching a model: use `with monitor.watch(...)`")
        return self._watched

    def _start(self) -> None:
        """Visit the probes before the first step; what cannot be watched is refused here."""
        target = self._target
        for behavior in self.behaviors:
            probing.start(behavior, target.model)
        looks = {behavior.name: self._look(behavior) for behavior in self.behaviors}
        for name, look in looks.items():
            wrong = np.flatnonzero(~np.isfinite(look.margins))
            if len(wrong):
                raise BehaviorError(
                    f"behaviour {name!r}: the margin of probe {wrong[0]} is "
                    f"{look.margins[wrong[0]]} before training; margins must be finite"
                )
        self._record.meta(**facts_of(self.behaviors, self.protocol, self._cadence.every))
        self._record.meta(notes=self._notes, layer=target.layer)
        self._hold(looks)
        view = self._view(looks)
        for signal in self.signals:
            signal.start(view)
        self._read(view)
        self._warn_of_unhealthy()

    def _look(self, behavior: Behavior) -> probing.Look:
        target = self._target
        layers = [] if target.layer is None else [target.layer]
        return probing.look(behavior, target.model, target.parameters, layers)

    def _visit(self) -> None:
        looks = {}
        for behavior in self.behaviors:
            try:
                looks[behavior.name] = self._look(behavior)
            except Exception as error:  # noqa: BLE001 one behaviour's failure spares the others
                text = f"{type(error).__name__}: {error}"
                warnings.warn(f"riprap could not visit {behavior.name!r}: {text}", stacklevel=2)
                self._record.readings([self._no_margin(behavior.name, EvidenceState.ERROR, text)])
        self._hold(looks)
        self._read(self._view(looks))

    def _hold(self, looks: dict[str, probing.Look]) -> None:
        """Keep the fresh protected gradients until the next visit."""
        target = self._target
        wants_losses = any(signal.needs_loss_gradient for signal in self.signals)
        self._held = {}
        for behavior in self.behaviors:
            if behavior.name in looks:
                held = Held(self.step, looks[behavior.name].gradient)
                if wants_losses:
                    held.loss = probing.loss_gradient(behavior, target.model, target.parameters)
                self._held[behavior.name] = held

    def _view(self, looks: dict[str, probing.Look]) -> VisitView:
        target = self._target
        return VisitView(
            self.step,
            self.behaviors,
            looks,
            self._held,
            target.layer,
            target.model,
            target.parameters,
        )

    def _read(self, view: VisitView) -> None:
        """Everything that follows from a visit: readings, tracks, forecasts, alerts, next visit."""
        readings = [r for name, look in view.looks.items() for r in self._margins(name, look)]
        readings += [r for signal in self.signals for r in signal.on_visit(view)]
        for reading in readings:
            if reading.value is not None and reading.behavior in self.tracks:
                history = self.tracks[reading.behavior].signals.setdefault(reading.signal, [])
                history.append((reading.step, reading.value))
        self._record.readings(readings)
        visited = [t for t in self.tracks.values() if t.steps and t.step == self.step]
        for track in visited:
            self._judge(track)
        self._cadence.visited(self.step, [self.forecasts.get(t.behavior) for t in visited])

    def _margins(self, name: str, look: probing.Look) -> list[Reading]:
        if look.insufficient:
            return [self._no_margin(name, EvidenceState.INSUFFICIENT, look.insufficient)]
        unfit = int((~np.isfinite(look.margins)).sum())
        if unfit:
            text = f"{unfit} of {len(look.margins)} margins are not finite"
            return [self._no_margin(name, EvidenceState.ERROR, text)]
        track = self.tracks[name]
        track.visit(self.step, look.margins)
        self._record.margins(self.step, name, look.margins)
        detached = look.gradient is None and self.step == 0
        why = "the margins are detached from the graph: return them attached, as torch made them"
        missing = Reading(0, name, "interference", state=EvidenceState.NOT_RUN, detail=why)
        return [
            Reading.of(self.step, name, "margin", float(look.margins.mean()), "margin"),
            Reading.of(self.step, name, "margin_low", low_margin(look.margins, track.floor)),
            Reading.of(self.step, name, "score", score(look.margins), "share"),
            *[missing] * detached,
        ]

    def _no_margin(self, name: str, state: EvidenceState, why: str) -> Reading:
        return Reading(self.step, name, "margin", state=state, detail=why)

    def _judge(self, track: Track) -> None:
        """Ask every detector; an alert is raised when its level rises."""
        if not track.healthy_at_start:
            return
        for detector in self.protocol.detectors:
            alert = detector.check(track)
            key = (detector.kind, track.behavior)
            rank = 0 if alert is None else alert.level.rank
            if alert is not None and rank > self._standing.get(key, 0):
                self.alerts.append(alert)
                self._record.alert(alert)
            self._standing[key] = rank
        self._forecast(track)

    def _forecast(self, track: Track) -> None:
        """Keep and record the forecast that stands now."""
        made = [d.forecast(track) for d in self.protocol.detectors]
        forecast = next((f for f in made if f is not None), None)
        self.forecasts[track.behavior] = forecast
        if forecast is not None:
            self._record.readings(forecast_readings(self.step, track.behavior, forecast))

    def _warn_of_unhealthy(self) -> None:
        for track in self.tracks.values():
            if track.steps and not track.healthy_at_start:
                warnings.warn(
                    f"behaviour {track.behavior!r} scores {score(track.margins[0]):.2f} before "
                    f"training, under its floor {track.floor:.2f}: no alert will be raised on it; "
                    "lower the floor, or keep the probes that the model passes",
                    stacklevel=4,
                )


@dataclass
class _Watched:
    """What is being watched while a context is open."""

    model: nn.Module
    parameters: list[Tensor]
    layer: str | None
    hooks: StepHooks | None = None


def forecast_readings(step: int, behavior: str, forecast: Forecast) -> list[Reading]:
    """Median and bounds of a forecast as readings; "not within the horizon" has no value."""
    readings = []
    for part in ("median", "low", "high"):
        value, signal = getattr(forecast, part), f"forecast_{part}"
        if value <= forecast.horizon:
            readings.append(Reading.of(step, behavior, signal, value, "steps"))
        else:
            state, why = EvidenceState.INSUFFICIENT, "not within the horizon"
            readings.append(Reading(step, behavior, signal, None, "steps", state, detail=why))
    return readings


def _check(behaviors: Sequence[Behavior], every: int) -> None:
    names = [behavior.name for behavior in behaviors]
    twice = {name for name in names if names.count(name) > 1}
    if not names:
        raise ConfigError("nothing to watch: give the monitor at least one behaviour")
    if twice:
        raise ConfigError(f"two behaviours are called {twice.pop()!r}: names must be unique")
    if every < 1:
        raise ConfigError(f"every={every}: the probes are visited every 1 step or more")
