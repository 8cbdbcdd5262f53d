"""SafeAnchor: project away from the leading Fisher directions, and repair after a fall."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from riprap._distributed import has_sharded_parameters
from riprap.detectors import score
from riprap.evaluation import Loss
from riprap.guards._base import BehaviorGuard, GuardView, Proposal
from riprap.guards.replay import BatchCycler, SelfDistillationBuffer
from riprap.linalg import Vector, add, norm, upcast


@dataclass
class SafeAnchor(BehaviorGuard):
    """g_i ← g_i − (1 − α_i) V_i V_iᵀ g_i for each trained tensor i; after a fall, + β g_r.

    V_i has the fewest eigenvectors of the tensor's empirical Fisher at θ₀ over the probes that hold
    `energy` of its trace. α_i = max(0, 1 − λ tr F_i / mean tr F), so that tensors with little of
    the Fisher are constrained less. If a probe evaluation finds a score below (1 − τ) of its first
    value, the next `repair_steps` steps add β g_r, the gradient on old examples.

    The paper also adds 0.1 ∇KL on safety prompts: `Chain(SafeAnchor(...), KL(strength=0.1))`.

    Args:
        behaviors: behaviors to protect, as objects or names; None: all monitored ones.
        replay: source of old examples: batches, or a `SelfDistillationBuffer`; None: no repair.
        loss: loss(model, batch), a scalar; None: the model's own. Not used with a buffer.
        of: "loss", as in the paper, or "margin".
        energy: ρ; `strictness`: λ; `tolerance`: τ; `beta`: β.
        normalize: divide the traces by their mean over tensors; False: the paper's rule, which does
            nothing where the model is certain, and its Fisher nearly 0.
        repair_steps: steps of a repair.
        max_probes: number of probes of which the Fisher is estimated, in equal shares.

    Source: Guo et al., 2604.17691, and the authors' code. Variant: traces relative to their mean;
    tensors of any kind, not only a LoRA's; a repair at any probe evaluation; its gradient is not
    projected; and V stays that of the start of the watch.

    Raises:
        ConfigError: an argument is out of range; in `start`, a behavior has no gradient, parameters
            are sharded over ranks, or `replay` cannot be used.
    """

    replay: Sequence[Any] | SelfDistillationBuffer | None = field(default=None, kw_only=True)
    loss: Loss | None = field(default=None, kw_only=True)
    of: str = field(default="loss", kw_only=True)
    energy: float = field(default=0.9, kw_only=True)
    strictness: float = field(default=0.5, kw_only=True)
    normalize: bool = field(default=True, kw_only=True)
    tolerance: float = field(default=0.05, kw_only=True)
    repair_steps: int = field(default=200, kw_only=True)
    beta: float = field(default=1.0, kw_only=True)
    max_probes: int = field(default=48, kw_only=True)
    examples: SelfDistillationBuffer | BatchCycler | None = field(init=False, repr=False)
    bases: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)
    relaxations: dict[int, float] = field(default_factory=dict, init=False, repr=False)
    repair_until: int = field(default=0, init=False, repr=False)
    told_fallen: list[str] = field(default_factory=list, init=False, repr=False)
    undirected: tuple[str, ...] = field(default=(), init=False, repr=False)

    name: ClassVar[str] = "safe_anchor"
    per_parameter: ClassVar[bool] = True
    field_of_origin: ClassVar[str] = "safety"
    source: ClassVar[str] = "2604.17691"
    fidelity: ClassVar[str] = "variant"
    may_increase_norm: ClassVar[bool] = True
    state_attrs: ClassVar[tuple[str, ...]] = (
        "bases",
        "relaxations",
        "repair_until",
        "told_fallen",
    )

    def __post_init__(self) -> None:
        in_range = 0 < self.energy <= 1 and 0 <= self.tolerance < 1 and self.strictness >= 0
        if not in_range or min(self.repair_steps, self.max_probes) < 1 or not self.beta > 0:
            raise self._error(
                f"energy={self.energy}, tolerance={self.tolerance}, strictness={self.strictness}, "
                f"beta={self.beta}, repair_steps={self.repair_steps}, max_probes="
                f"{self.max_probes}; energy must lie in (0, 1], tolerance in [0, 1), strictness be "
                "0 or more, beta above 0, and the others at least 1"
            )
        if self.of not in ("loss", "margin"):
            raise self._error(f"of={self.of!r}; choose 'loss' or 'margin'")
        if self.replay is None or isinstance(self.replay, SelfDistillationBuffer):
            self.examples = self.replay
        else:
            self.examples = BatchCycler(self.name, self.replay, self.loss)

    def start(self, view: GuardView) -> None:
        """Compute the directions at θ₀, and check or prepare the old examples."""
        behaviors = self.select_behaviors(view)
        if has_sharded_parameters(view.model):
            raise self._error("a model sharded over ranks is not supported; use AGEM or KL")
        share = max(self.max_probes // len(behaviors), 1)
        rows = self.finite_probe_gradients(view, share, self.of)
        self.undirected = self.left_out
        self._find_directions(view, rows)
        if isinstance(self.examples, BatchCycler):
            self.examples.check(view.model, view.parameters)
        elif self.examples is not None:
            self.examples.start(view)

    @property
    def doubts(self) -> dict[str, str]:
        """Sentences on the examples of a buffer; see `Guard.doubts`."""
        examples = self.examples
        return examples.doubts if isinstance(examples, SelfDistillationBuffer) else {}

    def _find_directions(self, view: GuardView, rows: list[Vector]) -> None:
        self.bases, self.repair_until, self.told_fallen = {}, 0, []
        traces: dict[int, float] = {}
        for at, parts in enumerate(zip(*rows, strict=True)):
            gradients = upcast(torch.stack([part.reshape(-1) for part in parts]))
            basis, traces[at] = leading_directions(gradients / len(rows) ** 0.5, self.energy)
            if basis.shape[1]:
                self.bases[at] = basis
        self.warn_of_unprotected(view, [torch.tensor(trace) for trace in traces.values()])
        mean = sum(traces.values()) / len(traces) if self.normalize else 1.0
        self.relaxations = {
            at: max(0.0, 1 - self.strictness * traces[at] / mean) for at in self.bases
        }

    def on_gradients(self, view: GuardView) -> Proposal | None:
        """Remove the protected directions, and add the gradient on old examples in a repair."""
        self.left_out = self.undirected
        vector = list(view.vector)
        for at, basis in self.bases.items():
            flat, own = upcast(vector[at]).reshape(-1), basis.to(vector[at].device)
            away = own @ (own.T.to(flat) @ flat).to(own)
            part = flat - (1 - self.relaxations[at]) * away
            vector[at] = part.view(view.vector[at].shape).to(view.vector[at].dtype)
        before, after = {"norm": float(norm(view.vector))}, {"norm": float(norm(vector))}
        share = 1 - after["norm"] / before["norm"] if before["norm"] > 0 else 0.0
        detail = f"removed {share:.0%} of the gradient's length, along protected directions"
        if view.step <= self.repair_until and self.examples is not None:
            loss, replay = self._old_gradient(view)
            if replay is None or not torch.isfinite(norm(replay)):
                detail += "; no repair: the gradient on old examples is not finite"
            else:
                vector, before["loss"] = add(vector, replay, self.beta), loss
                detail += f"; a repair until step {self.repair_until}: added old examples"
        return Proposal(vector, detail, before, after)

    def _old_gradient(self, view: GuardView) -> tuple[float, Vector | None]:
        assert self.examples is not None
        if isinstance(self.examples, BatchCycler):
            return self.examples.gradient(view.model, view.parameters)
        shares = dict.fromkeys(self.examples.behaviors, 1.0)
        loss, gradient = self.examples.gradient(view.model, view.parameters, shares)
        sick = dict.fromkeys((*self.undirected, *self.examples.left_out))
        self.leave_out(sick, "the loss on old examples")
        return loss, gradient

    def on_probe_evaluation(self, view: GuardView) -> Proposal | None:
        """Begin a repair of scores that have fallen, or say once that there is none."""
        if view.step < self.repair_until:
            return None
        fallen: dict[str, str] = {}
        for name in self.names:
            margins = view.histories[name].margins
            if margins and score(margins[-1]) < (1 - self.tolerance) * score(margins[0]):
                fell = f"{name} ({score(margins[0]):.2f} to {score(margins[-1]):.2f})"
                fallen[name] = fell
        if self.examples is None:
            fallen = {name: fell for name, fell in fallen.items() if name not in self.told_fallen}
            self.told_fallen += fallen
        if not fallen:
            return None
        told = ", ".join(fallen.values())
        if self.examples is None:
            return Proposal(detail=f"no repair of {told}: give replay=...")
        self.repair_until = view.step + self.repair_steps
        return Proposal(detail=f"begins a repair of {told}")

    def state_dict(self) -> dict[str, Any]:
        """Return the guard's state and that of the old examples."""
        examples = None if self.examples is None else self.examples.state_dict()
        return {**super().state_dict(), "examples": examples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        super().load_state_dict(state)
        if self.examples is not None:
            self.examples.load_state_dict(state["examples"])


def leading_directions(rows: Tensor, energy: float) -> tuple[Tensor, float]:
    """Return the fewest leading right singular vectors, (d, k), that hold a share of Σ σ².

    Returns:
        the directions, and Σ σ².

    Args:
        rows: shape (n, d).
    """
    _, sizes, right = torch.linalg.svd(rows, full_matrices=False)
    energies = sizes.square()
    total = float(energies.sum())
    if not total > 0:
        return rows.new_zeros(rows.shape[1], 0), 0.0
    count = int((energies.cumsum(0) < energy * total * (1 - 1e-6)).sum()) + 1
    return right[:count].T.contiguous(), total
