"""Training examples in any form, learned a few at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from riprap.behaviors import Behavior, device_of
from riprap.errors import ConfigError
from riprap.evaluation import Loss, model_loss, to_device

IGNORE_INDEX = -100  # label of a token without loss
MIN_SAVING = 0.2  # share of the padded tokens that a second pass saves


class Examples:
    """Single examples from a behavior, a list, a data set, a loader or a batch.

    Args:
        data: a `Behavior` with losses, whose probes are the examples; a list, a data set or a
            loader of examples or batches; or one batch: a mapping or a tuple of tensors, or an
            object that is indexed by a tensor. A batch contains a tensor of two or more dimensions
            and is split into rows; anything else counts as one example.
        loss: loss(model, batch), a scalar; None: the model's own, `model(**batch).loss`. A
            `Behavior` uses its own losses.

    Raises:
        ConfigError: there are no examples, or the behavior has no losses.
    """

    behavior: Behavior | None = None

    def __init__(self, data: Any, loss: Loss | None = None) -> None:
        self._loss = loss or model_loss
        self.behavior = data if isinstance(data, Behavior) else None
        if self.behavior is not None:
            if self.behavior.losses is None:
                raise ConfigError(
                    f"behavior {self.behavior.name!r} has no losses, so its probes cannot be "
                    "learned: pass examples as batches, with loss="
                )
            self.rows: list[Any] = list(range(len(self.behavior.probes)))
        else:
            self.rows = [row for batch in as_batches(data) for row in uncollate(batch)]
        if not self.rows:
            raise ConfigError("there are no examples: pass at least one")

    def __len__(self) -> int:
        return len(self.rows)

    def token_rows(self) -> list[tuple[int, ...]]:
        """Return the rows of token ids in the examples, where they can be recognized."""
        rows = None if self.behavior is None else self.behavior.token_rows()
        if rows is not None:
            return [tuple(row) for row in rows]
        return [
            tuple(row)
            for example in self.rows
            for part in _values(example)
            if isinstance(part, Tensor) and part.dim() == 2 and part.dtype == torch.long
            for row in part.tolist()
        ]

    def answer_tokens(self) -> list[int]:
        """Return the first tokens of the answers in the examples, where they can be recognized."""
        if self.behavior is None:
            return sorted({token for row in self.rows for token in _first_labels(row)})
        return self.behavior.margins.answer_tokens(self.behavior.probes)

    def loss(self, model: nn.Module, chosen: Sequence[int]) -> Tensor:
        """Compute the mean loss of the chosen examples, shape ()."""
        if self.behavior is not None:
            part = self.behavior.subset([self.rows[at] for at in chosen])
            assert part.losses is not None
            return part.losses(model, part.probes).mean()
        device = device_of(model)
        batches = collate([self.rows[at] for at in chosen])
        losses = [self._loss(model, to_device(batch, device)) for batch in batches]
        return torch.stack(losses).mean()

    def backward(self, model: nn.Module, chosen: Sequence[int]) -> None:
        """Add the gradient of the loss to `.grad` of the trainable parameters.

        A behavior's examples of very different lengths take two passes, with less padding.
        """
        rows = None if self.behavior is None else self.behavior.token_rows()
        lengths = [1 if rows is None else len(rows[self.rows[at]]) for at in chosen]
        for group in group_by_length(lengths):
            part = self.loss(model, [chosen[at] for at in group])
            (part * (len(group) / len(chosen))).backward()


def group_by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Group rows so that they are padded less: all in one group, or short and long ones in two."""
    order = sorted(range(len(lengths)), key=lambda at: lengths[at])
    padded = len(order) * max(lengths)
    sizes = {
        cut: cut * lengths[order[cut - 1]] + (len(order) - cut) * max(lengths)
        for cut in range(1, len(order))
    }
    cut = min(sizes, key=lambda cut: sizes[cut], default=0)
    if not cut or sizes[cut] > (1 - MIN_SAVING) * padded:
        return [list(range(len(lengths)))]
    return [sorted(order[:cut]), sorted(order[cut:])]


def _first_labels(example: Any) -> list[int]:
    """First label of each row whose prompt is masked."""
    labels = example.get("labels") if isinstance(example, Mapping) else None
    if not isinstance(labels, Tensor) or labels.dim() != 2:
        return []
    rows = [row[row != IGNORE_INDEX] for row in labels if len(row) and row[0] == IGNORE_INDEX]
    return [int(row[0]) for row in rows if len(row)]


def as_batches(data: Any) -> list[Any]:
    """Return data as a list of batches or examples."""
    if isinstance(data, (Mapping, Tensor, str)):
        return [data]
    if isinstance(data, (list, tuple)):
        ranks = {part.dim() for part in data if isinstance(part, Tensor)}
        is_batch = _batch_size(data) > 0 and (isinstance(data, tuple) or len(ranks) > 1)
        return [data] if is_batch else list(data)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        try:
            data[torch.tensor([0])]
        except (TypeError, ValueError, IndexError, KeyError):  # a data set, read item by item
            return [data[at] for at in range(len(data))]
        return [data]
    return list(data) if hasattr(data, "__iter__") else [data]


def uncollate(batch: Any) -> list[Any]:
    """Split a batch into batches of one row each; anything else is one example."""
    if isinstance(batch, (Mapping, list, tuple)):
        return [_row(batch, at) for at in range(_batch_size(batch))] or [batch]
    if isinstance(batch, Tensor):
        return list(batch.split(1)) if batch.dim() > 1 else [batch]
    if hasattr(batch, "__len__") and hasattr(batch, "__getitem__") and not isinstance(batch, str):
        return [batch[torch.tensor([at])] for at in range(len(batch))]
    return [batch]


def _values(batch: Any) -> list[Any]:
    if isinstance(batch, Mapping):
        return list(batch.values())
    return list(batch) if isinstance(batch, (list, tuple)) else [batch]


def _batch_size(batch: Any) -> int:
    """Number of rows that the tensors of a batch share; 0 if it is not a batch."""
    tensors = [part for part in _values(batch) if isinstance(part, Tensor) and part.dim() > 0]
    lengths = {len(part) for part in tensors}
    is_batch = len(lengths) == 1 and any(part.dim() > 1 for part in tensors)
    return lengths.pop() if is_batch else 0


def _row(batch: Any, at: int) -> Any:
    def cut(part: Any) -> Any:
        return part[at : at + 1] if isinstance(part, Tensor) and part.dim() > 0 else part

    if isinstance(batch, Mapping):
        return {name: cut(part) for name, part in batch.items()}
    parts = [cut(part) for part in batch]
    return batch._make(parts) if hasattr(batch, "_make") else type(batch)(parts)


def collate(rows: list[Any]) -> list[Any]:
    """Join rows of equal shape into one batch; otherwise return the rows."""
    if len(rows) > 1 and all(isinstance(row, Mapping) and _batch_size(row) == 1 for row in rows):
        all_tensors = all(isinstance(v, Tensor) and v.dim() for row in rows for v in row.values())
        shapes = {tuple((k, v.shape) for k, v in row.items()) for row in rows if all_tensors}
        if len(shapes) == 1:
            return [{name: torch.cat([row[name] for row in rows]) for name in rows[0]}]
    return rows
