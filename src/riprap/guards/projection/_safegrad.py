"""SafeGrad: the step is kept from going against, and pulled towards, the answers of the start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from riprap import evaluation as probing
from riprap._distributed import raise_on_all_ranks
from riprap.behaviors import Behavior
from riprap.errors import BehaviorError, ConfigError
from riprap.guards._base import Guard, GuardView, Proposal, behavior_names
from riprap.linalg import Vector, add, dot, norm

UNCHANGED_BELOW = 1e-6  # mean change of probability under which the answers are those of the start


@dataclass
class SafeGrad(Guard):
    """g ← g′ + ρ g_b, with g_b = ∇ KL(p_θ₀ ‖ p_θ) on the protected prompts.

    g′ = g − (⟨g, g_b⟩/‖g_b‖²) g_b where ⟨g, g_b⟩ < 0, by one test over all parameters, and g′ = g
    elsewhere. The KL is the mean over behaviours of the mean over answered positions, in nats;
    padding has none. While the answers are still those of the start g_b is 0, and the step is left
    alone.

    Source: 2508.07172, after a re-implementation. Simplified: g_b is that of all probes, and up to
    `refresh` steps old.

    Args:
        behaviors: what to protect, by behaviour or by name; None: all that are watched.
        strength: ρ.
        refresh: g_b is taken afresh so often, in steps; 1 is the paper's.

    Raises:
        ConfigError: strength is under 0, or refresh under 1.
    """

    behaviors: Sequence[Behavior | str] | None = None
    strength: float = 1.0
    refresh: int | None = field(default=20, kw_only=True)
    names: list[str] = field(default_factory=list, init=False, repr=False)
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
            raise ConfigError(
                f"guard safegrad: strength={self.strength}, refresh={self.refresh}; give a "
                "strength of at least 0 and a refresh of at least 1"
            )

    def start(self, view: GuardView) -> None:
        """Keep the answers of θ₀: positions × vocabulary of each behaviour.

        Raises:
            ConfigError: a behaviour's margin shows no logits.
        """
        self.names = behavior_names(self.name, self.behaviors, view.behaviors)
        try:
            self.references = {name: _reference_logits(view, name) for name in self.names}
        except BehaviorError as error:
            raise ConfigError(f"guard safegrad: {error}") from error
        self.gradient, self.kl = None, 0.0

    def on_gradients(self, view: GuardView) -> Proposal | None:
        """Project where there is a conflict, and add the pull."""
        assert self.refresh is not None
        if self.gradient is None or view.step - self.refreshed_at >= self.refresh:
            self._refresh_gradient(view)
        before = {"kl": self.kl}
        if self.gradient is not None:  # a state that is taken up again may come from elsewhere
            pairs = zip(self.gradient, view.vector, strict=True)
            self.gradient = [part.to(own.device) for part, own in pairs]
        square = 0.0 if self.gradient is None else float(norm(self.gradient)) ** 2
        if self.gradient is None or square == 0:
            return Proposal(detail="the answers are those of the start", before=before)
        # Summed over the shards of g_b, which are still there when an earlier guard took g's off.
        product = float(dot(self.gradient, view.vector))
        before["product"] = product
        if not torch.isfinite(torch.tensor([product, square])).all():
            return Proposal(detail="the step or the KL's gradient is not finite", before=before)
        factor = self.strength - min(product, 0.0) / square
        detail = "conflict with the answers of the start" if product < 0 else "no conflict"
        if factor == 0:
            return Proposal(detail=detail, before=before, after={"product": product})
        vector = add(view.vector, self.gradient, factor)
        return Proposal(vector, detail, before, {"product": product + factor * square})

    def _refresh_gradient(self, view: GuardView) -> None:
        """g_b at the weights as they are; None while they answer as at the start."""
        found = [self._behavior_gradient(view, name) for name in self.names]
        self.refreshed_at = view.step
        self.kl = sum(kl for kl, _, _ in found) / len(found)
        parts = [part for _, _, part in found if part is not None]
        still = max(shift for _, shift, _ in found) <= UNCHANGED_BELOW
        self.gradient = None if still or not parts else _total(parts)

    def _behavior_gradient(self, view: GuardView, name: str) -> tuple[float, float, Vector | None]:
        """One behaviour's KL, total variation, and share of g_b."""
        seen: list[float] = []

        def loss(model: nn.Module, behavior: Behavior) -> Tensor:
            logits = probing.answer_logits(behavior, model)
            kl, shift, surrogate = kl_with_gradient(self.references[name].to(logits.device), logits)
            seen.extend([kl, shift])
            return surrogate / len(self.names)

        behavior = view.behaviors[name]
        _, part = probing.loss_and_gradient(loss, view.model, behavior, view.parameters)
        return seen[0], seen[1], part


def _total(vectors: list[Vector]) -> Vector:
    total = vectors[0]
    for vector in vectors[1:]:
        total = [one + two for one, two in zip(total, vector, strict=True)]
    return total


def kl_with_gradient(reference: Tensor, logits: Tensor) -> tuple[float, float, Tensor]:
    """How far answers have come from where they were.

    Args:
        reference, logits: shape (n, vocabulary), then and now.

    Returns:
        (KL(then ‖ now) in nats, total variation, a scalar with the gradient of that KL), the first
        two as means over rows.
    """
    was, now = torch.log_softmax(reference, -1), torch.log_softmax(logits.detach(), -1)
    # ∂KL/∂logits = p_now − p_then, which is 0 exactly where nothing moved; by way of the KL itself
    # rounding would leave a direction there, and a projection takes a direction at any length.
    shift = now.exp() - was.exp()
    kl = (was.exp() * (was - now)).sum(-1).mean()
    surrogate = (logits * shift).sum(-1).mean()
    return float(kl), float(shift.abs().sum(-1).mean() / 2), surrogate


def _reference_logits(view: GuardView, name: str) -> Tensor:
    with torch.inference_mode(False), torch.no_grad(), probing.preserve_training_state(view.model):
        with raise_on_all_ranks(view.model):
            found = probing.answer_logits(view.behaviors[name], view.model)
        return found.detach().clone()
