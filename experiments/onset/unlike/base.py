"""A world: a model, what it learns first, and what it may be trained on afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

UNASKED = -100  # target of a position that asks for no answer


@dataclass(frozen=True)
class Rows:
    """Questions with their answers.

    Attributes:
        inputs: what the model reads; one row is one question.
        targets: right answers, shape (n,) or (n, positions); `UNASKED` where there is none.
        groups: category of each row, shape (n,).
    """

    inputs: Tensor
    targets: Tensor
    groups: Tensor

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.inputs)

    def __getitem__(self, which: Tensor | slice) -> Rows:
        """Return some of the rows."""
        return Rows(self.inputs[which], self.targets[which], self.groups[which])


Draw = Callable[[torch.Generator, int], Rows]  # draws so many rows


@dataclass(frozen=True)
class World:
    """A model and its tasks.

    Attributes:
        build: makes the untrained model; it returns logits, shape (n, [positions,] answers).
        behaviors: rows of what the model learns first, by behavior.
        probes: rows of the same kinds that are never trained on, where there are enough of them.
        related: later tasks that the model nearly does already.
        new: later tasks that it does not do, or does otherwise.
        n_probes: number of probes of each behavior.
        pretraining: steps, rows in a batch and peak rate (AdamW) of the first training.
        rates: the highest rate of later training, by optimizer.
        batch: rows in a batch of later training.
    """

    name: str
    build: Callable[[], nn.Module]
    behaviors: Mapping[str, Draw]
    probes: Mapping[str, Draw]
    related: Mapping[str, Draw]
    new: Mapping[str, Draw]
    n_probes: Mapping[str, int]
    pretraining: tuple[int, int, float]
    rates: Mapping[str, float]
    batch: int

    def old(self, generator: torch.Generator, n: int) -> Rows:
        """Draw rows of all behaviors, about as many of each."""
        share = -(-n // len(self.behaviors))
        rows = join([draw(generator, share) for draw in self.behaviors.values()])
        return rows[torch.randperm(len(rows), generator=generator)[:n]]


def join(parts: list[Rows]) -> Rows:
    """Return the rows of all parts."""
    return Rows(
        torch.cat([part.inputs for part in parts]),
        torch.cat([part.targets for part in parts]),
        torch.cat([part.groups for part in parts]),
    )


def margins(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the logit of the right answer minus the best other's, shape (n,).

    Of several positions the lowest counts.
    """
    place = targets.clamp(min=0).unsqueeze(-1)
    right = logits.gather(-1, place).squeeze(-1)
    others = logits.scatter(-1, place, -torch.inf).amax(-1)
    each = (right - others).masked_fill(targets == UNASKED, torch.inf)
    return each if each.ndim == 1 else each.amin(-1)


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of the answers."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=UNASKED)
