"""Batches that a guard reads beyond the behaviours' probes, and the gradient of a loss on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from riprap.behaviors import device_of
from riprap.errors import ConfigError
from riprap.evaluation import Loss, loss_and_gradient, model_loss, to_device
from riprap.guards._base import Guard
from riprap.linalg import Vector


class BatchCycler:
    """Protected batches, gone through in their order and then again from the first.

    Every rank must be given the same batches: what is worked out of them is not averaged.

    Args:
        guard: name of the guard they belong to, for messages.
        batches: at least one; whatever `loss` takes.
        loss: loss(model, batch), a scalar; None: `own_loss`.

    Attributes:
        position: index of the batch that is next.

    Raises:
        ConfigError: there is no batch, or they cannot be gone through again.
    """

    def __init__(self, guard: str, batches: Sequence[Any], loss: Loss | None = None) -> None:
        if not hasattr(batches, "__getitem__") or not hasattr(batches, "__len__"):
            raise ConfigError(
                f"guard {guard}: batches is a {type(batches).__name__}; give a list of batches, "
                "which can be gone through again"
            )
        if len(batches) == 0:
            raise ConfigError(f"guard {guard} protects nothing: give at least one batch")
        self.guard, self.batches, self.loss = guard, batches, loss or model_loss
        self.position = 0

    def __len__(self) -> int:
        return len(self.batches)

    def next_batch(self, model: nn.Module) -> Any:
        """The next batch, on the model's device."""
        batch = self.batches[self.position]
        self.position = (self.position + 1) % len(self.batches)
        return to_device(batch, device_of(model))

    def gradient(self, model: nn.Module, parameters: Sequence[Tensor]) -> tuple[float, Vector]:
        """The loss on the next batch and its gradient, in evaluation mode, leaving no trace.

        Raises:
            ConfigError: the loss depends on none of `parameters`.
        """
        value, gradient = loss_and_gradient(self.loss, model, self.next_batch(model), parameters)
        if gradient is None:
            raise ConfigError(
                f"guard {self.guard}: the loss of a protected batch depends on no trained parameter"
            )
        return value, gradient

    def check(self, model: nn.Module, parameters: Sequence[Tensor]) -> None:
        """Read the next batch without going on: what cannot work is known before the first step.

        Raises:
            ConfigError: see `gradient`.
        """
        position = self.position
        self.gradient(model, parameters)
        self.position = position

    def state_dict(self) -> dict[str, Any]:
        """Where it stands."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.position = state["position"] % len(self.batches)


@dataclass
class CyclingGuard(Guard):
    """A guard whose state says which protected batch is next.

    Attributes:
        protected: the batches; None where it reads none.
    """

    cycler: BatchCycler | None = field(default=None, init=False, repr=False)

    def state_dict(self) -> dict[str, Any]:
        """What it remembers, and which batch is next."""
        batches = None if self.cycler is None else self.cycler.state_dict()
        return {**super().state_dict(), "batches": batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        super().load_state_dict(state)
        if self.cycler is not None:
            self.cycler.load_state_dict(state["batches"])


@dataclass
class BatchGuard(CyclingGuard):
    """A guard that reads protected batches in a way of its own.

    Args:
        batches: gone through in their order, again and again; see `Protected`.

    Raises:
        ConfigError: there is no batch.
    """

    batches: Sequence[Any]
    protected: BatchCycler = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.protected = BatchCycler(self.name, self.batches)


@dataclass
class FromBatches(BatchGuard):
    """A guard that reads protected batches by a loss.

    Args:
        loss: loss(model, batch), a scalar; None: the model's own, `model(**batch).loss`.
    """

    loss: Loss | None = None

    def __post_init__(self) -> None:
        self.protected = BatchCycler(self.name, self.batches, self.loss)
