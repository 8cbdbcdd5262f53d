"""The arms of the experiment: where a lesson may go, and the controls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Arm:
    """A way to learn a sequence of tasks.

    Attributes:
        weights: GRPO trains the weights.
        text: cycles evolve the instructions: by the Pareto front, or at random; None: they stay as
            they are.
        several: with instructions that stay: as many as others keep, drawn at the start; else only
            the empty one.
        guard: AutoGuard protects the old behaviors.
        long: the first task takes `Setting.long` updates.
        tasks: in sequence.
    """

    weights: bool = True
    text: Literal["pareto", "random"] | None = None
    several: bool = False
    guard: bool = False
    long: bool = False
    tasks: tuple[str, ...] = ("first", "second")


ARMS: dict[str, Arm] = {
    "slow": Arm(),
    "fast": Arm(weights=False, text="pareto"),
    "both": Arm(text="pareto"),
    "frozen": Arm(several=True),
    "random": Arm(text="random"),
    "guarded": Arm(guard=True),
    "slow_long": Arm(long=True),
    "both_long": Arm(text="pareto", long=True),
    "slow_proxy": Arm(tasks=("proxy",)),
    "both_proxy": Arm(text="pareto", tasks=("proxy",)),
}
