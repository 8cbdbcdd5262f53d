"""Gradient surgery: the step plus a combination of protected gradients, decided on their Gramian.

A surgery is a pure function of small arrays; what it decides is applied here, once for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from riprap.behaviors import Behavior
from riprap.errors import ConfigError
from riprap.guards._base import Guard, GuardView, Proposal, behavior_names
from riprap.linalg import FlatVector, VectorStack

CONFLICT_TOLERANCE = 1e-7  # of the two norms: products this near to 0 are 0


@dataclass(frozen=True)
class ConflictStats:
    """What a surgery decides on.

    The protected vector p_b of a behaviour points where its loss grows or its margin shrinks, so
    that a step against p_b keeps it, and ⟨g, p_b⟩ < 0 is a conflict.

    Attributes:
        products: ⟨g, p_b⟩, shape (n,).
        gram: ⟨p_a, p_b⟩, shape (n, n).
        square: ‖g‖².
        step: number of the step, for what is drawn at random.
    """

    products: np.ndarray
    gram: np.ndarray
    squared_norm: float
    step: int = 0

    @property
    def conflicting(self) -> np.ndarray:
        """Which protected gradients the step conflicts with, beyond rounding; shape (n,)."""
        sizes = np.sqrt(self.squared_norm * np.diag(self.gram))
        found: np.ndarray = self.products < -CONFLICT_TOLERANCE * sizes
        return found

    def products_after(self, scale: float, weights: np.ndarray) -> np.ndarray:
        """⟨scale·g + Σ w_b p_b, p_a⟩ for each a, shape (n,)."""
        found: np.ndarray = scale * self.products + self.gram @ weights
        return found

    @property
    def length_ratios(self) -> np.ndarray:
        """‖g‖/‖p_b‖, shape (n,); 0 where p_b is 0."""
        squares = np.diag(self.gram)
        return np.sqrt(np.divide(self.squared_norm, squares, np.zeros(len(squares)), where=squares > 0))

    def rescaled(self, factors: np.ndarray) -> ConflictStats:
        """The same with every p_b multiplied by its factor; shape (n,)."""
        return replace(self, products=factors * self.products, gram=np.outer(factors, factors) * self.gram)


@dataclass
class GradientSurgery(Guard):
    """A guard that replaces g by scale·g + Σ w_b p_b where it conflicts.

    Args:
        behaviors: what to protect, by behaviour or by name; None: all that are watched.
        of: "margin": p_b = −h_b, which stays large while the behaviour is at its best; "loss":
            p_b = g_b, as the papers have it, which is nearly 0 then.
        refresh: protected gradients are taken afresh at least so often, in steps.
    """

    behaviors: Sequence[Behavior | str] | None = None
    of: str = "margin"
    refresh: int | None = field(default=20, kw_only=True)
    names: list[str] = field(default_factory=list, init=False, repr=False)

    acts_on_update: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.of not in ("margin", "loss"):
            raise ConfigError(f"guard {self.name}: of={self.of!r}; choose 'margin' or 'loss'")

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """The protected gradients that it reads."""
        return frozenset([self.of])

    def decide(self, conflict: ConflictStats) -> tuple[float, np.ndarray]:
        """Scale of g and weights of the p_b, given that some of them conflict.

        Returns:
            (scale, weights of shape (n,)).
        """
        raise NotImplementedError

    def start(self, view: GuardView) -> None:
        """Check that every protected behaviour has a gradient."""
        self.names = behavior_names(self.name, self.behaviors, view.behaviors)
        lacking = [name for name in self.names if name not in self._protected_vectors(view).names]
        if lacking:
            what = "margin" if self.of == "margin" else "losses"
            raise ConfigError(
                f"guard {self.name}: behaviour {lacking[0]!r} has no protected gradient; give it "
                f"a {what} attached to the graph"
            )

    def on_gradients(self, view: GuardView) -> Proposal | None:
        """Operate on the gradient."""
        return None if self.acts_on_update else self._operate_on(view, 1.0)

    def on_update(self, view: GuardView) -> Proposal | None:
        """Operate on the update, which goes the other way: Δθ ≈ −ηg."""
        return self._operate_on(view, -1.0) if self.acts_on_update else None

    def _protected_vectors(self, view: GuardView) -> VectorStack:
        return view.protected_gradients.margin_gradients if self.of == "margin" else view.protected_gradients.loss_gradients

    def _operate_on(self, view: GuardView, sign: float) -> Proposal | None:
        stack = self._protected_vectors(view)
        present = [name for name in self.names if name in stack.names]
        if not present:
            return Proposal(detail="no protected gradient could be taken")
        # p_b is −h_b or g_b; the update points against the gradient.
        turn = sign * (-1.0 if self.of == "margin" else 1.0)
        joined = FlatVector(view.vector, stack.chunks)
        every = stack.inner_products(joined)
        index = [stack.names.index(name) for name in present]
        gram = stack.gram().double().cpu().numpy()[np.ix_(index, index)]
        products = turn * np.array([every[name] for name in present])
        conflict = ConflictStats(products, gram, joined.norm() ** 2, view.step)
        before = dict(zip(present, products.tolist(), strict=True))
        if not np.isfinite(products).all():
            return Proposal(detail="the step or a protected gradient is not finite", before=before)
        if not conflict.conflicting.any():
            return Proposal(detail="no conflict", before=before, after=before)
        against = [name for name, bad in zip(present, conflict.conflicting, strict=True) if bad]
        detail = f"conflict with {', '.join(against)}"
        scale, weights = self.decide(conflict)
        if scale == 1.0 and not weights.any():
            return Proposal(detail=f"{detail} is let pass", before=before, after=before)
        step = view.vector if scale == 1.0 else [scale * part for part in view.vector]
        vector = stack.add_combination(step, dict(zip(present, (turn * weights).tolist(), strict=True)))
        after = dict(zip(present, conflict.products_after(scale, weights).tolist(), strict=True))
        return Proposal(vector, detail, before, after)


@dataclass
class NormalizedSurgery(GradientSurgery):
    """A surgery whose result depends on how long the p_b are, not on their directions alone.

    A margin's gradient is not of the scale of a task's loss, and a trainer that clips has done so
    before the hook, to the task gradient only. So each p_b is first brought to the length of g.

    Args:
        scaled: do so; False: take the p_b as they are, as the papers do with gradients of losses.
    """

    normalize: bool = True

    def combine(self, conflict: ConflictStats) -> tuple[float, np.ndarray]:
        """As `decide`, in the scale that was asked for."""
        raise NotImplementedError

    def decide(self, conflict: ConflictStats) -> tuple[float, np.ndarray]:
        """Scale of g and weights of the p_b as they came."""
        if not self.normalize:
            return self.combine(conflict)
        by = conflict.length_ratios
        scale, weights = self.combine(conflict.rescaled(by))
        return scale, weights * by
