"""Base class of signals, and the views that signals read."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor, nn

from riprap.behaviors import Behavior
from riprap.evaluation import ProbeResult, ProtectedGradients
from riprap.linalg import FlatVector, Vector
from riprap.record import check_fields
from riprap.types import Reading, ReadingStatus

DETACHED_MARGINS = (
    "the margins are detached from the graph, or depend on no trained parameter: return them "
    "attached to the graph"
)
NO_LAYER = (
    "the model has no recognizable stack of layers: name a layer, e.g. "
    "Monitor(..., feature_layer='blocks.1')"
)


@dataclass
class StepView:
    """Quantities to read around optimizer steps.

    Attributes:
        step: number of the step, from 1.
        gradient: task gradient g before the step, as the optimizer is about to use it; None if no
            trainable parameter has a gradient, or no signal reads it.
        update: Δθ that was applied since the last update that signals read, which may be several
            steps ago; None before the step.
        protected_gradients: gradients of the last gradient refresh.
    """

    step: int
    gradient: Vector | None
    update: Sequence[Tensor] | None
    protected_gradients: ProtectedGradients

    @cached_property
    def flat_gradient(self) -> FlatVector:
        """The gradient g for products and norms; `gradient` must not be None."""
        assert self.gradient is not None
        return FlatVector(self.gradient, self.protected_gradients.margin_gradients.chunks)

    @cached_property
    def flat_update(self) -> FlatVector:
        """The update Δθ for products and norms; `update` must not be None."""
        assert self.update is not None
        return FlatVector(self.update, self.protected_gradients.margin_gradients.chunks)

    @cached_property
    def gradient_norm(self) -> float:
        """Norm ‖g‖; NaN without a gradient."""
        return float("nan") if self.gradient is None else self.flat_gradient.norm()


@dataclass
class ProbeView:
    """Quantities to read at a probe evaluation.

    Attributes:
        step: number of optimizer steps taken; 0 is before the first.
        behaviors: the behaviors that were evaluated.
        results: results of the passes over their probes, by behavior.
        protected_gradients: gradients of the last refresh; fresh if their `step` is `step`.
        layer: name of the layer whose activations were read; None if there is none.
        model, parameters: the model and its trainable parameters.
    """

    step: int
    behaviors: Sequence[Behavior]
    results: Mapping[str, ProbeResult]
    protected_gradients: ProtectedGradients
    layer: str | None
    model: nn.Module
    parameters: list[Tensor] = field(default_factory=list)


class Signal:
    """Signal that reads the model, yields readings, and changes nothing.

    Each method is optional: `start` is called once before training; `on_gradient` before each
    optimizer step; `on_update` before each probe evaluation and every few steps between them, with
    the update since it was last called; `on_probe_evaluation` at each probe evaluation,
    including the one before training.

    Attributes:
        name: name in states and failures.
        every_step: whether `on_update` is called after each step, for all signals of the monitor.
            Costs a copy of the trained parameters at each step, and the signals' own products.
        needs_loss_gradient: whether the signal reads `ProtectedGradients.loss_gradients`.
        per_parameter: whether the signal stores something for each trained parameter, so that it
            starts anew when parameters join training.
        state_attrs: names of the attributes that a resumed run needs.
    """

    name: ClassVar[str]
    every_step: bool = False
    needs_loss_gradient: ClassVar[bool] = False
    per_parameter: ClassVar[bool] = False
    state_attrs: ClassVar[tuple[str, ...]] = ()

    @property
    def reads_gradients(self) -> bool:
        """True if the signal reads the task gradient of each step."""
        return type(self).on_gradient is not Signal.on_gradient

    def start(self, view: ProbeView) -> None:
        """Store what later readings are compared with."""

    def on_gradient(self, view: StepView) -> list[Reading]:
        """Return readings of the task gradient."""
        return []

    def on_update(self, view: StepView) -> list[Reading]:
        """Return readings of the applied update, of one or several steps."""
        return []

    def on_probe_evaluation(self, view: ProbeView) -> list[Reading]:
        """Return readings of the probe evaluation."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, as plain values and tensors."""
        return {name: copy.deepcopy(getattr(self, name)) for name in self.state_attrs}

    def load_state_dict(self, state: dict[str, Any], parameters: list[Tensor]) -> None:
        """Restore what `state_dict` returned.

        Args:
            parameters: the trained parameters, in the order of every vector.

        Raises:
            ValueError: the state does not fit this signal.
        """
        check_fields(state, **{name: type(getattr(self, name)) for name in self.state_attrs})
        for name in self.state_attrs:
            setattr(self, name, state[name])


def not_run(step: int, behavior: str, signal: str, reason: str) -> Reading:
    """Return a `NOT_RUN` reading with the reason, and with what would make it possible."""
    return Reading(step, behavior, signal, state=ReadingStatus.NOT_RUN, detail=reason)


def no_rows_reason(layer: str) -> str:
    """Return the reason why an existing layer could not be read."""
    return f"layer {layer} was not run by the margin, or does not return one row per probe"


def not_run_without_losses(view: ProbeView, signal: str) -> list[Reading]:
    """Return `NOT_RUN` readings at the start for behaviors without losses."""
    reason = "the behavior has no losses: give Behavior(losses=...)"
    names = [b.name for b in view.behaviors if b.losses is None and view.step == 0]
    return [not_run(view.step, name, signal, reason) for name in names]


def not_run_without_gradient(view: ProbeView, signal: str) -> list[Reading]:
    """Return `NOT_RUN` readings at the start for behaviors with a detached margin."""
    measured = view.protected_gradients.margin_gradients.names
    names = [b.name for b in view.behaviors if b.name not in measured and view.step == 0]
    return [not_run(0, name, signal, DETACHED_MARGINS) for name in names]


class FeatureSignal(Signal):
    """Signal on the activations of one layer, for each behavior."""

    def on_probe_evaluation(self, view: ProbeView) -> list[Reading]:
        """Return readings of behaviors with activations, `NOT_RUN` for the others."""
        readings: list[Reading] = []
        for behavior in view.behaviors:
            activations = self.activations(view, behavior.name)
            if activations is None:
                reason = NO_LAYER if view.layer is None else no_rows_reason(view.layer)
                readings += [not_run(view.step, behavior.name, self.name, reason)] * (
                    view.step == 0
                )
            else:
                readings += self.read(view, behavior, activations)
        return readings

    def read(self, view: ProbeView, behavior: Behavior, activations: Tensor) -> list[Reading]:
        """Return the readings of one behavior.

        Args:
            activations: shape (rows, d).
        """
        raise NotImplementedError

    @staticmethod
    def activations(view: ProbeView, name: str | None) -> Tensor | None:
        """Return a behavior's activations at the layer, shape (rows, d), or None."""
        if name is None or name not in view.results or view.layer is None:
            return None
        return view.results[name].activations.get(view.layer)
