"""Protected batches that a guard reads in turn, and the gradient of a loss on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from riprap.behaviors import device_of
from riprap.errors import ConfigError
from riprap.evaluation import Loss, loss_and_gradient, model_loss, to_device
from riprap.guards._base import Guard
from riprap.linalg import Vector


class BatchCycler:
    """Protected batches, read in order and then again from the first.

    Every rank must get the same batches: their gradients are not averaged over ranks.

    Args:
        guard: name of the guard, for error messages.
        batches: at least one batch, in any form that `loss` accepts.
        loss: loss(model, batch), a scalar; None: `own_loss`.

    Attributes:
        position: index of the next batch.

    Raises:
        ConfigError: there is no batch, or `batches` cannot be read more than once.
    """

    def __init__(self, guard: str, batches: Sequence[Any], loss: Loss | None = None) -> None:
        if not hasattr(batches, "__getitem__") or not hasattr(batches, "__len__"):
            raise ConfigError(
                f"guard {guard}: batches is a {type(batches).__name__}; give a list of batches, "
                "which can be read more than once"
            )
        if len(batches) == 0:
            raise ConfigError(f"guard {guard} protects nothing; give at least one batch")
        self.guard, self.batches, self.loss = guard, batches, loss or model_loss
        self.position = 0

    def __len__(self) -> int:
        return len(self.batches)

    def next_batch(self, model: nn.Module) -> Any:
        """Return the next batch, on the model's device, and advance."""
        batch = self.batches[self.position]
        self.position = (self.position + 1) % len(self.batches)
        return to_device(batch, device_of(model))

    def gradient(self, model: nn.Module, parameters: Sequence[Tensor]) -> tuple[float, Vector]:
        """Compute the loss on the next batch and its gradient, leaving training untouched."""
        value, gradient = loss_and_gradient(self.loss, model, self.next_batch(model), parameters)
        if gradient is None:
            raise ConfigError(
                f"guard {self.guard}: the loss on a protected batch depends on no trained parameter"
            )
        return value, gradient

    def check(self, model: nn.Module, parameters: Sequence[Tensor]) -> None:
        """Compute the gradient on the next batch without advancing: to fail before step 1."""
        position = self.position
        self.gradient(model, parameters)
        self.position = position

    def state_dict(self) -> dict[str, Any]:
        """Return the position."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the position."""
        self.position = state["position"] % len(self.batches)


@dataclass
class CyclingGuard(Guard):
    """Base of guards whose state includes the position in their protected batches, if any."""

    cycler: BatchCycler | None = field(default=None, init=False, repr=False)

    def state_dict(self) -> dict[str, Any]:
        """Return the guard's state and the position in the batches."""
        batches = None if self.cycler is None else self.cycler.state_dict()
        return {**super().state_dict(), "batches": batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        super().load_state_dict(state)
        if self.cycler is not None:
            self.cycler.load_state_dict(state["batches"])


@dataclass
class BatchGuard(CyclingGuard):
    """Base of guards that need protected batches.

    Args:
        batches: protected batches, read in turn; see `BatchCycler`.

    Raises:
        ConfigError: there is no batch.
    """

    batches: Sequence[Any]
    cycler: BatchCycler = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.cycler = BatchCycler(self.name, self.batches)


def split_labels(guard: str, batch: Any) -> tuple[Any, Tensor]:
    """Return the model inputs and the labels of a batch; raise a ConfigError without labels.

    Args:
        guard: name of the guard, for error messages.
    """
    if isinstance(batch, Mapping) and "labels" in batch:
        return {name: part for name, part in batch.items() if name != "labels"}, batch["labels"]
    if isinstance(batch, (list, tuple)) and len(batch) == 2:
        return batch[0], batch[1]
    raise ConfigError(
        f"guard {guard}: a batch is a {type(batch).__name__} without labels; give pairs "
        "(model inputs, labels), or mappings with `labels`"
    )
