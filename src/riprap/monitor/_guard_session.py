"""A guard at work around a monitor's steps: what it is shown, what it does, what is recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from riprap.errors import ConfigError
from riprap.guards import Guard, GuardView, GuardOutcome, write_gradient, write_update, run_hook
from riprap.linalg import Vector
from riprap.monitor._alert_tracker import AlertTracker
from riprap.monitor._probe_runner import ProbeRunner
from riprap.monitor._state import wrap_state_errors
from riprap.types import Action, Alert


class GuardSession:
    """Runs a guard. What fails in here stops training: a guard that failed in silence is none.

    Args:
        guard: the guard.
        record: takes what it did.
        went_back: is told that the weights are those of an earlier step again, and of which.
        stop: is told why training is to stop.

    Attributes:
        step: optimizer steps taken.
        visited: whether the probes were visited after this step.
    """

    def __init__(
        self,
        guard: Guard,
        visitor: ProbeRunner,
        judge: AlertTracker,
        optimizer: torch.optim.Optimizer,
        record: Callable[[list[Action]], None],
        went_back: Callable[[int], None],
        stop: Callable[[str], None],
    ) -> None:
        self.guard, self._visitor, self._judge = guard, visitor, judge
        self._optimizer, self._record = optimizer, record
        self._went_back, self._stop = went_back, stop
        self.step, self.probes_evaluated = 0, False

    def start(self, step: int) -> None:
        """Let the guard fix what it compares with, after so many steps.

        Raises:
            ConfigError: it cannot work here.
        """
        self.step = step
        for leaf in self.guard.flatten():
            leaf.start(self._view(step))

    def on_gradients(self, vector: Vector | None, scale: float) -> None:
        """Before the optimizer's step.

        Args:
            vector: the task gradient.
            scale: what `.grad` is multiplied by for the optimizer's own unscaling.
        """
        step = self.step + 1
        if vector is None:
            why = "no trained parameter has a gradient"
            names = [leaf.name for leaf in self.guard.flatten()]
            self._record([Action(step, name, "gradients", False, why) for name in names])
            return
        outcome = run_hook(self.guard, "gradients", self._view(step, vector))
        if outcome.vector is not None:
            write_gradient(self._visitor.parameters, outcome.vector, scale)
        self._record_outcome(outcome)

    def on_update(self, vector: Vector, before: Vector) -> Vector:
        """After the optimizer's step; the update that stands in the end."""
        self.step += 1
        outcome = run_hook(self.guard, "update", self._view(self.step, vector, before))
        if outcome.vector is not None:
            write_update(self._visitor.parameters, before, outcome.vector, vector)
        self._record_outcome(outcome)
        return vector if outcome.vector is None else outcome.vector

    def after_step(self) -> None:
        """Between two steps: what the guard does on what a visit to the probes has shown."""
        if not self.probes_evaluated:
            return
        outcome = run_hook(self.guard, "visit", self._view(self.step))
        self._record_outcome(outcome)
        if outcome.restored_step is not None:
            self._went_back(outcome.restored_step)
        self.probes_evaluated = False  # also of the visit after going back: what it showed is acted on later

    def _record_outcome(self, outcome: GuardOutcome) -> None:
        self._record(outcome.actions)
        if outcome.stop:
            self._stop(outcome.stop)

    def on_alert(self, alert: Alert) -> None:
        """Hand an alert on."""
        self.guard.on_alert(alert)

    @property
    def needs_fresh_gradients(self) -> bool:
        """Whether the protected gradients are too old for what acts at the next step."""
        ages = [
            leaf.refresh
            for leaf in self.guard.active_guards(self._view(self.step + 1))
            if leaf.needs and leaf.refresh is not None
        ]
        return bool(ages) and self.step - self._visitor.protected_gradients.step >= min(ages)

    def state_dict(self) -> dict[str, Any]:
        """The guard's kind and what it remembers."""
        return {"guard": self.guard.name, "state": self.guard.state_dict()}

    def load_state_dict(self, saved: dict[str, Any] | None) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ConfigError: the state is of another guard, of a run without one, or does not fit.
        """
        name = None if saved is None else saved["guard"]
        if saved is None or name != self.guard.name:
            raise ConfigError(
                f"the monitor's state is of a run under the guard {name!r}, and this one is "
                f"{self.guard.name!r}: resume with the guard it had"
            )
        with wrap_state_errors(f"guard {name!r}"):
            self.guard.load_state_dict(saved["state"])

    def _view(
        self, step: int, vector: Vector | None = None, before: Vector | None = None
    ) -> GuardView:
        visitor = self._visitor
        return GuardView(
            step=step,
            model=visitor.model,
            parameters=visitor.parameters,
            behaviors={behavior.name: behavior for behavior in visitor.behaviors},
            protected_gradients=visitor.protected_gradients,
            optimizer=self._optimizer,
            histories=self._judge.histories,
            forecasts=self._judge.forecasts,
            active_levels=self._judge.active_levels,
            vector=vector or [],
            before=before or [],
        )
