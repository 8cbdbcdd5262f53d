"""Views for signals, made by hand: what a monitor would show them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from riprap import Behavior, Reading
from riprap import evaluation as probing
from riprap.linalg._vector_stack import VectorStack
from riprap.signals import ProtectedGradients, StepView, ProbeView


def trainable(model: nn.Module) -> list[Tensor]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def visit(
    step: int, behaviors: Sequence[Behavior], model: nn.Module, layer: str | None = None
) -> ProbeView:
    """A visit with fresh gradients; `layer` None takes the one that Riprap would find."""
    layer = probing.find_layer(model, layer)
    parameters = trainable(model)
    layers = [] if layer is None else [layer]
    looks = {b.name: probing.evaluate(b, model, parameters, layers) for b in behaviors}
    margins = {name: look.gradient for name, look in looks.items() if look.gradient is not None}
    losses = {
        b.name: gradient
        for b in behaviors
        if (gradient := probing.loss_gradient(b, model, parameters)) is not None
    }
    held = ProtectedGradients(step, VectorStack(margins), VectorStack(losses))
    return ProbeView(step, behaviors, looks, held, layer, model, parameters)


def before(step: int, held: ProtectedGradients, gradient: list[Tensor] | None) -> StepView:
    return StepView(step, gradient, None, held)


def after(step: int, held: ProtectedGradients, update: list[Tensor]) -> StepView:
    return StepView(step, None, update, held)


def values(readings: Sequence[Reading], signal: str) -> dict[str, float]:
    """Measured values of a signal by behaviour."""
    return {r.behavior: r.value for r in readings if r.signal == signal and r.value is not None}
