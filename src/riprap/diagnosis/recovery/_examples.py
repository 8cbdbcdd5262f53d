"""Examples that are learned again, a few at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from riprap.behaviors import Behavior, NextToken, Options, device_of
from riprap.errors import ConfigError
from riprap.evaluation import Loss, moved, own_loss

MASKED = -100  # a label that does not count


class Examples:
    """A supply of single examples, in whatever form they come.

    Args:
        given: a `Behavior` with losses, whose probes are the examples; a list, a data set or a
            loader of examples or of batches; or one batch: a mapping or a tuple of tensors, or
            anything that takes a tensor of indices. A batch has a tensor of two dimensions or
            more, and is taken apart into rows; whatever else there is counts as one example.
        loss: loss(model, batch), a scalar; None: the model's own, `model(**batch).loss`. A
            `Behavior` is learned by its own losses.

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
            self.rows = [row for batch in batches_of(given) for row in taken_apart(batch)]
        if not self.rows:
            raise ConfigError("there are no examples: give at least one")

    def __len__(self) -> int:
        return len(self.rows)

    def tokens(self) -> list[tuple[int, ...]]:
        """Rows of token ids in the examples, as far as they can be told."""
        rows = getattr(self.behavior and self.behavior.probes, "rows", None)
        if callable(rows):
            return [tuple(row) for row in rows()]
        return [
            tuple(row)
            for example in self.rows
            for part in _parts(example)
            if isinstance(part, Tensor) and part.dim() == 2 and part.dtype == torch.long
            for row in part.tolist()
        ]

    def answers(self) -> list[int]:
        """First tokens of the answers that the examples teach, as far as they can be told."""
        if self.behavior is None:
            return sorted({token for row in self.rows for token in _first_labels(row)})
        kind, probes = self.behavior.margins, self.behavior.probes
        if isinstance(kind, NextToken):
            return sorted(set(kind.targets.tolist()))
        if not isinstance(probes, Options):
            return []
        return sorted(set(probes.first_tokens()[probes.wanted.reshape(-1)].tolist()))

    def loss(self, model: nn.Module, chosen: Sequence[int]) -> Tensor:
        """Mean loss of the chosen examples, shape (); those of one shape are learned as a batch."""
        if self.behavior is not None:
            part = self.behavior.subset([self.rows[at] for at in chosen])
            assert part.losses is not None
            return part.losses(model, part.probes).mean()
        device = device_of(model)
        batches = put_together([self.rows[at] for at in chosen])
        return torch.stack([self._loss(model, moved(batch, device)) for batch in batches]).mean()

    def backward(self, model: nn.Module, chosen: Sequence[int]) -> None:
        """Add the gradient of the loss to `.grad` of the parameters that require one."""
        self.loss(model, chosen).backward()


def _first_labels(example: Any) -> list[int]:
    """The first label of each row, where a masked prompt stands before it."""
    labels = example.get("labels") if isinstance(example, Mapping) else None
    if not isinstance(labels, Tensor) or labels.dim() != 2:
        return []
    rows = [row[row != MASKED] for row in labels if len(row) and row[0] == MASKED]
    return [int(row[0]) for row in rows if len(row)]


def batches_of(given: Any) -> list[Any]:
    """What was given, as a list of batches or examples."""
    if isinstance(given, (Mapping, Tensor, str)):
        return [given]
    if isinstance(given, (list, tuple)):
        ranks = {part.dim() for part in given if isinstance(part, Tensor)}
        whole = _rows_of(given) > 0 and (isinstance(given, tuple) or len(ranks) > 1)
        return [given] if whole else list(given)
    if hasattr(given, "__getitem__") and hasattr(given, "__len__"):
        try:
            given[torch.tensor([0])]
        except (TypeError, ValueError, IndexError, KeyError):  # a data set, asked one by one
            return [given[at] for at in range(len(given))]
        return [given]
    return list(given) if hasattr(given, "__iter__") else [given]


def taken_apart(batch: Any) -> list[Any]:
    """A batch as batches of one row each; what is no batch is one example."""
    if isinstance(batch, (Mapping, list, tuple)):
        count = _rows_of(batch)
        return [_row_of(batch, at) for at in range(count)] or [batch]
    if isinstance(batch, Tensor):
        return list(batch.split(1)) if batch.dim() > 1 else [batch]
    if hasattr(batch, "__len__") and hasattr(batch, "__getitem__") and not isinstance(batch, str):
        return [batch[torch.tensor([at])] for at in range(len(batch))]
    return [batch]


def _parts(batch: Any) -> list[Any]:
    if isinstance(batch, Mapping):
        return list(batch.values())
    return list(batch) if isinstance(batch, (list, tuple)) else [batch]


def _rows_of(batch: Any) -> int:
    """How many rows the tensors of a batch have in common; 0 where it is none."""
    tensors = [part for part in _parts(batch) if isinstance(part, Tensor) and part.dim() > 0]
    lengths = {len(part) for part in tensors}
    if len(lengths) != 1 or not any(part.dim() > 1 for part in tensors):
        return 0
    return lengths.pop()


def _row_of(batch: Any, at: int) -> Any:
    def cut(part: Any) -> Any:
        return part[at : at + 1] if isinstance(part, Tensor) and part.dim() > 0 else part

    if isinstance(batch, Mapping):
        return {name: cut(part) for name, part in batch.items()}
    parts = [cut(part) for part in batch]
    return batch._make(parts) if hasattr(batch, "_make") else type(batch)(parts)


def put_together(rows: list[Any]) -> list[Any]:
    """Rows of one shape as one batch; else as they are."""
    if len(rows) > 1 and all(isinstance(row, Mapping) and _rows_of(row) == 1 for row in rows):
        whole = all(isinstance(v, Tensor) and v.dim() for row in rows for v in row.values())
        if whole and len({tuple((k, v.shape) for k, v in row.items()) for row in rows}) == 1:
            return [{name: torch.cat([row[name] for row in rows]) for name in rows[0]}]
    return rows
