"""Methods that are compared: plain training, row selection, guards, and controls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

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
METHODS = (PLAIN, FEWER, *STRATEGIES, *GUARDS)


def selector(strategy: str, ratio: float, behaviors: Sequence[Behavior], seed: int) -> Selector:
    """Return the selector of a strategy, at a ratio."""
    protected = behaviors if strategy in INFORMED else ()
    return Selector(strategy=strategy, ratio=ratio, behaviors=protected, seed=seed)


def informed(method: str) -> bool:
    """Tell if a method gets probes of the protected behaviors."""
    return method in INFORMED or (method in GUARDS and GUARDS[method].informed)
