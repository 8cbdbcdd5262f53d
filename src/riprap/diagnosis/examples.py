"""Examples that are learned again, a few at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from riprap.behaviors import Behavior
from riprap.behaviors.outputs import device_of
from riprap.evidence import ConfigError
from riprap.probing import Loss, moved, own_loss


class Examples:
    """A supply of single examples, in whatever form they come.

    Args:
        given: a `Behavior` with losses, whose probes are the examples; a list of examples or of
            batches; one batch of several rows, as a mapping of tensors or as anything that takes
            a tensor of indices. Batches are taken apart into rows.
        loss: loss(model, batch), a scalar; None: the model's own, `model(**batch).loss`.

    Raises:
        ConfigError: there is nothing in it, or nothing that could be taken apart.
    """

    def __init__(self, given: Any, loss: Loss | None = None) -> None:
        self._loss = loss or own_loss
        self.behavior = given if isinstance(given, Behavior) else None
        if self.behavior is not None:
            if self.behavior.losses is None:
                raise ConfigError(
                    f"behaviour {self.behavior.name!r} has no losses, so that its probes cannot be "
                    "learned: give examples as batches, with loss="
                )
            self.rows: list[Any] = list(range(len(self.behavior.probes)))
        else:
            batches = given if isinstance(given, (list, tuple)) else [given]
            self.rows = [row for batch in batches for row in taken_apart(batch)]
        if not self.rows:
            raise ConfigError("there are no examples: give at least one")

    def __len__(self) -> int:
        return len(self.rows)

    def tokens(self) -> set[tuple[int, ...]]:
        """What is asked by each example, token by token; empty where that cannot be told."""
        rows = getattr(self.behavior and self.behavior.probes, "rows", None)
        return {tuple(row) for row in rows()} if callable(rows) else set()

    def loss(self, model: nn.Module, chosen: Sequence[int]) -> Tensor:
        """Mean loss of the chosen examples, shape (); each counts alike."""
        if self.behavior is not None:
            part = self.behavior.subset([self.rows[at] for at in chosen])
            assert part.losses is not None
            return part.losses(model, part.probes).mean()
        device = device_of(model)
        batches = [moved(batch, device) for batch in put_together([self.rows[at] for at in chosen])]
        counts = [rows / len(chosen) for rows in map(rows_in, batches)]
        losses = [self._loss(model, batch) * c for batch, c in zip(batches, counts, strict=True)]
        return torch.stack(losses).sum()

    def backward(self, model: nn.Module, chosen: Sequence[int]) -> None:
        """Add the gradient of the loss to `.grad` of the parameters that require one."""
        self.loss(model, chosen).backward()


def taken_apart(batch: Any) -> list[Any]:
    """A batch as batches of one row each; what cannot be cut is one example."""
    if isinstance(batch, Mapping):
        count = _count(list(batch.values()))
        cut: list[Any] = [{k: _row(v, at) for k, v in batch.items()} for at in range(count)]
        return cut or [batch]
    if isinstance(batch, tuple):
        count = _count(list(batch))
        return [tuple(_row(v, at) for v in batch) for at in range(count)] or [batch]
    if isinstance(batch, Tensor):
        return list(batch.split(1))
    if hasattr(batch, "__len__") and hasattr(batch, "__getitem__"):
        return [batch[torch.tensor([at])] for at in range(len(batch))]
    return [batch]


def _count(parts: list[Any]) -> int:
    """How many rows the tensors of a batch have in common; 0 where they do not agree."""
    lengths = {len(part) for part in parts if isinstance(part, Tensor) and part.dim() > 0}
    return lengths.pop() if len(lengths) == 1 else 0


def _row(part: Any, at: int) -> Any:
    return part[at : at + 1] if isinstance(part, Tensor) and part.dim() > 0 else part


def put_together(rows: list[Any]) -> list[Any]:
    """Single examples as one batch where their tensors are of one shape; else as they are."""
    if len(rows) > 1 and all(isinstance(row, Mapping) for row in rows):
        shapes = {tuple((k, v.shape) for k, v in r.items() if isinstance(v, Tensor)) for r in rows}
        if len(shapes) == 1 and all(isinstance(v, Tensor) and v.dim() for v in rows[0].values()):
            return [{name: torch.cat([row[name] for row in rows]) for name in rows[0]}]
    return rows


def rows_in(batch: Any) -> int:
    """How many examples a batch of `put_together` holds."""
    return len(next(iter(batch.values()))) if isinstance(batch, Mapping) else 1
