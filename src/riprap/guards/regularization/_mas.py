"""MAS: weights that a model's answers are sensitive to are held."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from riprap._distributed import has_sharded_parameters
from riprap.behaviors import Behavior
from riprap.errors import ConfigError
from riprap.evaluation import gradient_of, preserve_training_state
from riprap.guards._base import GuardView
from riprap.guards.regularization._penalty import BehaviorGuard, Penalty, quadratic_penalty, sum_vectors
from riprap.guards.regularization._probe_outputs import run_probes, last_positions
from riprap.linalg import Vector, clone, upcast_vector


@dataclass
class MAS(Penalty, BehaviorGuard):
    """Adds λ Σ_i Ω_i (θ_i − θ₀_i)², Ω = mean over probes of |∇_i ‖F(x)‖²|, F the logits.

    It needs neither labels nor losses: what is held is whatever the model says on the probes. One
    backward pass a probe at the start.

    Source: Aljundi et al., 1711.09601. Simplified: F is read at the last position of a
    probe, and the importance is taken once, at θ₀.

    Raises (at the start):
        ConfigError: a behaviour's margin does not run the model, or reaches no trained parameter;
            or the model is sharded over ranks.
    """

    importance: Vector = field(default_factory=list, init=False, repr=False)
    anchor: Vector = field(default_factory=list, init=False, repr=False)

    name: ClassVar[str] = "mas"
    field_of_origin: ClassVar[str] = "continual learning"
    source: ClassVar[str] = "1711.09601"
    fidelity: ClassVar[str] = "simplified"
    state_attrs: ClassVar[tuple[str, ...]] = ("importance", "anchor")

    def start(self, view: GuardView) -> None:
        """Take Ω and θ₀."""
        if has_sharded_parameters(view.model):
            raise ConfigError(
                f"guard {self.name}: a gradient for each probe cannot be taken of a model sharded "
                "over ranks; use L2SP or KL"
            )
        found = [self._sensitivity(one, view.model, view.parameters) for one in self.select_behaviors(view)]
        self.importance, self.anchor = sum_vectors(found), clone(view.parameters)

    def penalty(self, view: GuardView) -> tuple[float, Vector | None]:
        """Σ Ω (θ − θ₀)² and 2 Ω (θ − θ₀)."""
        return quadratic_penalty(1.0, self.importance, view.parameters, self.anchor)

    def _sensitivity(
        self, behavior: Behavior, model: nn.Module, parameters: list[Tensor]
    ) -> Vector:
        found = [torch.zeros_like(part) for part in upcast_vector(parameters)]
        with torch.inference_mode(False), torch.enable_grad(), preserve_training_state(model):
            rows = last_positions(run_probes(self.name, behavior, model).logits)
            for row in rows:
                own = (
                    gradient_of(row.square().sum(), parameters, True) if row.requires_grad else None
                )
                if own is None:
                    raise ConfigError(
                        f"guard {self.name}: the answers on behaviour {behavior.name!r} depend on "
                        "no trained parameter"
                    )
                torch._foreach_add_(found, torch._foreach_abs(upcast_vector(own)), alpha=1 / len(rows))
        return found
