"""Protected gradients of all behaviors, shared by the monitor, its signals and its guard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from torch import Tensor

from riprap.evaluation._probe_pass import ProbeResult
from riprap.linalg import Vector, VectorStack
from riprap.record import check_fields


@dataclass
class ProtectedGradients:
    """Protected gradients of the last gradient refresh.

    Attributes:
        step: optimizer steps taken before the refresh.
        margin_gradients: h_b = ∇ mean margin of each behavior with a differentiable margin.
        loss_gradients: g_b = ∇ mean loss of each behavior with losses, where something reads it.
    """

    step: int = 0
    margin_gradients: VectorStack = field(default_factory=lambda: VectorStack({}))
    loss_gradients: VectorStack = field(default_factory=lambda: VectorStack({}))

    @classmethod
    def from_results(
        cls,
        step: int,
        results: Mapping[str, ProbeResult],
        loss_gradients: dict[str, Vector] | None = None,
        storage: str = "float32",
    ) -> Self:
        """Stack the gradients of an evaluation's results.

        Args:
            results: by behavior; those without a gradient are left out.
            loss_gradients: by behavior.
            storage: see `riprap.linalg.VectorStack`.
        """
        margins = {name: r.gradient for name, r in results.items() if r.gradient is not None}
        return cls(step, VectorStack(margins, storage), VectorStack(loss_gradients or {}, storage))

    @classmethod
    def reserve(cls, step: int, n_behaviors: int, storage: str = "float32") -> Self:
        """Return gradients of no behavior yet, with room for so many; see `take`."""
        return cls(step, *(VectorStack({}, storage, n_behaviors) for _ in range(2)))

    def take(self, results: Mapping[str, ProbeResult]) -> None:
        """Move the gradients of results into the stack, so that there are no two copies of all."""
        for name, result in results.items():
            if result.gradient is not None:
                self.margin_gradients.add(name, result.gradient)
                result.gradient = None

    @property
    def nbytes(self) -> int:
        """Memory of all gradients on this rank."""
        return self.margin_gradients.nbytes + self.loss_gradients.nbytes

    def state_dict(self) -> dict[str, Any]:
        """Return step and gradients as plain values and tensors."""
        margins, losses = self.margin_gradients.state_dict(), self.loss_gradients.state_dict()
        return {"step": self.step, "margin_gradients": margins, "loss_gradients": losses}

    @classmethod
    def from_state(cls, state: dict[str, Any], parameters: Sequence[Tensor]) -> Self:
        """Rebuild from `state_dict`, over the trained parameters.

        Raises:
            ValueError: the state is malformed, or has other shapes than the parameters.
        """
        check_fields(state, step=int, margin_gradients=dict, loss_gradients=dict)
        stacks = [state["margin_gradients"], state["loss_gradients"]]
        return cls(state["step"], *(VectorStack.from_state(stack, parameters) for stack in stacks))
