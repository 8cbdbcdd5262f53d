"""Probe evaluations of a watch: the passes, and the protected gradients taken from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor, nn

from riprap._text import escape_control_chars
from riprap.behaviors import Behavior
from riprap.errors import BehaviorError
from riprap.evaluation import (
    ProbeResult,
    ProtectedGradients,
    calibrate,
    evaluate,
    evaluate_batch,
    group_by_forward_pass,
    loss_gradient,
)
from riprap.signals import ProbeView


@dataclass
class ProbeRunner:
    """Evaluation of the probes of all behaviors in one model.

    Attributes:
        layer: name of the layer whose activations are read; None if there is none.
        needs_loss_gradients: refresh g_b as well as h_b.
        gradient_storage: see `riprap.linalg.VectorStack`.
        protected_gradients: gradients of the last refresh.
        failures: reason why a behavior failed at the last evaluation, by name.
    """

    behaviors: Sequence[Behavior]
    model: nn.Module
    parameters: list[Tensor]
    layer: str | None
    needs_loss_gradients: bool
    gradient_storage: str = "float32"
    protected_gradients: ProtectedGradients = field(default_factory=ProtectedGradients)
    failures: dict[str, str] = field(default_factory=dict)

    def run_before_training(self) -> ProbeView:
        """Calibrate and evaluate the behaviors one by one; a failure is the user's to see.

        Raises:
            BehaviorError: margins of a wrong shape, or not finite.
        """
        results = {}
        for behavior in self.behaviors:
            calibrate(behavior, self.model)
            result = evaluate(behavior, self.model, self.parameters, self._layers)
            not_finite = np.flatnonzero(~np.isfinite(result.margins))
            if len(not_finite):
                raise BehaviorError(
                    f"behavior {behavior.name!r}: the margin of probe {not_finite[0]} is "
                    f"{result.margins[not_finite[0]]} before training; margins must be finite"
                )
            results[behavior.name] = result
        return self._view(0, results, refresh=True)

    def run(self, step: int, refresh: bool) -> ProbeView:
        """Evaluate the probes; with `refresh` also refresh the protected gradients."""
        self.failures = {}
        results: dict[str, ProbeResult] = {}
        parameters = self.parameters if refresh else None
        for group in group_by_forward_pass(self.behaviors, self.model):
            try:
                results |= evaluate_batch(group, self.model, parameters, self._layers)
            except Exception as error:  # noqa: BLE001 an observer's failure never ends a run
                text = escape_control_chars(f"{type(error).__name__}: {error}")
                self.failures |= {behavior.name: text for behavior in group}
        return self._view(step, results, refresh)

    @property
    def _layers(self) -> list[str]:
        return [] if self.layer is None else [self.layer]

    def _view(self, step: int, results: dict[str, ProbeResult], refresh: bool) -> ProbeView:
        evaluated = [behavior for behavior in self.behaviors if behavior.name in results]
        if refresh:
            self._store_gradients(step, results, evaluated)
        gradients = self.protected_gradients
        return ProbeView(
            step, evaluated, results, gradients, self.layer, self.model, self.parameters
        )

    def _store_gradients(
        self, step: int, results: dict[str, ProbeResult], evaluated: list[Behavior]
    ) -> None:
        losses = {}
        for behavior in evaluated if self.needs_loss_gradients else []:
            gradient = loss_gradient(behavior, self.model, self.parameters)
            if gradient is not None:
                losses[behavior.name] = gradient
        self.protected_gradients = ProtectedGradients.from_results(
            step, results, losses, self.gradient_storage
        )
