"""Methods that are compared: plain training, row selection, guards, and controls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.worlds.continual import CATEGORIES
from experiments.worlds.continual_rows import Rows
from riprap import guards
from riprap.behaviors import Behavior
from riprap.guards import Guard
from riprap.selection import Selector

PLAIN, FEWER = "plain", "plain_fewer"
Earlier = Sequence[dict[str, Tensor]]  # the A matrices of each earlier adapter, by name


@dataclass(frozen=True)
class GuardEntry:
    """A guard that is compared, with the parameter that is searched.

    Attributes:
        knob: parameter that is searched; `values`: the three values that are tried.
        make: makes the guard with its parameter at a value and the earlier adapters; None if it
            cannot act at this stage.
        keeps: its state of the aligned model holds for all stages, instead of the state at the
            start of each stage.
        informed: it gets probes of the protected behaviors.
    """

    knob: str
    values: tuple[float, float, float]
    make: Callable[[float, Earlier], Guard | None]
    keeps: bool = False
    informed: bool = True


def o_lora(value: float, earlier: Earlier) -> Guard | None:
    """Return None at the first stage, which has no earlier adapter."""
    return guards.OLoRA(strength=value, earlier=list(earlier)) if earlier else None


GUARDS: dict[str, GuardEntry] = {
    "kl": GuardEntry("strength", (0.3, 1.0, 3.0), lambda v, _: guards.KL(strength=v), keeps=True),
    "o_lora": GuardEntry("strength", (0.05, 0.5, 5.0), o_lora, informed=False),
    "ewc": GuardEntry(
        "strength", (1e3, 1e5, 1e7), lambda v, _: guards.EWC(strength=v, max_pull=None)
    ),
    "clip": GuardEntry("most", (0.1, 0.3, 1.0), lambda v, _: guards.Clip(v), informed=False),
}

INFORMED = ("least_harm", "adaptive")  # strategies that get probes of the protected behaviors
STRATEGIES = ("random", "high", "moderate", "low", "moderate_by_loss", *INFORMED)
CONTROLS = ("random_by_length:moderate", "random_by_category:moderate")  # of the later stage
ROW = "row"  # column of a row's number, which the selector takes off
METHODS = (PLAIN, FEWER, *STRATEGIES, *GUARDS)


def selector(strategy: str, ratio: float, behaviors: Sequence[Behavior], seed: int) -> Selector:
    """Return the selector of a strategy, at a ratio."""
    protected = behaviors if strategy in INFORMED else ()
    return Selector(strategy=strategy, ratio=ratio, behaviors=protected, seed=seed)


def control(strategy: str, ratio: float, batch: int, seed: int) -> Selector:
    """Return the selector of a control, for rows that `numbered` has numbered."""
    categories = {
        category * batch + place: name
        for category, name in enumerate(CATEGORIES)
        for place in range(batch)
    }
    return Selector(strategy, ratio, seed=seed, row_id=ROW, categories=categories)


def numbered(rows: Rows) -> dict[str, Tensor]:
    """Return the model's arguments with the number of each row: category × rows + its place."""
    return {**rows.batch, ROW: rows.category * len(rows) + torch.arange(len(rows))}


def informed(method: str) -> bool:
    """Tell if a method gets probes of the protected behaviors."""
    return method in INFORMED or (method in GUARDS and GUARDS[method].informed)
