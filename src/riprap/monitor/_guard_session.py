"""The guard of a watch: views for its hooks, application of its proposals, its record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from riprap.errors import ConfigError
from riprap.guards import Guard, GuardOutcome, GuardView, run_hook, write_gradient, write_update
from riprap.linalg import Vector
from riprap.monitor._alert_tracker import AlertTracker
from riprap.monitor._probe_runner import ProbeRunner
from riprap.monitor._state import wrap_state_errors
from riprap.record import check_fields
from riprap.types import Action, Alert


class GuardSession:
    """A guard at work in one watch. Its failures stop training: a silent failure would not guard.

    Args:
        guard: the guard.
        probe_runner, tracker, optimizer: what the guard's views show.
        add_actions: called with the guard's actions.
        on_restore: called with the step whose weights were restored.
        on_stop: called with the reason why training should stop.

    Attributes:
        step: optimizer steps taken.
        has_new_results: whether the probes were evaluated since `after_step` last ran.
    """

    def __init__(
        self,
        guard: Guard,
        probe_runner: ProbeRunner,
        tracker: AlertTracker,
        optimizer: torch.optim.Optimizer,
        add_actions: Callable[[list[Action]], None],
        on_restore: Callable[[int], None],
        on_stop: Callable[[str], None],
    ) -> None:
        self.guard, self._probe_runner, self._tracker = guard, probe_runner, tracker
        self._optimizer, self._add_actions = optimizer, add_actions
        self._on_restore, self._on_stop = on_restore, on_stop
        self.step, self.has_new_results = 0, False
        self._active: list[Guard] | None = None  # at the next step; None: to be asked

    def start(self, step: int) -> None:
        """Start the guard after `step` optimizer steps.

        Raises:
            ConfigError: the guard does not support this model, optimizer or monitor.
        """
        self.step = step
        for leaf in self.guard.flatten():
            leaf.part_of = ""  # it may have been a part in an earlier watch
        self.guard.start(self._view(step))

    def end(self) -> None:
        """End all guards inside, even if one of them fails or never started."""
        with ExitStack() as ending:
            for leaf in reversed(list(self.guard.flatten())):
                ending.callback(leaf.end, self._view(self.step))

    def extend(self, joined: Sequence[Tensor]) -> None:
        """Let the guard take up parameters that have joined training.

        Raises:
            ConfigError: the guard cannot.
        """
        new = {id(parameter) for parameter in joined}
        parameters = self._probe_runner.parameters
        indices = [index for index, own in enumerate(parameters) if id(own) in new]
        for leaf in self.guard.flatten():
            leaf.extend(self._view(self.step), indices)

    def on_gradients(self, gradient: Vector | None, scale: float) -> None:
        """Run the guard before the optimizer's step.

        Args:
            gradient: the task gradient.
            scale: factor of `.grad` against `gradient`, for an optimizer that unscales by itself.
        """
        step = self.step + 1
        if gradient is None:
            reason = "no trained parameter has a gradient"
            names = [leaf.label for leaf in self.guard.flatten()]
            self._add_actions([Action(step, name, "gradients", False, reason) for name in names])
            return
        outcome = run_hook(self.guard, "gradients", self._view(step, gradient))
        if outcome.vector is not None:
            write_gradient(self._probe_runner.parameters, outcome.vector, scale)
        self._record_outcome(outcome)

    @property
    def reads_updates(self) -> bool:
        """True if a guard that is active at the next step reads its update."""
        return any(leaf.reads_updates for leaf in self._active_guards)

    @property
    def reads_interference(self) -> bool:
        """True if a guard that is active at the next step needs the interference of each step."""
        return any(leaf.reads_interference for leaf in self._active_guards)

    @property
    def _active_guards(self) -> list[Guard]:
        """The simple guards that are active at the next step, as long as nothing new is known."""
        if self._active is None:
            self._active = list(self.guard.active_guards(self._view(self.step + 1)))
        return self._active

    def on_update(self, update: Vector | None, params_before: Vector) -> None:
        """Run the guard after the optimizer's step; None: no active guard reads updates."""
        self.step, self._active = self.step + 1, None
        self.on_step_end()
        if update is None:
            return
        outcome = run_hook(self.guard, "update", self._view(self.step, update, params_before))
        if outcome.vector is not None:
            write_update(self._probe_runner.parameters, params_before, outcome.vector, update)
        self._record_outcome(outcome)

    def on_step_end(self) -> None:
        """Let all guards inside drop what they kept for a step, taken or skipped."""
        for leaf in self.guard.flatten():
            leaf.on_step_end()

    def on_probe_evaluation(self, alerts: Sequence[Alert]) -> None:
        """Pass new alerts to the guard; its hook runs in `after_step`."""
        for alert in alerts:
            self.guard.on_alert(alert)
        self.has_new_results, self._active = True, None

    def after_step(self) -> None:
        """Run the guard between two steps, if the probes were evaluated."""
        if not self.has_new_results:
            return
        outcome = run_hook(self.guard, "visit", self._view(self.step))
        self._record_outcome(outcome)
        if outcome.restored_step is not None:
            self._on_restore(outcome.restored_step)
        self._active = None
        self.has_new_results = False  # the evaluation after a restore does not run the hook again

    def _record_outcome(self, outcome: GuardOutcome) -> None:
        self._add_actions(outcome.actions)
        if outcome.stop:
            self._on_stop(outcome.stop)

    @property
    def needs_fresh_gradients(self) -> bool:
        """True if the protected gradients are too old for the guards active at the next step."""
        max_ages = [
            leaf.refresh for leaf in self._active_guards if leaf.needs and leaf.refresh is not None
        ]
        age = self.step - self._probe_runner.protected_gradients.step
        return bool(max_ages) and age >= min(max_ages)

    def state_dict(self) -> dict[str, Any]:
        """Return the guard's name and state."""
        return {"guard": self.guard.name, "state": self.guard.state_dict()}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ConfigError: the state is of another guard, of a run without one, or does not fit.
        """
        with wrap_state_errors("the guard"):
            if state is not None:
                check_fields(state, guard=str, state=dict)
            name = None if state is None else state["guard"]
        if state is None or name != self.guard.name:
            raise ConfigError(
                f"the monitor's state is of a run with the guard {name!r}, and this guard is "
                f"{self.guard.name!r}: resume with the same guard"
            )
        with wrap_state_errors(f"guard {name!r}"):
            self.guard.load_state_dict(state["state"])
        self._active = None

    def _view(
        self, step: int, vector: Vector | None = None, before: Vector | None = None
    ) -> GuardView:
        return GuardView(
            step=step,
            model=self._probe_runner.model,
            parameters=self._probe_runner.parameters,
            behaviors={behavior.name: behavior for behavior in self._probe_runner.behaviors},
            protected_gradients=self._probe_runner.protected_gradients,
            optimizer=self._optimizer,
            histories=self._tracker.histories,
            forecasts=self._tracker.forecasts,
            active_levels=self._tracker.active_levels,
            vector=vector or [],
            before=before or [],
        )
