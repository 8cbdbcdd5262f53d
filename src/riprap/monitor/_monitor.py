"""The monitor: signals, detectors and record around a training loop that it never changes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from riprap import evaluation as probing
from riprap._distributed import rank, unwrap_model
from riprap.behaviors import Behavior
from riprap.detectors import AlertPolicy, BehaviorHistory
from riprap.errors import ConfigError
from riprap.guards import Guard
from riprap.monitor import _state as state
from riprap.monitor._alert_tracker import AlertTracker
from riprap.monitor._checks import check_arguments, below_floor_warning
from riprap.monitor._guard_session import GuardSession
from riprap.monitor._hooks import StepHooks, unwrap_optimizer, trained_parameters
from riprap.monitor._probe_runner import ProbeRunner
from riprap.monitor._probe_schedule import ProbeSchedule
from riprap.monitor._resilient_record import ResilientRecord
from riprap.monitor._run_metadata import run_metadata
from riprap.monitor._watch_session import WatchSession
from riprap.record import Reader, Writer, readings_table
from riprap.signals import Signal, default
from riprap.types import Action, Alert, Forecast


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
        policy: AlertPolicy | None = None,
        probe_every: int = 20,
        run_dir: str | Path | None = None,
        signals: Sequence[Signal] | None = None,
        feature_layer: str | None = None,
        metadata: dict[str, Any] | None = None,
        resume: bool = False,
        gradient_storage: str = "float32",
        modules: Sequence[str] = (),
    ) -> None:
        check_arguments(behaviors, probe_every, gradient_storage)
        self.behaviors = list(behaviors)
        self.policy = AlertPolicy.default() if policy is None else policy
        if self.policy.hash is not None:
            self.policy.verify()
        self.signals = default() if signals is None else list(signals)
        self._judge = AlertTracker(self.behaviors, self.policy)
        self._cadence = ProbeSchedule(probe_every)
        self._layer = feature_layer
        self._notes = metadata or {}
        self._kept, self._within = gradient_storage, tuple(modules)
        self._started = False
        self._resumed: dict[str, Any] | None = None  # a state that waits for its model
        self._hooks: StepHooks | None = None
        self.record = Writer(run_dir if rank() == 0 else None, resume)  # one rank writes, all watch
        self._ledger = ResilientRecord(self.record)
        self._watchman = WatchSession(self.signals, self._judge, self._cadence, self._ledger)

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
        model, inner = unwrap_model(model), unwrap_optimizer(optimizer)
        parameters = trained_parameters(model, inner, self._within)
        layer = probing.find_layer(model, self._layer)
        wants_losses = any(signal.needs_loss_gradient for signal in self.signals)
        if guard is not None:
            wants_losses |= any("loss" in leaf.needs for leaf in guard.flatten())
        visitor = ProbeRunner(self.behaviors, model, parameters, layer, wants_losses, self._kept)
        watchman, resumed = self._watchman, self._resumed
        watchman.visitor, watchman.guarding = visitor, None
        if resumed is not None:
            self._go_on(visitor, resumed)
        elif not self._started:
            self._start(visitor)
        else:
            watchman.process_probe_results(visitor.run(self.step, refresh=True))
        if guard is not None:
            told = (self._ledger.actions, watchman.on_restore, watchman.stop)
            guarding = GuardSession(guard, visitor, self._judge, inner, *told)
            guarding.start(self.step)
            if resumed is not None:
                guarding.load_state_dict(resumed["guard"])
            watchman.guarding = guarding
        self._started, self._resumed = True, None
        self._hooks = StepHooks(
            inner,
            parameters,
            watchman.before_step,
            watchman.after_step,
            watchman.record_failure,
            watchman.guarding,
        )

    def end(self) -> None:
        """Stop watching, after a last visit to the probes; a guard may still go back on it."""
        if self._hooks is None:
            return
        self._hooks.remove()
        self._hooks = None
        self._watchman.end()

    def state_dict(self) -> dict[str, Any]:
        """All that a run needs to be taken up again after this step: plain values and tensors.

        To be saved beside the model and the optimizer, at the same step. Commits the record.

        Raises:
            ConfigError: nothing is being watched.
        """
        visitor, guarding = self._watchman.visitor, self._watchman.guarding
        if not self.watching or visitor is None:
            raise ConfigError("the monitor watches nothing now: save its state while it watches")
        return {
            "format": state.FORMAT,
            **self._identity(),
            "step": self.step,
            "position": self.record.position(),
            "cadence": self._cadence.state_dict(),
            "judge": self._judge.state_dict(),
            "held": visitor.state_dict(),
            "behaviors": state.behaviors_state(self.behaviors),
            "signals": state.signals_state(self.signals),
            "guard": None if guarding is None else guarding.state_dict(),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take up a run again; to be called before `watch`, which then visits nothing anew.

        The readings from here on are those of a run that was never interrupted, if training is.

        Raises:
            ConfigError: it is no state, one of a monitor made otherwise, or watching has begun.
        """
        if self._started:
            raise ConfigError("this monitor has begun already: load a state into a new one")
        state.check_state(saved, **self._identity())
        self._resumed = saved

    def _identity(self) -> dict[str, Any]:
        """What must be the same in a monitor that takes up a run again."""
        return {
            "behaviors watched": {b.name: b.floor for b in self.behaviors},
            "protocol": self.policy.hash or self.policy.content_hash(),
            "every": self._cadence.every,
            "signals read": [signal.name for signal in self.signals],
            "kept": self._kept,
            "within": list(self._within),
        }

    @property
    def step(self) -> int:
        """Optimizer steps seen so far."""
        return self._watchman.step

    @property
    def should_stop(self) -> str:
        """Why the guard wants training to stop; empty: it goes on. A loop of one's own asks it."""
        return self._watchman.should_stop

    @property
    def watching(self) -> bool:
        """Whether a watch is open."""
        return self._hooks is not None

    @property
    def alerts(self) -> list[Alert]:
        """All alerts raised so far."""
        return self._judge.alerts

    @property
    def behavior_histories(self) -> dict[str, BehaviorHistory]:
        """What has been measured of each behaviour."""
        return self._judge.histories

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
        return readings_table(Reader(self.record).readings())

    def broken(self) -> dict[str, int | None]:
        """For each behaviour the first visited step whose score was under its floor, or None."""
        return {name: track.broken_at for name, track in self.behavior_histories.items()}

    def metrics(self) -> dict[str, float]:
        """The latest score and mean margin of each behaviour, for loggers."""
        return self._judge.metrics()

    def record_skipped_step(self, reason: str) -> None:
        """Record that the optimizer was not let take its step; for integrations that can see it."""
        self._watchman.record_skipped_step(reason)

    def log_event(self, kind: str, /, **facts: Any) -> None:
        """Write into the record, as an event at this step, what others did to the run.

        Args:
            kind: a name for it, such as "selection"; "ended" and "resumed" are the record's own.
            facts: plain values.
        """
        if kind in ("ended", "resumed"):
            raise ConfigError(f"event {kind!r} is the record's own: choose another name")
        self._watchman.ledger.event(self.step, kind, facts)

    def _start(self, visitor: ProbeRunner) -> None:
        """Visit the probes before the first step; what cannot be watched is refused here."""
        view = visitor.start()
        for signal in self.signals:
            signal.start(view)
        self._introduce(visitor.layer, {})
        self._watchman.process_probe_results(view)
        for track in self.behavior_histories.values():
            if track.steps and not track.healthy_at_start:
                warnings.warn(below_floor_warning(track), stacklevel=5)
        for text in self._judge.untestable_reasons():
            warnings.warn(f"riprap: {text}", stacklevel=5)

    def _introduce(self, layer: str | None, position: dict[str, int]) -> None:
        facts = run_metadata(self.behaviors, self.policy, self._cadence.every)
        self._ledger.begin(self.step, position, facts, {"notes": self._notes, "layer": layer})

    def _go_on(self, visitor: ProbeRunner, saved: dict[str, Any]) -> None:
        """Take up the run that a state is of; no probe is visited."""
        state.load_behaviors(visitor, saved["behaviors"])
        state.load_signals(self.signals, saved["signals"], visitor.parameters)
        visitor.load_state_dict(saved["held"])
        self._judge.load_state_dict(saved["judge"])
        self._cadence.load_state_dict(saved["cadence"])
        self._watchman.step = saved["step"]
        self._introduce(visitor.layer, saved["position"])
