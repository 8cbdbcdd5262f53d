"""A model of one number, which is every margin; a loop turns it to any value."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from riprap import Behavior, Monitor
from riprap.detectors import Threshold
from riprap.types import Level


class Dial(nn.Module):
    """One number, which is every margin; a loop turns it to whatever it likes."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor([float(value)]))

    def forward(self) -> Tensor:
        return self.value


def reading(name: str = "dial", shift: float = 0.0) -> Behavior:
    return Behavior(name, 10, lambda model, count: (model() + shift).expand(count))


def turn(monitor: Monitor, values: Sequence[float]) -> None:
    """The first value is that of the start; each further one is reached by one step."""
    dial = Dial(values[0])
    optimizer = torch.optim.SGD(dial.parameters(), lr=1.0)
    with monitor.watch(dial, optimizer):
        for value in values[1:]:
            dial.value.grad = dial.value.detach() - value
            optimizer.step()


def below(value: float, level: Level, consecutive: int = 1) -> Threshold:
    return Threshold(
        signal="margin", side="below", value=value, level=level, consecutive=consecutive
    )
