"""Steep alignment: share of the task gradient in the margins' most sensitive directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from riprap.evaluation import margin_gradients
from riprap.linalg import FlatVector, Vector, VectorStack, inner_products
from riprap.signals._base import DETACHED_MARGINS, ProbeView, Signal, StepView, not_run
from riprap.types import Reading

K = 8  # steep directions per behavior
MAX_PROBES = 32  # probes per behavior whose gradients are computed
MIN_EIGENVALUE = 1e-6  # times the largest eigenvalue; below it a direction is rounding error


def steep_weights(gramian: Tensor, k: int) -> Tensor:
    """Compute the weights that combine the rows of J into its top-k right singular vectors.

    Args:
        gramian: J Jᵀ, shape (n, n).
        k: capped at the numerical rank.

    Returns:
        shape (k, n), row j = v_j / σ_j in the order of falling σ, so that weights @ J = U_kᵀ.
    """
    values, vectors = torch.linalg.eigh(gramian.double())
    values, vectors = values.flip(0), vectors.flip(1)
    count = min(k, int((values > MIN_EIGENVALUE * values[0]).sum()))
    return (vectors[:, :count] / values[:count].clamp(min=0).sqrt()).T


def steep_directions(jacobian: Sequence[Vector], k: int) -> list[Vector]:
    """Compute the top-k right singular vectors of a Jacobian from its n × n Gramian.

    Args:
        jacobian: its n rows, vectors in parameter space.
    """
    gramian = torch.stack([inner_products(row, jacobian).double() for row in jacobian])
    directions: list[Vector] = []
    for weights in steep_weights((gramian + gramian.T) / 2, k).tolist():
        direction = [torch.zeros_like(part) for part in jacobian[0]]
        for weight, row in zip(weights, jacobian, strict=True):
            torch._foreach_add_(direction, list(row), alpha=weight)
        directions.append(direction)
    return directions


def steep_stack(jacobian: Sequence[Vector], k: int) -> VectorStack:
    """Stack the steep directions, named by their rank from 0."""
    return VectorStack({str(rank): one for rank, one in enumerate(steep_directions(jacobian, k))})


def alignment(gradient: Vector | FlatVector, gradient_norm: float, steep: VectorStack) -> float:
    """Compute ‖U_kᵀ g‖² / ‖g‖²; NaN for a zero gradient."""
    if not gradient_norm:
        return float("nan")
    return sum(product**2 for product in steep.inner_products(gradient).values()) / gradient_norm**2


class SteepAlignment(Signal):
    """Ratio ‖U_kᵀ g‖² / ‖g‖², U_k the margins' top-k right singular vectors at θ₀.

    Ours, after 2510.09181. The cosine with one mean gradient may be near 0 while the task acts on
    directions to which single probes are sensitive. `steep_alignment_chance` = k / p is the value
    of a random direction. Any two gradients of one network share directions, however: in
    `python -m experiments steep_directions` the values were far above chance, and no higher than
    with the steep directions of random margins on the same probes.

    U_k is computed at θ₀ and not refreshed. At the start each behavior costs one backward pass per
    probe, at most `max_probes`, and as many copies of the parameters for a moment; k copies remain.
    Each step costs k inner products per behavior.

    Args:
        k: steep directions per behavior, capped at the rank of its Jacobian.
        max_probes: probes whose gradients are computed, evenly spaced over all.
    """

    name = "steep_alignment"
    per_parameter = True

    def __init__(self, k: int = K, max_probes: int = MAX_PROBES) -> None:
        self.k = k
        self.max_probes = max_probes
        self.steep: dict[str, VectorStack] = {}

    def start(self, view: ProbeView) -> None:
        """Compute the steep directions of each behavior.

        Raises:
            BehaviorError: the model is sharded over ranks.
        """
        for behavior in view.behaviors:
            jacobian = margin_gradients(behavior, view.model, view.parameters, self.max_probes)
            if jacobian is not None:
                self.steep[behavior.name] = steep_stack(jacobian, self.k)

    def state_dict(self) -> dict[str, Any]:
        """Return the steep directions, as plain values and tensors."""
        return {"steep": {name: stack.state_dict() for name, stack in self.steep.items()}}

    def load_state_dict(self, state: dict[str, Any], parameters: list[Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self.steep = {
            name: VectorStack.from_state(own, parameters) for name, own in state["steep"].items()
        }

    def on_gradient(self, view: StepView) -> list[Reading]:
        """Return one reading for each behavior with a differentiable margin."""
        if view.gradient is None:
            return []
        return [
            Reading.of(
                view.step,
                name,
                self.name,
                alignment(view.flat_gradient, view.gradient_norm, steep),
                "share",
            )
            for name, steep in self.steep.items()
        ]

    def on_probe_evaluation(self, view: ProbeView) -> list[Reading]:
        """Return the chance level at the start, or `NOT_RUN` for a detached margin."""
        if view.step != 0:
            return []
        count = sum(parameter.numel() for parameter in view.parameters)
        return [
            Reading.of(0, b.name, f"{self.name}_chance", len(own.names) / count, "share")
            if (own := self.steep.get(b.name)) is not None
            else not_run(0, b.name, self.name, DETACHED_MARGINS)
            for b in view.behaviors
        ]
