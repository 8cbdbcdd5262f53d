"""Replay: mix the gradient on old examples into each step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from riprap.evaluation import Loss
from riprap.guards._base import Guard, GuardView, Proposal
from riprap.guards.replay._batches import BatchCycler
from riprap.guards.replay._self_distillation_buffer import SelfDistillationBuffer
from riprap.linalg import add, inner_products, norm

# The gradient on old examples that is added to the whole task's gradient is at most so long, in
# units of the task's.
LONGEST = 1.0


@dataclass
class Replay(Guard):
    """g ← (1 − f) g + f g_r, with g_r the gradient on old examples.

    Equivalent to a batch with the share f of old examples (Robins 1995; Chaudhry et al.,
    1902.10486), independent of how the trainer builds batches, accumulates and clips. Simplified:
    old examples are read in evaluation mode, without dropout.

    Args:
        batches: old batches, read in turn, or a `SelfDistillationBuffer`.
        loss: loss(model, batch), a scalar; None: the model's own, `model(**batch).loss`. Not used
            with a `SelfDistillationBuffer`, which has its own loss.
        fraction: the share f, in (0, 1).
        every: interval of the steps with replay; each costs a pass over old examples.

    Raises:
        ConfigError: there are no batches, or `fraction` or `every` is out of range; in `start`, the
            loss is missing or depends on no trained parameter.
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

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1 or self.every < 1:
            raise self._error(
                f"fraction={self.fraction}, every={self.every}; fraction must lie between 0 and 1, "
                "and every must be at least 1"
            )
        if isinstance(self.batches, SelfDistillationBuffer):
            self.examples = self.batches
        else:
            self.examples = BatchCycler(self.name, self.batches, self.loss)

    def start(self, view: GuardView) -> None:
        """Store the initial outputs of the buffer, or check the loss on the batches."""
        if isinstance(self.examples, SelfDistillationBuffer):
            self.examples.start(view)
        else:
            self.examples.check(view.model, view.parameters)

    @property
    def doubts(self) -> dict[str, str]:
        """Sentences on the examples of a buffer; see `Guard.doubts`."""
        examples = self.examples
        return examples.doubts if isinstance(examples, SelfDistillationBuffer) else {}

    def on_gradients(self, view: GuardView) -> Proposal | None:
        """Mix in the gradient on old examples."""
        if view.step % self.every:
            return None
        return self._mix(view, self.fraction, dict.fromkeys(view.behaviors, 1.0))

    def _mix(
        self, view: GuardView, fraction: float, shares: Mapping[str, float], whole: bool = False
    ) -> Proposal:
        """Propose the mixture.

        With `whole` it is divided by 1 − f, so that the task's part is not shortened, and g_r is
        at most as long as g: old examples can stop the new learning, but not outrun it.
        """
        if isinstance(self.examples, SelfDistillationBuffer):
            known = {n: share for n, share in shares.items() if n in self.examples.behaviors}
            loss, replay = self.examples.gradient(view.model, view.parameters, known)
            self.leave_out(self.examples.left_out, "the loss on old examples")
        else:
            loss, replay = self.examples.gradient(view.model, view.parameters)
        if replay is None:
            return Proposal(
                detail="nothing was done: the loss on old examples depends on no trained parameter"
            )
        product = float(inner_products(view.vector, [replay])[0])
        square = float(norm(replay)) ** 2
        before = {"loss": loss, "product": product, "norm": float(norm(view.vector))}
        if not math.isfinite(product + square):
            detail = "nothing was done: the step or the gradient on old examples is not finite"
            return Proposal(detail=detail, before=before)
        norms = before["norm"] * square**0.5
        before["cosine"] = product / norms if norms > 0 else 0.0
        task, old = (1.0, fraction / (1 - fraction)) if whole else (1 - fraction, fraction)
        if whole and square > 0:
            old *= min(1.0, LONGEST * before["norm"] / square**0.5)
        vector = add([part * task for part in view.vector], replay, old)
        product = task * product + old * square
        after = {"product": product, "norm": float(norm(vector))}
        lengths = task * before["norm"], old * square**0.5
        share = lengths[1] / sum(lengths) if any(lengths) else 0.0
        detail = f"{share:.0%} of the step's length comes from old examples"
        return Proposal(vector, detail, before, after)

    def state_dict(self) -> dict[str, Any]:
        """Return the guard's state and that of the old examples."""
        return {**super().state_dict(), "examples": self.examples.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        super().load_state_dict({k: v for k, v in state.items() if k != "examples"})
        self.examples.load_state_dict(state["examples"])
