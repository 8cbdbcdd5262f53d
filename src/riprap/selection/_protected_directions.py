"""Directions that samples are judged by: protected gradients, seen through the optimizer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer

from riprap import evaluation as probing
from riprap.behaviors import Behavior
from riprap.errors import ConfigError
from riprap.linalg import Vector, norm, widened


class Compass:
    """h_b of some behaviours and directions of the user's, kept up to date.

    Attributes:
        drift: share of the mean margin at the start that the worst behaviour has lost; None
            without behaviours.
    """

    def __init__(
        self,
        behaviors: Sequence[Behavior],
        directions: Mapping[str, Vector],
        model: nn.Module,
        parameters: list[Tensor],
        gradients: bool,
    ) -> None:
        self.behaviors, self._model, self._parameters = behaviors, model, parameters
        self._gradients, self.drift = gradients, None if not behaviors else 0.0
        self._given = {name: _unit(name, part, parameters) for name, part in directions.items()}
        self._held: dict[str, Vector] = {}
        self._first: dict[str, float] = {}
        for behavior in behaviors:
            probing.start(behavior, model)
        self.refresh()

    def refresh(self) -> None:
        """Visit the probes.

        Raises:
            ConfigError: a behaviour's margin reaches no trainable parameter.
        """
        spent = []
        for behavior in self.behaviors:
            wanted = self._parameters if self._gradients else None
            look = probing.look(behavior, self._model, wanted)
            if self._gradients:
                if look.gradient is None:
                    raise ConfigError(
                        f"behaviour {behavior.name!r} has no gradient in the trainable parameters"
                    )
                self._held[behavior.name] = look.gradient
            mean = float(np.mean(look.margins))
            if behavior.name not in self._first and mean <= 0:
                warnings.warn(
                    f"riprap: behaviour {behavior.name!r} has a mean margin of {mean:.3g} at the "
                    "start: there is nothing left of it to keep, and adaptive takes its least",
                    stacklevel=2,
                )
            first = self._first.setdefault(behavior.name, mean)
            spent.append(1 - mean / first if first > 0 else 1.0)
        if spent:
            self.drift = float(np.clip(max(spent), 0, 1))

    def pulls(self, optimizer: Optimizer) -> dict[str, Vector]:
        """By name, the vector whose inner product with ∇L_i is ⟨direction, Δθ_i⟩."""
        every = self._held | self._given
        return {name: through_update(v, self._parameters, optimizer) for name, v in every.items()}


def _unit(name: str, vector: Vector, parameters: list[Tensor]) -> Vector:
    shapes, wanted = [p.shape for p in vector], [p.shape for p in parameters]
    if shapes != wanted:
        raise ConfigError(
            f"direction {name!r} is not of the shapes of the trainable parameters, in the order "
            "of model.parameters()"
        )
    if name == "validation":  # a gradient, whose length counts
        return vector
    length = norm(vector)
    return [part / length for part in vector]


def rate_of(optimizer: Optimizer) -> float:
    """The learning rate of the first group."""
    return float(optimizer.param_groups[0]["lr"])


def through_update(vector: Vector, parameters: list[Tensor], optimizer: Optimizer) -> Vector:
    """−lr · P · vector, with P Adam's preconditioner where it has a state, else the identity.

    P = diag 1 / (√(v / (1 − β₂ᵗ)) + ε) of the steps taken so far.
    """
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    found = []
    for part, parameter in zip(vector, parameters, strict=True):
        group, state = groups.get(id(parameter)), optimizer.state.get(parameter, {})
        if group is None:  # not trained by this optimizer
            found.append(part.new_zeros(part.shape))
            continue
        pull = widened(part) * -float(group["lr"])
        squares = state.get("max_exp_avg_sq", state.get("exp_avg_sq"))
        if squares is not None and squares.shape == part.shape and float(state["step"]) > 0:
            corrected = squares / (1 - group["betas"][1] ** float(state["step"]))
            pull = pull / (corrected.sqrt() + group["eps"])
        found.append(pull)
    return found
