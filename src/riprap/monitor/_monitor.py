"""The monitor: signals, detectors and record around a training loop that it never changes."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from riprap._distributed import rank, unwrap_model
from riprap._text import shorten
from riprap.behaviors import Behavior
from riprap.detectors import AlertPolicy, BehaviorHistory, score
from riprap.errors import ConfigError
from riprap.evaluation import ProtectedGradients, find_layer
from riprap.guards import Guard
from riprap.linalg import STORAGE_DTYPES
from riprap.monitor._alert_tracker import AlertTracker
from riprap.monitor._hooks import require_optimizer, trained_parameters
from riprap.monitor._probe_runner import ProbeRunner
from riprap.monitor._probe_schedule import ProbeSchedule
from riprap.monitor._resilient_record import ResilientRecord
from riprap.monitor._run_metadata import run_metadata
from riprap.monitor._state import (
    FORMAT,
    check_state,
    load_margin_states,
    load_signals,
    wrap_state_errors,
)
from riprap.monitor._watch_session import MonitoredRun, WatchSession
from riprap.record import Reader, Writer, to_dataframe
from riprap.signals import Signal, default
from riprap.types import RUN, Action, Alert, Forecast, Reading, ReadingStatus

if TYPE_CHECKING:
    import pandas as pd


class Monitor:
    """Monitor of behaviors while a model is trained; it raises alerts before they break.

    Training with a monitor is bit-identical to training without it.

    Args:
        behaviors: the behaviors to monitor, with unique names.
        policy: detectors with their thresholds; None: `AlertPolicy.default()`.
        probe_every: the longest gap between two probe evaluations, in optimizer steps. Evaluations
            are denser at the start, and immediate if interference has used up too much margin.
        run_dir: folder of the run's record, which must not hold a record yet; None keeps the record
            in memory.
        signals: signals to read; None: `signals.default()`.
        feature_layer: name of the module whose output is read as features; None: the middle layer
            of the model's layer stack.
        metadata: facts to store in the record, such as a configuration.
        resume: continue the record in `run_dir`, if there is one: from the step of
            `load_state_dict`, or from the start.
        gradient_storage: precision of the protected gradients between refreshes: "float32",
            "bfloat16" or "int8"; each behavior costs a copy of the trained parameters.
        modules: names of modules: gradients and updates are read in their parameters only. Empty:
            in all trained parameters. Effects of other parameters show at probe evaluations only.

    Raises:
        ConfigError: no behaviors, two behaviors with the same name, `probe_every` under 1, or an
            unknown `gradient_storage`.
        RecordError: the run's record cannot be created, or it already exists.
        PolicyError: the policy is frozen and does not verify.
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
        _check_arguments(behaviors, probe_every, gradient_storage)
        self.behaviors = list(behaviors)
        self.policy = AlertPolicy.default() if policy is None else policy
        if self.policy.hash is not None:
            self.policy.verify()
        self.signals = default() if signals is None else list(signals)
        self._feature_layer, self._metadata = feature_layer, metadata or {}
        self._gradient_storage, self._modules = gradient_storage, tuple(modules)
        self.record = Writer(run_dir if rank() == 0 else None, resume)  # only rank 0 writes a file
        self._run = MonitoredRun(
            self.signals,
            AlertTracker(self.behaviors, self.policy),
            ProbeSchedule(probe_every),
            ResilientRecord(self.record),
        )
        self._started = False
        self._resume_state: dict[str, Any] | None = None  # loaded, waits for the model
        self._session: WatchSession | None = None  # of the open watch

    @contextmanager
    def watch(
        self, model: nn.Module, optimizer: Any, guard: Guard | None = None
    ) -> Iterator[Monitor]:
        """Watch the steps that `optimizer` takes inside the context.

        The probes are evaluated on entry, before any step, and on exit. A later `watch` of the same
        model continues the count of steps.

        Args:
            guard: changes steps to protect behaviors; its actions are recorded. Without a guard
                training is not changed.

        Raises:
            ConfigError: there is nothing to watch, the monitor is already in use, or the guard does
                not support this model, optimizer or monitor.
            BehaviorError: margins of a wrong shape, or not finite before training.
        """
        self.begin(model, optimizer, guard)
        try:
            yield self
        finally:
            self.end()

    def begin(self, model: nn.Module, optimizer: Any, guard: Guard | None = None) -> None:
        """Start to watch, until `end`: `watch` as a pair of calls, for callbacks."""
        if self._session is not None:
            raise ConfigError("this monitor is already watching: leave its context first")
        model, optimizer = unwrap_model(model), require_optimizer(optimizer)
        parameters = trained_parameters(model, optimizer, self._modules)
        layer = find_layer(model, self._feature_layer)
        needs_losses = any(signal.needs_loss_gradient for signal in self.signals)
        if guard is not None:
            needs_losses |= any("loss" in leaf.needs for leaf in guard.flatten())
        probe_runner = ProbeRunner(
            self.behaviors, model, parameters, layer, needs_losses, self._gradient_storage
        )
        session = WatchSession(self._run, probe_runner, optimizer, guard)
        if self._resume_state is not None:
            self._resume(session, self._resume_state)
        elif not self._started:
            self._start(session)
        else:
            session.process_probe_results(probe_runner.run(self.step, refresh=True))
        if session.guard is not None:
            session.guard.start(self.step)
            if self._resume_state is not None:
                session.guard.load_state_dict(self._resume_state["guard"])
        session.hooks.attach()
        self._started, self._resume_state, self._session = True, None, session

    def end(self) -> None:
        """Stop watching after a last probe evaluation, on which a guard may still act."""
        if self._session is None:
            return
        session, self._session = self._session, None
        session.end()

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs after this step, as plain values and tensors.

        Save it together with the model and the optimizer, at the same step. Commits the record.

        Raises:
            ConfigError: nothing is being watched.
        """
        session, run = self._session, self._run
        if session is None:
            raise ConfigError("the monitor is not watching: save its state during a watch")
        return {
            "format": FORMAT,
            "run": run.record.run_id(),
            "monitor": self._arguments(),
            "step": self.step,
            "position": self.record.position(),
            "schedule": run.schedule.state_dict(),
            "tracker": run.tracker.state_dict(),
            "protected_gradients": session.probe_runner.protected_gradients.state_dict(),
            "behaviors": {b.name: b.margins.state_dict() for b in self.behaviors},
            "signals": {signal.name: signal.state_dict() for signal in self.signals},
            "guard": None if session.guard is None else session.guard.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume a run; call it before `watch`, which then evaluates no probes at its start.

        If training is resumed as well, all further readings are those of an uninterrupted run.

        Raises:
            ConfigError: it is not a state, it is of a monitor with other arguments, or watching has
                already begun.
        """
        if self._started:
            raise ConfigError("this monitor has already been used: load a state into a new one")
        check_state(state, self._arguments())
        tracker = AlertTracker(self.behaviors, self.policy)
        schedule = ProbeSchedule(self._run.schedule.probe_every)
        with wrap_state_errors("this monitor"):
            tracker.load_state_dict(state["tracker"])
            schedule.load_state_dict(state["schedule"])
        self._run.tracker, self._run.schedule = tracker, schedule
        self._resume_state = state

    def _arguments(self) -> dict[str, Any]:
        """Return the arguments that must be equal in a monitor that resumes the run."""
        return {
            "behaviors": {b.name: b.floor for b in self.behaviors},
            "policy": self.policy.hash or self.policy.content_hash(),
            "probe_every": int(self._run.schedule.probe_every),
            "signals": [signal.name for signal in self.signals],
            "gradient_storage": self._gradient_storage,
            "modules": list(self._modules),
        }

    @property
    def step(self) -> int:
        """Optimizer steps seen so far."""
        return self._run.step

    @property
    def should_stop(self) -> bool:
        """True if the guard wants training to stop; a custom loop checks it after each step."""
        return self._run.stop_reason is not None

    @property
    def stop_reason(self) -> str | None:
        """Reason why the guard wants training to stop; None: it does not."""
        return self._run.stop_reason

    @property
    def watching(self) -> bool:
        """True while a watch is open."""
        return self._session is not None

    @property
    def alerts(self) -> list[Alert]:
        """All alerts raised so far."""
        return self._run.tracker.alerts

    @property
    def behavior_histories(self) -> dict[str, BehaviorHistory]:
        """Measurements of each behavior."""
        return self._run.tracker.histories

    @property
    def forecasts(self) -> dict[str, Forecast | None]:
        """Current forecast for each behavior; None where none is possible."""
        return self._run.tracker.forecasts

    @property
    def actions(self) -> list[Action]:
        """All recorded actions of the guard."""
        return Reader(self.record).actions()

    def history(self) -> pd.DataFrame:
        """Return all readings: step, behavior, signal, value, state, unit, layer, detail.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return to_dataframe(Reader(self.record).readings())

    def broken(self) -> dict[str, int | None]:
        """Return the first evaluated step with a score under the floor, by behavior, or None."""
        return {name: history.broken_at for name, history in self.behavior_histories.items()}

    def metrics(self) -> dict[str, float]:
        """Return the latest score and mean margin of each behavior, for loggers."""
        return self._run.tracker.metrics()

    def record_skipped_step(self, reason: str) -> None:
        """Record that the optimizer's step was skipped; for integrations that can detect it."""
        text = f"no step after step {self.step}: {reason}"
        reading = Reading(self.step, RUN, "step", state=ReadingStatus.NOT_RUN, detail=text)
        self._run.record.add_readings([reading])

    def log_event(self, kind: str, /, **facts: Any) -> None:
        """Add an event at this step to the record.

        Args:
            kind: name of the event, such as "selection"; "ended" and "resumed" are reserved.
            facts: plain values.

        Raises:
            ConfigError: the name is reserved.
        """
        if kind in ("ended", "resumed"):
            raise ConfigError(f"event {kind!r} is reserved for the record: choose another name")
        self._run.record.add_event(self.step, kind, facts)

    def _start(self, session: WatchSession) -> None:
        """Evaluate the probes before the first step; refuse what cannot be monitored."""
        view = session.probe_runner.run_before_training()
        for signal in self.signals:
            signal.start(view)
        self._write_metadata(session, {})
        session.process_probe_results(view)
        for history in self.behavior_histories.values():
            if history.steps and not history.healthy_at_start:
                warnings.warn(_below_floor_warning(history), stacklevel=5)
        for text in self._run.tracker.untestable_reasons():
            warnings.warn(f"riprap: {text}", stacklevel=5)

    def _resume(self, session: WatchSession, state: dict[str, Any]) -> None:
        """Restore what needs the model; evaluate no probes."""
        probe_runner = session.probe_runner
        load_margin_states(probe_runner, state["behaviors"])
        load_signals(self.signals, state["signals"], probe_runner.parameters)
        with wrap_state_errors("the trained parameters"):
            probe_runner.protected_gradients = ProtectedGradients.from_state(
                state["protected_gradients"], probe_runner.parameters
            )
        self._run.step = state["step"]
        self._write_metadata(session, state["position"], state["run"])

    def _write_metadata(
        self, session: WatchSession, position: dict[str, int], state_id: str | None = None
    ) -> None:
        facts = run_metadata(self.behaviors, self.policy, self._run.schedule.probe_every)
        facts |= {"notes": self._metadata, "layer": session.probe_runner.layer}
        self._run.record.begin(self.step, position, facts, state_id)


def _check_arguments(behaviors: Sequence[Behavior], probe_every: Any, storage: str) -> None:
    if isinstance(behaviors, Behavior) or not all(isinstance(b, Behavior) for b in behaviors):
        raise ConfigError("nothing to monitor: give a list of behaviors")
    if not behaviors:
        raise ConfigError("nothing to monitor: give at least one behavior")
    # As displayed: names that differ only in Unicode normalization look the same.
    names = [shorten(unicodedata.normalize("NFC", behavior.name)) for behavior in behaviors]
    duplicates = {name for name in names if names.count(name) > 1}
    if duplicates:
        raise ConfigError(f"two behaviors are called {duplicates.pop()!r}: names must be unique")
    if not isinstance(probe_every, Integral) or probe_every < 1:
        raise ConfigError(f"probe_every={probe_every}: give at least 1 step")
    if storage not in STORAGE_DTYPES:
        choices = ", ".join(STORAGE_DTYPES)
        raise ConfigError(f"gradient_storage={storage!r}: choose one of {choices}")


def _below_floor_warning(history: BehaviorHistory) -> str:
    return (
        f"behavior {history.behavior!r} scores {score(history.margins[0]):.2f} before training, "
        f"under its floor {history.floor:.2f}: no alert will be raised on it; lower the floor, or "
        "use only probes that the model passes"
    )
