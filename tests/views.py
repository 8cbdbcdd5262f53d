"""Views for signals, made by hand: what a monitor would show them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from riprap import Behavior, Reading
from riprap.evaluation import ProtectedGradients, evaluate, find_layer, loss_gradient
from riprap.signals import ProbeView, StepView


def trainable(model: nn.Module) -> list[Tensor]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def probe_view(
    step: int, behaviors: Sequence[Behavior], model: nn.Module, layer: str | None = None
) -> ProbeView:
    """A probe evaluation with fresh gradients; `layer` None takes the one that Riprap finds."""
    layer = find_layer(model, layer)
    parameters = trainable(model)
    layers = [] if layer is None else [layer]
    results = {b.name: evaluate(b, model, parameters, layers) for b in behaviors}
    losses = {
        b.name: gradient
        for b in behaviors
        if (gradient := loss_gradient(b, model, parameters)) is not None
    }
    gradients = ProtectedGradients.from_results(step, results, losses)
    return ProbeView(step, behaviors, results, gradients, layer, model, parameters)


def gradient_view(
    step: int, gradients: ProtectedGradients, task_gradient: list[Tensor] | None
) -> StepView:
    return StepView(step, task_gradient, None, gradients)


def update_view(step: int, gradients: ProtectedGradients, update: list[Tensor]) -> StepView:
    return StepView(step, None, update, gradients)


def values(readings: Sequence[Reading], signal: str) -> dict[str, float]:
    """Measured values of a signal by behavior."""
    return {r.behavior: r.value for r in readings if r.signal == signal and r.value is not None}
