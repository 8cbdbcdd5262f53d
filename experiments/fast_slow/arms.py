"""The arms of the experiment: where a lesson may go, and the controls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NEUTRAL = ("", "mix in words", "mix in pairs", "mix in marks")
"""Instructions about an operator that no problem and no old behavior asks for."""


@dataclass(frozen=True)
class Arm:
    """A way to learn a sequence of tasks.

    Attributes:
        weights: GRPO trains the weights.
        select: cycles evolve the instructions: by the Pareto front, or at random; None: they stay.
        stay: those that stay. `neutral` ones say nothing about the task; `told`: the one under
            which the base is best on the task; None: the empty one.
        guard: AutoGuard protects the old behaviors.
        long: the first task takes `Setting.long` updates.
        tasks: in sequence.
    """

    weights: bool = True
    select: Literal["pareto", "random"] | None = None
    stay: Literal["neutral", "told"] | None = None
    guard: bool = False
    long: bool = False
    tasks: tuple[str, ...] = ("first", "second")


ARMS: dict[str, Arm] = {
    "slow": Arm(),
    "fast": Arm(weights=False, select="pareto"),
    "both": Arm(select="pareto"),
    "neutral": Arm(stay="neutral"),
    "told": Arm(stay="told"),
    "random": Arm(select="random"),
    "guarded": Arm(guard=True),
    "slow_long": Arm(long=True),
    "both_long": Arm(select="pareto", long=True),
    "told_long": Arm(stay="told", long=True),
    "slow_proxy": Arm(tasks=("proxy",)),
    "both_proxy": Arm(select="pareto", tasks=("proxy",)),
}
