"""Gradient surgery: add a combination of protected gradients to the step.

Each method decides on small arrays (the Gramian); this module applies the decision to the vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from riprap.guards._base import BehaviorGuard, GuardView, Proposal
from riprap.linalg import FlatVector, VectorStack

CONFLICT_TOLERANCE = 1e-7  # products below this share of both norms count as 0
REFRESH, PAPER_REFRESH = 20, 1  # default maximum age of the protected gradients, in steps


@dataclass(frozen=True)
class ConflictStats:
    """Inner products of the step and the protected vectors.

    The protected vector p_b of a behavior points where its loss grows or its margin shrinks. A
    step against p_b preserves the behavior, and ⟨g, p_b⟩ < 0 is a conflict.

    Attributes:
        products: ⟨g, p_b⟩, shape (n,).
        gram: ⟨p_a, p_b⟩, shape (n, n).
        squared_norm: ‖g‖².
        step: number of the step, as a seed for random draws.
    """

    products: np.ndarray
    gram: np.ndarray
    squared_norm: float
    step: int = 0

    @property
    def conflicting(self) -> np.ndarray:
        """Mask of the protected vectors that the step conflicts with, beyond rounding; (n,)."""
        sizes = np.sqrt(self.squared_norm * np.diag(self.gram))
        mask: np.ndarray = self.products < -CONFLICT_TOLERANCE * sizes
        return mask

    def products_after(self, scale: float, weights: np.ndarray) -> np.ndarray:
        """Return ⟨scale·g + Σ w_b p_b, p_a⟩ for each a, shape (n,)."""
        products: np.ndarray = scale * self.products + self.gram @ weights
        return products

    def length_after(self, scale: float, weights: np.ndarray) -> float:
        """Return ‖scale·g + Σ w_b p_b‖."""
        along = scale * (scale * self.squared_norm + 2 * float(weights @ self.products))
        return max(along + float(weights @ self.gram @ weights), 0.0) ** 0.5

    @property
    def length_ratios(self) -> np.ndarray:
        """Ratios ‖g‖/‖p_b‖, shape (n,); 0 where p_b is 0."""
        squares = np.diag(self.gram)
        zeros = np.zeros(len(squares))
        return np.sqrt(np.divide(self.squared_norm, squares, zeros, where=squares > 0))

    def rescaled(self, factors: np.ndarray) -> ConflictStats:
        """Return the statistics after multiplying each p_b by its factor; shape (n,)."""
        gram = np.outer(factors, factors) * self.gram
        return replace(self, products=factors * self.products, gram=gram)


@dataclass
class GradientSurgery(BehaviorGuard):
    """Base of guards that replace a conflicting g by scale·g + Σ w_b p_b.

    Args:
        behaviors: behaviors to protect, as objects or names; None: all monitored ones.
        of: "margin": p_b = −h_b, which stays large while the behavior is intact; "loss":
            p_b = g_b, as in the papers, which is nearly 0 then.
        refresh: maximum age of the protected gradients, in steps; None: 20, and 1 with the rules of
            the papers, for which an old g_b does harm.

    Raises:
        ConfigError: `of` is neither; in `start`, a behavior has no protected gradient.
    """

    of: str = "margin"

    acts_on_update: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.of not in ("margin", "loss"):
            raise self._error(f"of={self.of!r}; choose 'margin' or 'loss'")
        if self.refresh is None:
            self.refresh = PAPER_REFRESH if self.paper_rules else REFRESH

    @property
    def paper_rules(self) -> bool:
        """Whether the papers' rules apply without limits; see `NormalizedSurgery`."""
        return False

    @property
    def pulls(self) -> bool:
        """Whether the p_b are added to the step, not only subtracted from it."""
        return False

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Protected gradients that the guard reads."""
        return frozenset([self.of])

    @property
    def reads_gradients(self) -> bool:
        """Whether the guard changes the gradient."""
        return not self.acts_on_update

    @property
    def reads_updates(self) -> bool:
        """Whether the guard changes the update."""
        return self.acts_on_update

    @property
    def reads_interference(self) -> bool:  # type: ignore[override]
        """Whether the guard leaves out behaviors that are not below their start."""
        return self.pulls and not self.paper_rules

    def decide(self, conflict: ConflictStats) -> tuple[float, np.ndarray]:
        """Return (scale, weights w of shape (n,)); called only if there is a conflict."""
        raise NotImplementedError

    def start(self, view: GuardView) -> None:
        """Check that every protected behavior has a protected gradient."""
        self.select_behaviors(view)
        available = self._protected_vectors(view).names
        missing = [name for name in self.names if name not in available]
        if missing:
            what = "a margin" if self.of == "margin" else "losses"
            raise self._error(
                f"behavior {missing[0]!r} has no protected gradient; give it {what} attached to "
                "the graph"
            )

    def on_gradients(self, view: GuardView) -> Proposal | None:
        """Change the gradient if it conflicts."""
        return None if self.acts_on_update else self._operate_on(view, 1.0)

    def on_update(self, view: GuardView) -> Proposal | None:
        """Change the update if it conflicts; it has the opposite sign, Δθ ≈ −ηg."""
        return self._operate_on(view, -1.0) if self.acts_on_update else None

    def _protected_vectors(self, view: GuardView) -> VectorStack:
        gradients = view.protected_gradients
        return gradients.margin_gradients if self.of == "margin" else gradients.loss_gradients

    def _operate_on(self, view: GuardView, direction: float) -> Proposal | None:
        stack = self._protected_vectors(view)
        sick = stack.not_finite
        self.leave_out([name for name in self.names if name in sick], "the protected gradient")
        present = [name for name in self.names if name in stack.names and name not in sick]
        if not present:
            return Proposal(detail="nothing was done: there is no protected gradient")
        if self.pulls and not self.paper_rules:
            present = [name for name in present if _is_below_start(view, name)]
            if not present:
                return Proposal(detail="nothing to do: no protected margin is below its start")
        # p_b is −h_b or g_b; the update points against the gradient.
        sign = direction * (-1.0 if self.of == "margin" else 1.0)
        step = FlatVector(view.vector, stack.chunks)
        stack_products = stack.inner_products(step)
        index = [stack.names.index(name) for name in present]
        gram = stack.gram().double().cpu().numpy()[np.ix_(index, index)]
        products = sign * np.array([stack_products[name] for name in present])
        conflict = ConflictStats(products, gram, step.norm() ** 2, view.step)
        before = dict(zip(present, products.tolist(), strict=True))
        if not np.isfinite(products).all():
            detail = "nothing was done: the step is not finite"
            return Proposal(detail=detail, before=before)
        if not conflict.conflicting.any():
            detail = "nothing to do: the step goes against no protected behavior"
            return Proposal(detail=detail, before=before, after=before)
        names = [name for name, bad in zip(present, conflict.conflicting, strict=True) if bad]
        scale, weights = self.decide(conflict)
        if scale == 1.0 and not weights.any():
            detail = f"nothing was done: the step goes against {' and '.join(names)}, not the mean"
            return Proposal(detail=detail, before=before, after=before)
        base = view.vector if scale == 1.0 else [scale * part for part in view.vector]
        signed = dict(zip(present, (sign * weights).tolist(), strict=True))
        vector = stack.add_combination(base, signed)
        after = dict(zip(present, conflict.products_after(scale, weights).tolist(), strict=True))
        detail = _removal("gradient" if direction > 0 else "update", names, before, after)
        return Proposal(vector, detail, before, after)


def _is_below_start(view: GuardView, name: str) -> bool:
    """Return whether a behavior's mean margin, as predicted for now, is below its first value.

    The probes are always the same, so the difference is no sampling error. A margin has no maximum:
    a guard that pulls at one that is intact raises it without end, and the logits with it.
    """
    history = view.histories.get(name)
    if history is None or not history.steps:
        return True
    now = float(history.margins[-1].mean()) + history.interference_since_last_probe()
    return now < float(history.margins[0].mean())


def _removal(
    what: str, names: Sequence[str], before: Mapping[str, float], after: Mapping[str, float]
) -> str:
    """Say how much of a step's components against some behaviors was removed."""
    shares = {name: 1 - min(after[name], 0.0) / before[name] for name in names}
    parts = [f"{max(share, 0.0):.0%} of that against {name}" for name, share in shares.items()]
    parts[0] = parts[0].replace("of that", f"of the {what}'s component", 1)
    return "removed " + " and ".join(parts)


@dataclass
class NormalizedSurgery(GradientSurgery):
    """Base of surgeries whose result depends on the lengths of the p_b.

    A margin's gradient has another scale than a task loss, and a trainer clips the task gradient
    only, before the hook. So each p_b is first rescaled to the length of g.

    A margin has no maximum, and neither has a p_b that is rescaled. So the result is at most as
    long as g, and a guard that `pulls` leaves out the behaviors whose mean margin is not below its
    start. `of="loss", normalize=False` gives the rules of the papers, without these limits.

    Args:
        normalize: rescale each p_b; False uses the p_b unchanged, as the papers do with loss
            gradients.
    """

    normalize: bool = True

    @property
    def paper_rules(self) -> bool:
        """Whether the papers' rules apply without limits: of losses, not rescaled."""
        return self.of == "loss" and not self.normalize

    @property
    def may_increase_norm(self) -> bool:  # type: ignore[override]
        """Whether the result may be longer than g: only with the papers' rules."""
        return self.paper_rules

    def combine(self, conflict: ConflictStats) -> tuple[float, np.ndarray]:
        """Decide as in `decide`, on vectors that are already rescaled if `normalize` is set."""
        raise NotImplementedError

    def decide(self, conflict: ConflictStats) -> tuple[float, np.ndarray]:
        """Decide on rescaled p_b, and return the weights of the original ones."""
        ratios = conflict.length_ratios if self.normalize else np.ones(len(conflict.products))
        scale, weights = self.combine(conflict.rescaled(ratios))
        weights = weights * ratios
        if self.paper_rules:
            return scale, weights
        length, limit = conflict.length_after(scale, weights), conflict.squared_norm**0.5
        factor = limit / length if length > limit else 1.0
        return scale * factor, weights * factor
