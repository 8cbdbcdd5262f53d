"""A guard at work around a monitor's steps: what it is shown, what it does, what is recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from riprap.evidence import Action, Alert, ConfigError
from riprap.guards import Guard, GuardView
from riprap.guards.runner import put_gradient, put_update, run
from riprap.monitor.judge import Judge
from riprap.monitor.state import fitting
from riprap.monitor.visits import Visitor
from riprap.tensors import Vector


class Guarding:
    """Runs a guard. What fails in here stops training: a guard that failed in silence is none.

    Args:
        guard: the guard.
        record: takes what it did.
    """

    def __init__(
        self,
        guard: Guard,
        visitor: Visitor,
        judge: Judge,
        optimizer: torch.optim.Optimizer,
        record: Callable[[list[Action]], None],
    ) -> None:
        self.guard, self._visitor, self._judge = guard, visitor, judge
        self._optimizer, self._record = optimizer, record
        self.step = 0

    def start(self, step: int) -> None:
        """Let the guard fix what it compares with, after so many steps.

        Raises:
            ConfigError: it cannot work here.
        """
        self.step = step
        for leaf in self.guard.leaves():
            leaf.start(self._view(step))

    def gradients(self, vector: Vector | None, scale: float) -> None:
        """Before the optimizer's step.

        Args:
            vector: the task gradient.
            scale: what `.grad` is multiplied by for the optimizer's own unscaling.
        """
        step = self.step + 1
        if vector is None:
            why = "no trained parameter has a gradient"
            names = [leaf.name for leaf in self.guard.leaves()]
            self._record([Action(step, name, "gradients", False, why) for name in names])
            return
        changed, actions = run(self.guard, "gradients", self._view(step, vector))
        if changed is not None:
            put_gradient(self._visitor.parameters, changed, scale)
        self._record(actions)

    def update(self, vector: Vector, before: Vector) -> Vector:
        """After the optimizer's step; the update that stands in the end."""
        self.step += 1
        changed, actions = run(self.guard, "update", self._view(self.step, vector, before))
        if changed is not None:
            put_update(self._visitor.parameters, before, changed, vector)
        self._record(actions)
        return vector if changed is None else changed

    def alert(self, alert: Alert) -> None:
        """Hand an alert on."""
        self.guard.on_alert(alert)

    @property
    def wants_fresh(self) -> bool:
        """Whether the protected gradients are too old for what acts at the next step."""
        ages = [
            leaf.refresh
            for leaf in self.guard.acting(self._view(self.step + 1))
            if leaf.needs and leaf.refresh is not None
        ]
        return bool(ages) and self.step - self._visitor.held.step >= min(ages)

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
        with fitting(f"guard {name!r}"):
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
            held=visitor.held,
            optimizer=self._optimizer,
            tracks=self._judge.tracks,
            forecasts=self._judge.forecasts,
            vector=vector or [],
            before=before or [],
        )
