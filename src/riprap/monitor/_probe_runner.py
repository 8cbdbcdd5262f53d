"""Probe evaluations of a watch: the passes, and the protected gradients taken from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

from riprap._text import error_text, escape_control_chars
from riprap.behaviors import Behavior
from riprap.errors import BehaviorError
from riprap.evaluation import (
    ProbeResult,
    ProtectedGradients,
    TrainingAutocast,
    calibrate,
    evaluate,
    evaluate_batch,
    group_by_forward_pass,
    loss_gradient,
    refuse_writes,
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
        autocast: training's autocast state, in which all passes run; None: not looked at.
        reads_answers: whether to read how the model begins to answer, where a text can be made.
        failures: reason why a behavior failed at the last evaluation, by name.
        reads_gradients: whether gradients can be read at all.
        gradient_failures: reason why a behavior has no protected gradient since the last refresh,
            although it had one before, by name.
    """

    behaviors: Sequence[Behavior]
    model: nn.Module
    parameters: list[Tensor]
    layer: str | None
    needs_loss_gradients: bool
    gradient_storage: str = "float32"
    protected_gradients: ProtectedGradients = field(default_factory=ProtectedGradients)
    reads_gradients: bool = True
    autocast: TrainingAutocast | None = None
    reads_answers: bool = False
    failures: dict[str, str] = field(default_factory=dict)
    gradient_failures: dict[str, str] = field(default_factory=dict)
    _had_gradient: set[str] = field(default_factory=set)

    def run_before_training(self) -> ProbeView:
        """Calibrate and evaluate the behaviors one by one; a failure is the user's to see.

        Raises:
            BehaviorError: margins of a wrong shape, or not finite.
        """
        self._begin_refresh(0)
        results: dict[str, ProbeResult] = {}
        with refuse_writes(self.model):
            for behavior in self.behaviors:
                result = results[behavior.name] = self._evaluate_first(behavior)
                if self.reads_gradients:
                    self._store_gradients(behavior, result)
        return self._view(0, results)

    def _evaluate_first(self, behavior: Behavior) -> ProbeResult:
        calibrate(behavior, self.model)
        parameters = self.parameters if self.reads_gradients else None
        answers = self._wants_answers([behavior])
        result = evaluate(behavior, self.model, parameters, self._layers, answers=answers)
        not_finite = np.flatnonzero(~np.isfinite(result.margins))
        if len(not_finite):
            raise BehaviorError(
                f"behavior {behavior.name!r}: the margin of probe {not_finite[0]} is "
                f"{result.margins[not_finite[0]]} before training; margins must be finite"
            )
        return result

    def run(self, step: int, refresh: bool) -> ProbeView:
        """Evaluate the probes; with `refresh` also refresh the protected gradients.

        A gradient that fails leaves the margins: these are then read by a forward pass.
        """
        self.failures = {}
        refresh = refresh and self.reads_gradients
        if refresh:
            self._begin_refresh(step)
        results: dict[str, ProbeResult] = {}
        groups = group_by_forward_pass(self.behaviors, self.model)
        for group in [[behavior] for behavior in self.behaviors] if refresh else groups:
            try:
                own = self._evaluate(group, refresh)
            except Exception as error:  # noqa: BLE001 an observer's failure never ends a run
                self.failures |= {behavior.name: error_text(error) for behavior in group}
                continue
            results |= own
            if refresh:
                self._store_gradients(group[0], own[group[0].name])
        return self._view(step, results)

    def _evaluate(self, group: Sequence[Behavior], refresh: bool) -> dict[str, ProbeResult]:
        options: dict[str, Any] = {"layers": self._layers, "answers": self._wants_answers(group)}
        pass_over = partial(evaluate_batch, group, self.model, **options)
        if not refresh:
            return pass_over()
        try:
            with _all_require_grad(self.parameters):
                results = pass_over(parameters=self.parameters)
        except RuntimeError as error:  # torch's: out of memory, an operation without a gradient
            results = pass_over()
            return {
                name: replace(r, gradient_error=error_text(error)) for name, r in results.items()
            }
        return results

    def _wants_answers(self, group: Sequence[Behavior]) -> bool:
        return self.reads_answers and any(own.tokenizer is not None for own in group)

    @property
    def _layers(self) -> list[str]:
        return [] if self.layer is None else [self.layer]

    def _view(self, step: int, results: dict[str, ProbeResult]) -> ProbeView:
        evaluated = [behavior for behavior in self.behaviors if behavior.name in results]
        gradients = self.protected_gradients
        return ProbeView(
            step, evaluated, results, gradients, self.layer, self.model, self.parameters
        )

    def _begin_refresh(self, step: int) -> None:
        """Free the gradients of the last refresh: one set at a time is in memory."""
        self.gradient_failures = {}
        self._had_gradient = set(self.protected_gradients.margin_gradients.names)
        self.protected_gradients = ProtectedGradients.reserve(
            step, len(self.behaviors), self.gradient_storage
        )

    def _store_gradients(self, behavior: Behavior, result: ProbeResult) -> None:
        name, gradients = behavior.name, self.protected_gradients
        if result.gradient_error:
            self.gradient_failures[name] = escape_control_chars(result.gradient_error)
        elif result.gradient is None and name in self._had_gradient:
            reason = "its margin no longer depends on a trained parameter"
            self.gradient_failures[name] = reason
        gradients.take({name: result})
        if not self.needs_loss_gradients:
            return
        try:
            with _all_require_grad(self.parameters):
                gradient = loss_gradient(behavior, self.model, self.parameters)
        except Exception as error:  # noqa: BLE001 an observer's failure never ends a run
            self.gradient_failures.setdefault(name, error_text(error))
            return
        if gradient is not None:
            gradients.loss_gradients.add(name, gradient)


@contextmanager
def _all_require_grad(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Let parameters that training has frozen require gradients inside: they may come back."""
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
