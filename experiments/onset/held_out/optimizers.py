"""Optimizers and schedules that the runs vary."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim import Optimizer

OPTIMIZERS = ("sgd", "adamw", "adafactor", "muon")
SCHEDULES = ("constant", "cosine", "linear", "one cycle", "cyclic")


def make(kind: str, model: nn.Module, rate: float) -> list[Optimizer]:
    """Return the optimizers of a model's parameters; all but Muon are one.

    Muon moves the matrices between the embedding and the head; AdamW moves the rest, at a tenth
    of the rate.
    """
    everything = list(model.parameters())
    if kind == "sgd":
        return [torch.optim.SGD(everything, rate, momentum=0.9)]
    if kind == "adamw":
        return [torch.optim.AdamW(everything, rate, weight_decay=0.01)]
    if kind == "adafactor":
        return [torch.optim.Adafactor(everything, rate)]
    if kind == "muon":
        outer = ("embedding", "head")
        inner = [
            weight
            for name, weight in model.named_parameters()
            if weight.ndim == 2 and not name.startswith(outer)
        ]
        chosen = set(map(id, inner))
        rest = [weight for weight in everything if id(weight) not in chosen]
        return [
            torch.optim.Muon(inner, rate, weight_decay=0.0),
            torch.optim.AdamW(rest, rate / 10, weight_decay=0.0),
        ]
    raise ValueError(f"no optimizer is named {kind!r}; there are {', '.join(OPTIMIZERS)}")


def share(schedule: str, step: int, steps: int) -> float:
    """Return the rate of a step (from 0) as a share of the largest rate."""
    done = step / steps
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        warmed = (step + 1) / max(1, steps // 20)
        return min(warmed, 0.5 + 0.5 * math.cos(math.pi * done))
    if schedule == "linear":
        return 1.0 - done
    if schedule == "one cycle":
        return 0.05 + 0.95 * (done / 0.3 if done < 0.3 else (1 - done) / 0.7)
    if schedule == "cyclic":
        return 0.55 + 0.45 * math.cos(2 * math.pi * step / 60)
    raise ValueError(f"no schedule is named {schedule!r}; there are {', '.join(SCHEDULES)}")
