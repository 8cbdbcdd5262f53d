"""Steep alignment: how much of the task gradient lies where the margins are most sensitive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from riprap.evaluation import margin_gradients
from riprap.linalg import FlatVector, VectorStack, Vector, inner_products
from riprap.signals._base import DETACHED_MARGINS, Signal, StepView, ProbeView, not_run
from riprap.types import Reading

K = 8  # steep directions kept of a behaviour
MAX_PROBES = 32  # probes whose gradients are taken
MIN_EIGENVALUE = 1e-6  # of the largest eigenvalue; below it a direction is rounding error


def steep_weights(gramian: Tensor, k: int) -> Tensor:
    """How to add up the rows of J into its top-k right singular vectors.

    Args:
        gramian: J Jᵀ, shape (n, n).
        k: capped at the numerical rank.

    Returns:
        shape (k, n), row j = v_j / σ_j in the order of falling σ, so that weights @ J = U_kᵀ.
    """
    values, vectors = torch.linalg.eigh(gramian.double())
    values, vectors = values.flip(0), vectors.flip(1)
    kept = min(k, int((values > MIN_EIGENVALUE * values[0]).sum()))
    return (vectors[:, :kept] / values[:kept].clamp(min=0).sqrt()).T


def steep_directions(jacobian: Sequence[Vector], k: int) -> list[Vector]:
    """Top-k right singular vectors of a Jacobian, by its n × n Gramian.

    Args:
        jacobian: its n rows, vectors in parameter space.
    """
    gramian = torch.stack([inner_products(row, jacobian).double() for row in jacobian])
    found: list[Vector] = []
    for weights in steep_weights((gramian + gramian.T) / 2, k).tolist():
        direction = [torch.zeros_like(part) for part in jacobian[0]]
        for weight, row in zip(weights, jacobian, strict=True):
            torch._foreach_add_(direction, list(row), alpha=weight)
        found.append(direction)
    return found


def steep_stack(jacobian: Sequence[Vector], k: int) -> VectorStack:
    """The steep directions side by side, named by their rank from 0."""
    return VectorStack({str(rank): one for rank, one in enumerate(steep_directions(jacobian, k))})


def alignment(gradient: Vector | FlatVector, gradient_norm: float, steep: VectorStack) -> float:
    """‖U_kᵀ g‖² / ‖g‖²; NaN for a gradient of 0."""
    if not gradient_norm:
        return float("nan")
    return sum(product**2 for product in steep.inner_products(gradient).values()) / gradient_norm**2


class SteepAlignment(Signal):
    """‖U_kᵀ g‖² / ‖g‖², U_k the top-k right singular vectors of the margins' Jacobian at θ₀.

    Ours, after 2510.09181. A cosine with one mean gradient may be near 0 while the task still acts
    on directions in which single probes are sensitive. `steep_alignment_chance` = k / p, what a
    random direction gives. But any two gradients of one network share directions: in
    `riprap study steep` values were far above chance, and no higher than with the steep directions
    of random margins on the same probes.

    U_k is fixed at θ₀ and not refreshed. At the start each behaviour costs one backward pass a
    probe, at most `most`, and so many copies of the parameters for a moment; k copies are kept.
    Each step costs k inner products a behaviour.

    Args:
        k: steep directions kept of each behaviour, capped at the rank of its Jacobian.
        most: probes whose gradients are taken, evenly over all.
    """

    name = "steep_alignment"

    def __init__(self, k: int = K, max_probes: int = MAX_PROBES) -> None:
        self.k = k
        self.max_probes = max_probes
        self.steep: dict[str, VectorStack] = {}

    def start(self, view: ProbeView) -> None:
        """Find each behaviour's steep directions.

        Raises:
            BehaviorError: the model is sharded over ranks.
        """
        for behavior in view.behaviors:
            jacobian = margin_gradients(behavior, view.model, view.parameters, self.max_probes)
            if jacobian is not None:
                self.steep[behavior.name] = steep_stack(jacobian, self.k)

    def state_dict(self) -> dict[str, Any]:
        """The steep directions, as plain values and tensors."""
        return {"steep": {name: stack.state_dict() for name, stack in self.steep.items()}}

    def load_state_dict(self, state: dict[str, Any], parameters: list[Tensor]) -> None:
        """Take over what `state_dict` gave."""
        self.steep = {name: VectorStack.from_state(own, parameters) for name, own in state["steep"].items()}

    def on_gradient(self, view: StepView) -> list[Reading]:
        """One reading a behaviour with a differentiable margin."""
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

    def on_probes(self, view: ProbeView) -> list[Reading]:
        """At the start, chance, and which behaviours it cannot be read for."""
        if view.step != 0:
            return []
        count = sum(parameter.numel() for parameter in view.parameters)
        return [
            Reading.of(0, b.name, f"{self.name}_chance", len(own.names) / count, "share")
            if (own := self.steep.get(b.name)) is not None
            else not_run(0, b.name, self.name, DETACHED_MARGINS)
            for b in view.behaviors
        ]
