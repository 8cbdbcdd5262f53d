"""Optimizers and schedules of the runs."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim import Optimizer

OPTIMIZERS = ("sgd", "adamw", "adafactor", "muon")
SCHEDULES = ("constant", "warmup_cosine", "linear", "cyclic")
WARMUP = 0.1  # share of the steps
CYCLES = 3
REST = 0.2  # of Muon's rate: AdamW's for what is no weight of a linear layer


def optimizers(name: str, model: nn.Module, rate: float) -> list[Optimizer]:
    """Return the optimizers that together train all of the model."""
    if name == "sgd":
        return [torch.optim.SGD(model.parameters(), rate, momentum=0.9)]
    if name == "adamw":
        return [torch.optim.AdamW(model.parameters(), rate)]
    if name == "adafactor":
        return [torch.optim.Adafactor(model.parameters(), rate)]
    if name == "muon":
        linear = [part.weight for part in model.modules() if isinstance(part, nn.Linear)]
        known = {id(weight) for weight in linear}
        rest = [own for own in model.parameters() if id(own) not in known]
        return [torch.optim.Muon(linear, rate), torch.optim.AdamW(rest, REST * rate)]
    raise ValueError(f"no optimizer {name!r}; there are {', '.join(OPTIMIZERS)}")


def factors(schedule: str, steps: int) -> list[float]:
    """Return the rate of each step as a share of the highest."""
    return [_factor(schedule, step, steps) for step in range(steps)]


def _factor(schedule: str, step: int, steps: int) -> float:
    warmup = max(1, round(WARMUP * steps))
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return 1 - step / steps
    if schedule == "warmup_cosine":
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / (steps - warmup))
    if schedule == "cyclic":
        place = (CYCLES * step / steps) % 1
        return 0.05 + 0.95 * (1 - abs(2 * place - 1))
    raise ValueError(f"no schedule {schedule!r}; there are {', '.join(SCHEDULES)}")
