"""EMA: average the weights during training, and reset them to the average if asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from riprap.guards._base import Guard, GuardView, Proposal
from riprap.linalg import Vector, as_sharded, norm, subtract, to_local, upcast_vector


@dataclass
class EMA(Guard):
    """θ̄ ← decay · θ̄ + (1 − decay) · θ after each step, from θ̄ = θ₀; each `every` steps θ ← θ̄.

    By default the guard only averages, which leaves training unchanged: call `copy_to` on the
    parameters after training. With `every` training continues from the average, which lags behind
    θ, on the side of θ₀: like a lower learning rate it keeps more and learns less. With `every=1`
    each step is multiplied by (1 − decay). The optimizer's state is unchanged.

    Args:
        decay: 0 to 1, 1 excluded.
        every: steps between two resets to the average; None: never.

    Attributes:
        average: θ̄ in at least float32, one tensor a parameter.

    Source: after Kim et al., 2508.12531 (parameter averaging during training); with `every` > 1
    these are also Lookahead's slow weights, 1907.08610. Variant: the paper's schedule was not
    available.

    Raises:
        ConfigError: `decay` or `every` is out of range.
    """

    decay: float = 0.9
    every: int | None = None
    average: Vector = field(default_factory=list, init=False, repr=False)
    told: bool = field(default=False, init=False, repr=False)

    name: ClassVar[str] = "ema"
    field_of_origin: ClassVar[str] = "safety"
    source: ClassVar[str] = "2508.12531"
    fidelity: ClassVar[str] = "variant"
    state_attrs: ClassVar[tuple[str, ...]] = ("average", "told")

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1 or (self.every is not None and self.every < 1):
            raise self._error(
                f"decay={self.decay}, every={self.every}; decay must lie between 0 and 1 "
                "(excluded), and every must be a number of steps or None"
            )

    def start(self, view: GuardView) -> None:
        """Start the average at θ₀."""
        self.told = False
        self.average = [part.clone() for part in upcast_vector(view.parameters)]

    def extend(self, view: GuardView, joined: Sequence[int]) -> None:
        """Start the average of the parameters that join at their present values."""
        for index in joined:
            self.average.insert(index, upcast_vector([view.parameters[index]])[0].clone())

    def on_update(self, view: GuardView) -> Proposal | None:
        """Update the average; every `every` steps, propose the update that leads to it."""
        # Not the parameters themselves: an earlier guard in a chain may have changed the update.
        applied = [to_local(part) for part in view.vector]
        now = torch._foreach_add(upcast_vector(view.before), applied)
        torch._foreach_lerp_(self.average, now, 1 - self.decay)
        if self.every is None and not self.told:
            self.told = True
            return Proposal(detail="only averages the weights: after training call copy_to")
        if self.every is None or view.step % self.every:
            return None
        update = subtract(self.average, upcast_vector(view.before))
        before = {"norm": float(norm(view.vector))}
        after = {"norm": float(norm(as_sharded(update, view.parameters)))}
        return Proposal(update, "reset the weights to their running average", before, after)

    @torch.no_grad()
    def copy_to(self, parameters: Sequence[Tensor]) -> None:
        """Write the average into the trained parameters, given in the optimizer's order.

        Raises:
            ConfigError: the shapes differ from those of the averaged parameters.
        """
        shapes = [part.shape for part in self.average]
        if [to_local(parameter).shape for parameter in parameters] != shapes:
            raise self._error(
                "the parameters differ from the averaged ones; give the trained ones in the "
                "optimizer's order, after the run has begun"
            )
        for parameter, part in zip(parameters, self.average, strict=True):
            to_local(parameter).copy_(part)
