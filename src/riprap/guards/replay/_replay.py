"""Replay: a share of each update comes from old examples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from riprap.errors import ConfigError
from riprap.guards._base import Guard, GuardView, Proposal
from riprap.guards.replay._batches import BatchCycler, Loss
from riprap.guards.replay._self_distillation_buffer import SelfDistillationBuffer
from riprap.linalg import Vector, add, inner_products, norm


@dataclass
class Replay(Guard):
    """g ← (1 − f) g + f g_r, with g_r the gradient on old examples.

    As if the share f of the batch had been old examples (Robins 1995; Chaudhry et al.,
    1902.10486), whatever way the trainer makes its batches, accumulates or clips. Simplified: old
    examples are read in evaluation mode, without dropout.

    Args:
        batches: old batches, gone through again and again, or `Pools` of the behaviours' spare
            probes.
        loss: loss(model, batch), a scalar; None: the model's own, `model(**batch).loss`. `Pools`
            have a loss of their own.
        fraction: the share f, in (0, 1).
        every: only at each so many steps; the passes over old examples are what it costs.

    Raises:
        ConfigError: no batches, or a share outside (0, 1).
    """

    batches: Sequence[Any] | SelfDistillationBuffer
    loss: Loss | None = None
    fraction: float = 0.25
    every: int = 1
    examples: SelfDistillationBuffer | BatchCycler = field(init=False, repr=False)

    name: ClassVar[str] = "replay"
    field_of_origin: ClassVar[str] = "continual learning"
    fidelity: ClassVar[str] = "simplified"
    may_increase_norm: ClassVar[bool] = True
    projects: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1 or self.every < 1:
            raise ConfigError(
                f"guard {self.name}: fraction={self.fraction}, every={self.every}; the share lies "
                "between 0 and 1, and every is at least 1"
            )
        if isinstance(self.batches, SelfDistillationBuffer):
            self.examples = self.batches
        else:
            self.examples = BatchCycler(self.name, self.batches, self.loss)

    def start(self, view: GuardView) -> None:
        """Keep what the start puts out, or see that there is a loss to learn again by.

        Raises:
            ConfigError: there is none, or it depends on no trained parameter; see `Pools.start`.
        """
        if isinstance(self.examples, SelfDistillationBuffer):
            self.examples.start(view)
        else:
            self.examples.check(view.model, view.parameters)

    def on_gradients(self, view: GuardView) -> Proposal | None:
        """Mix the old examples in."""
        if view.step % self.every:
            return None
        return self._mix(view, self.fraction, dict.fromkeys(view.behaviors, 1.0))

    def _mix(self, view: GuardView, fraction: float, shares: Mapping[str, float]) -> Proposal:
        loss, old = self._replay_gradient(view, shares)
        if old is None:
            return Proposal(detail="the old examples' loss depends on no trained parameter")
        product = float(inner_products(view.vector, [old])[0])
        square = float(norm(old)) ** 2
        left = (1 - fraction) * product + fraction * square
        # What still goes against the old examples is taken out, where that is asked for.
        lift = -left / square if self.projects and left < 0 else 0.0
        task = [part * (1 - fraction) for part in view.vector]
        vector = add(task, old, fraction + lift)
        before = {"loss": loss, "product": product, "norm": float(norm(view.vector))}
        if not math.isfinite(product + square):
            why = "the step or the old examples' gradient is not finite"
            return Proposal(detail=why, before=before)
        after = {"product": left + lift * square, "norm": float(norm(vector))}
        detail = f"a share of {fraction:.2g}" + (", projected" if lift else "")
        return Proposal(vector, detail, before, after)

    def _replay_gradient(self, view: GuardView, shares: Mapping[str, float]) -> tuple[float, Vector | None]:
        if isinstance(self.examples, BatchCycler):
            return self.examples.gradient(view.model, view.parameters)
        known = {name: share for name, share in shares.items() if name in self.examples.behaviors}
        return self.examples.gradient(view.model, view.parameters, known)

    def state_dict(self) -> dict[str, Any]:
        """What it remembers, and where the old examples stand."""
        return {**super().state_dict(), "examples": self.examples.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        super().load_state_dict({k: v for k, v in state.items() if k != "examples"})
        self.examples.load_state_dict(state["examples"])
