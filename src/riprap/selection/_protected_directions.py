"""Directions against which samples are scored: protected gradients and directions of the user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer

from riprap._warnings import warn
from riprap.behaviors import Behavior
from riprap.errors import ConfigError
from riprap.evaluation import calibrate, evaluate
from riprap.linalg import Vector, norm, upcast


class ProtectedDirections:
    """Gradients h_b of the behaviors' mean margins, kept up to date, and the user's directions.

    Attributes:
        margin_spent: fraction of its mean margin at the start that the worst behavior has lost;
            None without behaviors.
    """

    def __init__(
        self,
        behaviors: Sequence[Behavior],
        directions: Mapping[str, Vector],
        model: nn.Module,
        parameters: list[Tensor],
        needs_gradients: bool,
    ) -> None:
        self.behaviors, self._model, self._parameters = behaviors, model, parameters
        self._needs_gradients = needs_gradients
        self.margin_spent = None if not behaviors else 0.0
        self.user_directions = {
            name: _check_and_normalize(name, vector, parameters)
            for name, vector in directions.items()
        }
        self.gradients: dict[str, Vector] = {}
        self.start_margins: dict[str, float] = {}
        for behavior in behaviors:
            calibrate(behavior, model)
        self.refresh()

    def refresh(self) -> None:
        """Evaluate the probes, and recompute the protected gradients."""
        spent = []
        for behavior in self.behaviors:
            parameters = self._parameters if self._needs_gradients else None
            result = evaluate(behavior, self._model, parameters)
            if self._needs_gradients:
                if result.gradient is None:
                    raise ConfigError(
                        f"behavior {behavior.name!r} has no gradient in the trainable parameters"
                    )
                self.gradients[behavior.name] = result.gradient
            mean = float(np.mean(result.margins))
            if behavior.name not in self.start_margins and mean <= 0:
                warn(
                    f"behavior {behavior.name!r} has a mean margin of {mean:.3g} at the "
                    "start: it is already lost and cannot be protected, and adaptive selects its "
                    "minimum",
                )
            start = self.start_margins.setdefault(behavior.name, mean)
            spent.append(1 - mean / start if start > 0 else 1.0)
        if spent:
            self.margin_spent = float(np.clip(max(spent), 0, 1))

    def preconditioned(self, optimizers: Sequence[Optimizer]) -> dict[str, Vector]:
        """Return, by name, the vector whose inner product with ∇L_i is ⟨direction, Δθ_i⟩."""
        directions = self.gradients | self.user_directions
        return {
            name: apply_preconditioner(vector, self._parameters, optimizers)
            for name, vector in directions.items()
        }


def _check_and_normalize(name: str, vector: Vector, parameters: list[Tensor]) -> Vector:
    if [part.shape for part in vector] != [parameter.shape for parameter in parameters]:
        raise ConfigError(
            f"direction {name!r} is not of the shapes of the trainable parameters, in the order "
            "of model.parameters()"
        )
    if name == "validation":  # a gradient, whose length counts
        return vector
    length = norm(vector)
    return [part / length for part in vector]


def apply_preconditioner(
    vector: Vector, parameters: list[Tensor], optimizers: Sequence[Optimizer]
) -> list[Tensor]:
    """Compute −lr · P · vector; P is Adam's preconditioner if Adam has a state, else the identity.

    P = diag 1 / (√(v / (1 − β₂ᵗ)) + ε) of the steps taken so far.
    """
    groups: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {
        id(p): (group, optimizer.state.get(p, {}))
        for optimizer in optimizers
        for group in optimizer.param_groups
        for p in group["params"]
    }
    preconditioned = []
    for part, parameter in zip(vector, parameters, strict=True):
        group, state = groups.get(id(parameter), ({}, {}))
        if not group:  # not trained by these optimizers
            preconditioned.append(part.new_zeros(part.shape))
            continue
        scaled = upcast(part) * -float(group["lr"])
        squares = state.get("max_exp_avg_sq", state.get("exp_avg_sq"))
        if squares is not None and squares.shape == part.shape and float(state["step"]) > 0:
            corrected = squares / (1 - group["betas"][1] ** float(state["step"]))
            scaled = scaled / (corrected.sqrt() + group["eps"])
        preconditioned.append(scaled)
    return preconditioned
