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
from riprap.linalg import Stack
from riprap.signals import Held, VisitView


@dataclass
class Visitor:
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
    wants_losses: bool
    kept: str = "float32"
    held: Held = field(default_factory=Held)
    failures: dict[str, str] = field(default_factory=dict)

    def start(self) -> VisitView:
        """The visit before the first step, behaviour by behaviour: what fails is the user's to see.

        Raises:
            BehaviorError: margins of a wrong shape, or not finite.
        """
        looks = {}
        for behavior in self.behaviors:
            probing.start(behavior, self.model)
            look = probing.look(behavior, self.model, self.parameters, self._layers)
            wrong = np.flatnonzero(~np.isfinite(look.margins))
            if len(wrong):
                raise BehaviorError(
                    f"behaviour {behavior.name!r}: the margin of probe {wrong[0]} is "
                    f"{look.margins[wrong[0]]} before training; margins must be finite"
                )
            looks[behavior.name] = look
        return self._view(0, looks, refresh=True)

    def visit(self, step: int, refresh: bool) -> VisitView:
        """One visit; with `refresh` it also takes fresh protected gradients."""
        self.failures = {}
        looks: dict[str, probing.Look] = {}
        parameters = self.parameters if refresh else None
        for group in probing.shared_passes(self.behaviors, self.model):
            try:
                looks |= probing.look_together(group, self.model, parameters, self._layers)
            except Exception as error:  # noqa: BLE001 an observer's failure never ends a run
                text = escape_control_chars(f"{type(error).__name__}: {error}")
                self.failures |= {behavior.name: text for behavior in group}
        return self._view(step, looks, refresh)

    @property
    def _layers(self) -> list[str]:
        return [] if self.layer is None else [self.layer]

    def _view(self, step: int, looks: dict[str, probing.Look], refresh: bool) -> VisitView:
        seen = [behavior for behavior in self.behaviors if behavior.name in looks]
        if refresh:
            self._hold(step, looks, seen)
        return VisitView(step, seen, looks, self.held, self.layer, self.model, self.parameters)

    def _hold(self, step: int, looks: dict[str, probing.Look], seen: list[Behavior]) -> None:
        margins = {name: look.gradient for name, look in looks.items() if look.gradient is not None}
        losses = {}
        for behavior in seen if self.wants_losses else []:
            gradient = probing.loss_gradient(behavior, self.model, self.parameters)
            if gradient is not None:
                losses[behavior.name] = gradient
        self.held = Held(step, Stack(margins, self.kept), Stack(losses, self.kept))

    def state_dict(self) -> dict[str, Any]:
        """The protected gradients that are held."""
        stacks = {"margin": self.held.margin.state_dict(), "loss": self.held.loss.state_dict()}
        return {"step": self.held.step, **stacks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ConfigError: the trained parameters have other shapes.
        """
        try:
            margin = Stack.of_state(state["margin"], self.parameters)
            loss = Stack.of_state(state["loss"], self.parameters)
        except ValueError as error:
            raise ConfigError(f"the monitor's state is of another model: {error}") from error
        self.held = Held(state["step"], margin, loss)
