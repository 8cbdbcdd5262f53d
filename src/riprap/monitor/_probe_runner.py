"""Visits to the probes: the passes, and the protected gradients kept from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

from riprap import evaluation as probing
from riprap._text import escape_control_chars
from riprap.behaviors import Behavior
from riprap.errors import BehaviorError, ConfigError
from riprap.linalg import VectorStack
from riprap.signals import ProtectedGradients, ProbeView


@dataclass
class ProbeRunner:
    """Visits the probes of some behaviours in one model.

    Attributes:
        layer: name of the layer whose output is read, None where there is none.
        wants_losses: take g_b along with h_b.
        kept: how finely protected gradients are kept; see `riprap.linalg._vector_stack.Stack`.
        held: the protected gradients taken last.
        failures: why a behaviour could not be read at the last visit, by name.
    """

    behaviors: Sequence[Behavior]
    model: nn.Module
    parameters: list[Tensor]
    layer: str | None
    needs_loss_gradients: bool
    gradient_storage: str = "float32"
    protected_gradients: ProtectedGradients = field(default_factory=ProtectedGradients)
    failures: dict[str, str] = field(default_factory=dict)

    def start(self) -> ProbeView:
        """The visit before the first step, behaviour by behaviour: what fails is the user's to see.

        Raises:
            BehaviorError: margins of a wrong shape, or not finite.
        """
        looks = {}
        for behavior in self.behaviors:
            probing.calibrate(behavior, self.model)
            look = probing.evaluate(behavior, self.model, self.parameters, self._layers)
            wrong = np.flatnonzero(~np.isfinite(look.margins))
            if len(wrong):
                raise BehaviorError(
                    f"behaviour {behavior.name!r}: the margin of probe {wrong[0]} is "
                    f"{look.margins[wrong[0]]} before training; margins must be finite"
                )
            looks[behavior.name] = look
        return self._view(0, looks, refresh=True)

    def run(self, step: int, refresh: bool) -> ProbeView:
        """One visit; with `refresh` it also takes fresh protected gradients."""
        self.failures = {}
        looks: dict[str, probing.ProbeResult] = {}
        parameters = self.parameters if refresh else None
        for group in probing.group_by_forward_pass(self.behaviors, self.model):
            try:
                looks |= probing.evaluate_batch(group, self.model, parameters, self._layers)
            except Exception as error:  # noqa: BLE001 an observer's failure never ends a run
                text = escape_control_chars(f"{type(error).__name__}: {error}")
                self.failures |= {behavior.name: text for behavior in group}
        return self._view(step, looks, refresh)

    @property
    def _layers(self) -> list[str]:
        return [] if self.layer is None else [self.layer]

    def _view(self, step: int, looks: dict[str, probing.ProbeResult], refresh: bool) -> ProbeView:
        seen = [behavior for behavior in self.behaviors if behavior.name in looks]
        if refresh:
            self._store_gradients(step, looks, seen)
        return ProbeView(step, seen, looks, self.protected_gradients, self.layer, self.model, self.parameters)

    def _store_gradients(self, step: int, looks: dict[str, probing.ProbeResult], seen: list[Behavior]) -> None:
        margins = {name: look.gradient for name, look in looks.items() if look.gradient is not None}
        losses = {}
        for behavior in seen if self.needs_loss_gradients else []:
            gradient = probing.loss_gradient(behavior, self.model, self.parameters)
            if gradient is not None:
                losses[behavior.name] = gradient
        self.protected_gradients = ProtectedGradients(step, VectorStack(margins, self.gradient_storage), VectorStack(losses, self.gradient_storage))

    def state_dict(self) -> dict[str, Any]:
        """The protected gradients that are held."""
        stacks = {"margin": self.protected_gradients.margin_gradients.state_dict(), "loss": self.protected_gradients.loss_gradients.state_dict()}
        return {"step": self.protected_gradients.step, **stacks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ConfigError: the trained parameters have other shapes.
        """
        try:
            margin = VectorStack.from_state(state["margin"], self.parameters)
            loss = VectorStack.from_state(state["loss"], self.parameters)
        except ValueError as error:
            raise ConfigError(f"the monitor's state is of another model: {error}") from error
        self.protected_gradients = ProtectedGradients(state["step"], margin, loss)
