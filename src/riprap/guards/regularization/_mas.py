"""MAS: anchor the weights that the model's answers are sensitive to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from riprap._distributed import has_sharded_parameters
from riprap.behaviors import Behavior
from riprap.evaluation import gradient_of, preserve_training_state
from riprap.guards._base import BehaviorGuard, GuardView
from riprap.guards.regularization._penalty import MAX_PULL, Penalty, quadratic_penalty
from riprap.guards.regularization._probe_outputs import last_positions, run_probes
from riprap.linalg import Vector, clone, sum_vectors, upcast_vector


@dataclass
class MAS(Penalty, BehaviorGuard):
    """Penalty λ Σ_i Ω_i (θ_i − θ₀_i)², Ω = mean over probes of abs(∇_i ‖F(x)‖²), F the logits.

    No labels or losses are needed: the current answers on the probes are protected. The start
    costs one backward pass for each probe.

    Source: Aljundi et al., 1711.09601. Variant: the pull has a longest length (`max_pull`), F is
    read at the last position of a probe, and the importance is estimated once, at θ₀.

    Raises:
        ConfigError: in `start`, a behavior's margin does not run the model or depends on no trained
            parameter, or the model is sharded over ranks.
    """

    max_pull: float | None = field(default=MAX_PULL, kw_only=True)
    importance: Vector = field(default_factory=list, init=False, repr=False)
    anchor: Vector = field(default_factory=list, init=False, repr=False)

    name: ClassVar[str] = "mas"
    goal: ClassVar[str] = "the initial weights that matter to the answers"
    per_parameter: ClassVar[bool] = True
    field_of_origin: ClassVar[str] = "continual learning"
    source: ClassVar[str] = "1711.09601"
    fidelity: ClassVar[str] = "variant"
    state_attrs: ClassVar[tuple[str, ...]] = ("importance", "anchor")

    def start(self, view: GuardView) -> None:
        """Estimate Ω and store θ₀."""
        super().start(view)
        if has_sharded_parameters(view.model):
            raise self._error(
                "per-probe gradients are not available for a model sharded over ranks; use L2SP "
                "or KL"
            )
        behaviors = self.select_behaviors(view)
        sensitivities = {
            b.name: self._sensitivity(b, view.model, view.parameters) for b in behaviors
        }
        finite = self.finite_behaviors(sensitivities, "the importance")
        self.importance = sum_vectors([sensitivities[name] for name in finite])
        self.anchor = clone(view.parameters)
        self.warn_of_unprotected(view, self.importance)

    def penalty(self, view: GuardView) -> tuple[float, Vector | None]:
        """Compute Σ Ω (θ − θ₀)² and 2 Ω (θ − θ₀)."""
        return quadratic_penalty(1.0, self.importance, view.parameters, self.anchor)

    def _sensitivity(
        self, behavior: Behavior, model: nn.Module, parameters: list[Tensor]
    ) -> Vector:
        """Return the mean over a behavior's probes of abs(∇ ‖F(x)‖²)."""
        sensitivity = [torch.zeros_like(part) for part in upcast_vector(parameters)]
        with torch.inference_mode(False), torch.enable_grad(), preserve_training_state(model):
            rows = last_positions(run_probes(self.name, behavior, model).logits)
            for row in rows:
                gradient = None
                if row.requires_grad:
                    gradient = gradient_of(row.square().sum(), parameters, True)
                if gradient is None:
                    raise self._error(
                        f"the answers on behavior {behavior.name!r} depend on no trained parameter"
                    )
                magnitudes = torch._foreach_abs(upcast_vector(gradient))
                torch._foreach_add_(sensitivity, magnitudes, alpha=1 / len(rows))
        return sensitivity
