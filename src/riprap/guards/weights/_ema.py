"""EMA: the weights are drawn back to the running average of where they have been."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from riprap.errors import ConfigError
from riprap.guards._base import Guard, GuardView, Proposal
from riprap.linalg import Vector, to_local, norm, as_sharded, subtract, upcast_vector


@dataclass
class EMA(Guard):
    """θ̄ ← decay · θ̄ + (1 − decay) · θ after each step, from θ̄ = θ₀; each `every` steps θ ← θ̄.

    The average lags behind, on the side of θ₀, and training goes on from it. With `every=1` the
    two are always equal, and a step is only (1 − decay) of what it was: the same as a lower
    learning rate. `every=None` only averages: call `put` on the parameters when training is over.
    The optimizer's state stays as it is.

    Args:
        decay: 0 to 1, 1 excluded.
        every: steps from one pull to the next; None: never.

    Attributes:
        average: θ̄ in at least float32, one tensor a parameter.

    Source: after Kim et al., 2508.12531 (an average in parameter space, used on the path of
    training); with `every` > 1 it is also Lookahead's slow weights, 1907.08610. Variant: the
    paper's own schedule was not at hand.

    Raises:
        ConfigError: `decay` or `every` are out of range.
    """

    decay: float = 0.9
    every: int | None = 10
    average: Vector = field(default_factory=list, init=False, repr=False)

    name: ClassVar[str] = "ema"
    field_of_origin: ClassVar[str] = "safety"
    source: ClassVar[str] = "2508.12531"
    fidelity: ClassVar[str] = "variant"
    state_attrs: ClassVar[tuple[str, ...]] = ("average",)

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1 or (self.every is not None and self.every < 1):
            raise ConfigError(
                f"guard {self.name}: decay={self.decay}, every={self.every}; decay lies between 0 "
                "and 1 (excluded), every is a number of steps or None"
            )

    def start(self, view: GuardView) -> None:
        """The average begins at θ₀."""
        self.average = [part.clone() for part in upcast_vector(view.parameters)]

    def on_update(self, view: GuardView) -> Proposal | None:
        """Go on averaging; at each `every` steps, let the step lead to the average."""
        # Where the update led, and not the parameters: a guard before this one may have bent it.
        own = [to_local(part) for part in view.vector]
        now = torch._foreach_add(upcast_vector(view.before), own)
        torch._foreach_lerp_(self.average, now, 1 - self.decay)
        if self.every is None or view.step % self.every:
            return None
        update = subtract(self.average, upcast_vector(view.before))
        size = float(norm(view.vector))
        after = {"norm": float(norm(as_sharded(update, view.parameters)))}
        return Proposal(update, "back to the average", {"norm": size}, after)

    @torch.no_grad()
    def copy_to(self, parameters: Sequence[Tensor]) -> None:
        """Write the average into the weights.

        Args:
            parameters: the trained ones, in the optimizer's order.

        Raises:
            ConfigError: they are not those that were averaged.
        """
        shapes = [part.shape for part in self.average]
        if [to_local(parameter).shape for parameter in parameters] != shapes:
            raise ConfigError(
                f"guard {self.name}: the parameters are not those that were averaged; give the "
                "trained ones in the optimizer's order, after the run has begun"
            )
        for parameter, part in zip(parameters, self.average, strict=True):
            to_local(parameter).copy_(part)
