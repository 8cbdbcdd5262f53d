"""What every signal is, and what it is given to read."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor, nn

from riprap.behaviors import Behavior
from riprap.evaluation import ProbeResult
from riprap.linalg import FlatVector, VectorStack, Vector
from riprap.types import Reading, ReadingStatus

DETACHED_MARGINS = (
    "the margins are detached from the graph, or reach no trained parameter: return them attached, "
    "as torch made them"
)
NO_LAYER = (
    "no stack of layers was found in the model: name one, e.g. Monitor(..., layer='blocks.1')"
)


@dataclass
class ProtectedGradients:
    """Protected gradients kept from the last visit that took them.

    Attributes:
        step: when they were taken.
        margin: h_b of the behaviours whose margin is attached to the graph.
        loss: g_b of the behaviours with losses, where some signal needs them.
    """

    step: int = 0
    margin_gradients: VectorStack = field(default_factory=lambda: VectorStack({}))
    loss_gradients: VectorStack = field(default_factory=lambda: VectorStack({}))


@dataclass
class StepView:
    """What there is to read around one optimizer step.

    Attributes:
        step: number of the step, from 1.
        gradient: the task gradient g before the step, as the optimizer is about to use it; None
            where no trainable parameter has one.
        update: Δθ that was really applied; None before the step.
        held: protected gradients.
    """

    step: int
    gradient: Vector | None
    update: Vector | None
    protected_gradients: ProtectedGradients

    @cached_property
    def flat_gradient(self) -> FlatVector:
        """g for products and norms; there must be one."""
        assert self.gradient is not None
        return FlatVector(self.gradient, self.protected_gradients.margin_gradients.chunks)

    @cached_property
    def flat_update(self) -> FlatVector:
        """Δθ for products and norms; there must be one."""
        assert self.update is not None
        return FlatVector(self.update, self.protected_gradients.margin_gradients.chunks)

    @cached_property
    def gradient_norm(self) -> float:
        """‖g‖; NaN without a gradient."""
        return float("nan") if self.gradient is None else self.flat_gradient.norm()


@dataclass
class ProbeView:
    """What there is to read when the probes are visited.

    Attributes:
        step: number of optimizer steps taken; 0 is before the first.
        behaviors: the watched behaviours.
        looks: what the passes over their probes showed, by behaviour.
        held: protected gradients; fresh where `held.step` is `step`.
        layer: name of the layer that was read, None where there is none.
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
    """Reads the model and yields readings; changes nothing.

    Moments, each optional: `start` once before training (the view of θ₀), `on_gradient` before each
    optimizer step, `on_update` after it, `on_probes` whenever probes are visited, θ₀ included.
    """

    name: ClassVar[str]
    needs_loss_gradient: ClassVar[bool] = False

    def start(self, view: ProbeView) -> None:
        """Fix what later readings are compared with."""

    def on_gradient(self, view: StepView) -> list[Reading]:
        """Readings of the task gradient."""
        return []

    def on_update(self, view: StepView) -> list[Reading]:
        """Readings of the applied update."""
        return []

    def on_probes(self, view: ProbeView) -> list[Reading]:
        """Readings of the probes."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """What a run that is taken up again needs, as plain values and tensors: by default all."""
        return copy.deepcopy(vars(self))

    def load_state_dict(self, state: dict[str, Any], parameters: list[Tensor]) -> None:
        """Take over what `state_dict` gave.

        Args:
            parameters: those that are watched, in the order of every vector.

        Raises:
            ValueError: it holds other things than this signal.
        """
        own = vars(self)
        if not isinstance(state, dict) or set(state) != set(own):
            raise ValueError(f"expected {', '.join(own) or 'nothing'}, got {_describe_keys(state)}")
        for name, value in state.items():
            if not (None in (value, own[name]) or isinstance(value, type(own[name]))):
                raise ValueError(f"{name} is a {type(value).__name__}")
        own.update(state)


def _describe_keys(state: Any) -> str:
    """What a state holds, for an error."""
    if not isinstance(state, dict):
        return type(state).__name__
    return ", ".join(map(str, state)) or "nothing"


def not_run(step: int, behavior: str, signal: str, why: str) -> Reading:
    """A reading that was not taken, and what would make it possible."""
    return Reading(step, behavior, signal, state=ReadingStatus.NOT_RUN, detail=why)


def no_rows_reason(layer: str) -> str:
    """Why a layer that exists could not be read."""
    return f"layer {layer} was not run by the margin, or does not put out a row for each probe"


def not_run_without_losses(view: ProbeView, signal: str) -> list[Reading]:
    """`NOT_RUN` at the start for each behaviour that has no losses."""
    why = "the behaviour has no losses: give Behavior(losses=...)"
    lacking = [b.name for b in view.behaviors if b.losses is None and view.step == 0]
    return [not_run(view.step, name, signal, why) for name in lacking]


def not_run_without_gradient(view: ProbeView, signal: str) -> list[Reading]:
    """`NOT_RUN` at the start for each behaviour whose margin is detached from the graph."""
    lacking = [b.name for b in view.behaviors if b.name not in view.protected_gradients.margin_gradients.names]
    return [not_run(0, name, signal, DETACHED_MARGINS) for name in lacking if view.step == 0]


class FeatureSignal(Signal):
    """A signal on the activations of one layer, read behaviour by behaviour."""

    def on_probes(self, view: ProbeView) -> list[Reading]:
        """Readings for each behaviour whose activations were seen, `NOT_RUN` for the others."""
        readings: list[Reading] = []
        for behavior in view.behaviors:
            activations = self.activations(view, behavior.name)
            if activations is None:
                why = NO_LAYER if view.layer is None else no_rows_reason(view.layer)
                readings += [not_run(view.step, behavior.name, self.name, why)] * (view.step == 0)
            else:
                readings += self.read(view, behavior, activations)
        return readings

    def read(self, view: ProbeView, behavior: Behavior, activations: Tensor) -> list[Reading]:
        """Readings of one behaviour.

        Args:
            activations: shape (rows, d).
        """
        raise NotImplementedError

    @staticmethod
    def activations(view: ProbeView, name: str | None) -> Tensor | None:
        """Activations of a behaviour at the chosen layer, shape (rows, d), or None."""
        if name is None or name not in view.results or view.layer is None:
            return None
        return view.results[name].activations.get(view.layer)
