"""SafeGrad: project the step away from changing the initial answers, and pull toward them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from riprap import evaluation
from riprap._distributed import raise_on_all_ranks
from riprap.behaviors import Behavior
from riprap.errors import BehaviorError
from riprap.guards._base import BehaviorGuard, GuardView, Proposal
from riprap.linalg import Vector, add, dot, norm, sum_vectors

UNCHANGED_BELOW = 1e-6  # mean change of probability below which the answers count as unchanged


@dataclass
class SafeGrad(BehaviorGuard):
    """g ← g′ + ρ g_b, with g_b = ∇ KL(p_θ₀ ‖ p_θ) on the protected prompts.

    g′ = g − (⟨g, g_b⟩/‖g_b‖²) g_b if ⟨g, g_b⟩ < 0, tested once over all parameters; otherwise
    g′ = g. The KL is the mean over behaviors of the mean over answer positions without padding, in
    nats. While the answers are those of θ₀, g_b is 0 and the step is unchanged.

    Source: 2508.07172, after a re-implementation. Simplified: g_b is computed over all
    probes.

    Args:
        behaviors: behaviors to protect, as objects or names; None: all monitored ones.
        strength: ρ.
        refresh: steps between two computations of g_b; the paper's value is 1. An old g_b still
            pulls when the answers are back, and can do harm: at 20 more than it protects.

    Raises:
        ConfigError: strength is negative, or refresh is less than 1; in `start`, a behavior's
            margin does not run the model on its probes.
    """

    strength: float = 1.0
    refresh: int | None = field(default=1, kw_only=True)
    references: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    gradient: Vector | None = field(default=None, init=False, repr=False)
    refreshed_at: int = field(default=0, init=False, repr=False)
    kl: float = field(default=0.0, init=False, repr=False)

    name: ClassVar[str] = "safegrad"
    field_of_origin: ClassVar[str] = "safety"
    source: ClassVar[str] = "2508.07172"
    fidelity: ClassVar[str] = "simplified"
    may_increase_norm: ClassVar[bool] = True
    state_attrs: ClassVar[tuple[str, ...]] = ("references", "gradient", "refreshed_at", "kl")

    def __post_init__(self) -> None:
        if not self.strength >= 0 or self.refresh is None or self.refresh < 1:
            raise self._error(
                f"strength={self.strength}, refresh={self.refresh}; strength must be at least 0 "
                "and refresh at least 1"
            )

    def start(self, view: GuardView) -> None:
        """Store the logits at θ₀, positions × vocabulary for each behavior."""
        behaviors = self.select_behaviors(view)
        try:
            self.references = {b.name: _reference_logits(view.model, b) for b in behaviors}
        except BehaviorError as error:
            raise self._error(str(error)) from error
        self.gradient, self.kl = None, 0.0

    def extend(self, view: GuardView, joined: Sequence[int]) -> None:
        """Compute g_b anew before the coming step, over the parameters that join too."""
        self.gradient = None

    def on_gradients(self, view: GuardView) -> Proposal | None:
        """Project the gradient if it conflicts, and add ρ g_b."""
        assert self.refresh is not None
        if self.gradient is None or view.step - self.refreshed_at >= self.refresh:
            self._refresh_gradient(view)
        before = {"kl": self.kl}
        if self.gradient is not None:  # after a resume it may be on another device
            pairs = zip(self.gradient, view.vector, strict=True)
            self.gradient = [part.to(own.device) for part, own in pairs]
        square = 0.0 if self.gradient is None else float(norm(self.gradient)) ** 2
        if self.gradient is None or square == 0:
            return Proposal(
                detail="nothing to do: the answers are still the initial ones", before=before
            )
        # g_b first: it is still sharded if an earlier guard in a chain returned local parts.
        product = float(dot(self.gradient, view.vector))
        before["product"] = product
        if not torch.isfinite(torch.tensor([product, square])).all():
            detail = "nothing was done: the step or the KL's gradient is not finite"
            return Proposal(detail=detail, before=before)
        factor = self.strength - min(product, 0.0) / square
        if factor == 0:
            detail = "nothing to do: the step does not go against the initial answers"
            return Proposal(detail=detail, before=before, after={"product": product})
        removed = ["removed the gradient's component against the initial answers"] * (product < 0)
        pulled = ["added a pull toward the initial answers"] * (self.strength > 0)
        detail = " and ".join(removed + pulled)
        vector = add(view.vector, self.gradient, factor)
        return Proposal(vector, detail, before, {"product": product + factor * square})

    def _refresh_gradient(self, view: GuardView) -> None:
        """Compute g_b at the current weights; None while the answers are those of θ₀."""
        results = {name: self._behavior_gradient(view, name) for name in self.names}
        terms = self.finite_terms(
            {name: (kl, part) for name, (kl, _, part) in results.items()}, "the KL"
        )
        self.refreshed_at = view.step
        self.kl = sum(kl for kl, _ in terms) / len(self.names)
        parts = [part for _, part in terms if part is not None]
        shifts = [shift for name, (_, shift, _) in results.items() if name not in self.left_out]
        unchanged = max(shifts) <= UNCHANGED_BELOW
        self.gradient = None if unchanged or not parts else sum_vectors(parts)

    def _behavior_gradient(self, view: GuardView, name: str) -> tuple[float, float, Vector | None]:
        """Return one behavior's KL, total variation, and part of g_b."""
        kl, shift = 0.0, 0.0

        def loss(model: nn.Module, behavior: Behavior) -> Tensor:
            nonlocal kl, shift
            logits = evaluation.answer_logits(behavior, model)
            kl, shift, surrogate = kl_with_gradient(self.references[name].to(logits.device), logits)
            return surrogate / len(self.names)

        behavior = view.behaviors[name]
        _, part = evaluation.loss_and_gradient(loss, view.model, behavior, view.parameters)
        return kl, shift, part


def kl_with_gradient(reference: Tensor, logits: Tensor) -> tuple[float, float, Tensor]:
    """Return KL(reference ‖ current) in nats, the total variation, and a scalar with its gradient.

    All are means over rows; `reference` and `logits`, at θ₀ and now, have shape (n, vocabulary).
    """
    was, now = torch.log_softmax(reference, -1), torch.log_softmax(logits.detach(), -1)
    # ∂KL/∂logits = p_now − p_then is exactly 0 if nothing moved. Differentiating the KL itself
    # would leave rounding errors, and a projection uses a direction whatever its length.
    shift = now.exp() - was.exp()
    kl = (was.exp() * (was - now)).sum(-1).mean()
    surrogate = (logits * shift).sum(-1).mean()
    return float(kl), float(shift.abs().sum(-1).mean() / 2), surrogate


def _reference_logits(model: nn.Module, behavior: Behavior) -> Tensor:
    with torch.inference_mode(False), torch.no_grad(), evaluation.preserve_training_state(model):
        with raise_on_all_ranks(model):
            logits = evaluation.answer_logits(behavior, model)
        return logits.detach().clone()
