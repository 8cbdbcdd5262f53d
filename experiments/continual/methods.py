"""The methods on the bench: plain training, rows chosen by a rule, guards, and controls."""

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
class Entry:
    """One guard.

    Attributes:
        knob: what is searched; `values`: the three values that are tried.
        make: the guard with its knob at a value, given the adapters trained before; None where it
            cannot act at this stage.
        keeps: whether what it noted of the aligned model stands for the whole sequence, in place
            of what each stage starts from.
        informed: whether it is shown probes of the protected behaviours.
    """

    knob: str
    values: tuple[float, float, float]
    make: Callable[[float, Earlier], Guard | None]
    keeps: bool = False
    informed: bool = True


def o_lora(value: float, earlier: Earlier) -> Guard | None:
    """Nothing at the first stage: there is no earlier adapter."""
    return guards.OLoRA(strength=value, earlier=list(earlier)) if earlier else None


GUARDS: dict[str, Entry] = {
    "kl": Entry("strength", (0.3, 1.0, 3.0), lambda v, _: guards.KL(strength=v), keeps=True),
    "o_lora": Entry("strength", (0.05, 0.5, 5.0), o_lora, informed=False),
    "ewc": Entry("strength", (1e3, 1e5, 1e7), lambda v, _: guards.EWC(strength=v)),
    "clip": Entry("most", (0.1, 0.3, 1.0), lambda v, _: guards.Clip(max_norm=v), informed=False),
}

INFORMED = ("least_harm", "adaptive")  # strategies that are shown probes of what is protected
STRATEGIES = ("random", "high", "moderate", "low", "moderate_by_loss", *INFORMED)
METHODS = (PLAIN, FEWER, *STRATEGIES, *GUARDS)


def selector(strategy: str, ratio: float, behaviors: Sequence[Behavior], seed: int) -> Selector:
    """The selector of a strategy, at a ratio."""
    shown = behaviors if strategy in INFORMED else ()
    return Selector(strategy=strategy, ratio=ratio, behaviors=shown, seed=seed)


def informed(method: str) -> bool:
    """Whether a method is shown probes of the protected behaviours."""
    return method in INFORMED or (method in GUARDS and GUARDS[method].informed)
