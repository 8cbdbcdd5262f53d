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
        text: the instructions. `none`: the empty one. Cycles evolve them: by the Pareto front, or
            at `random`. They stay: `neutral` ones say nothing about the task; `told`: the one under
            which the base is best on the task.
        guard: AutoGuard protects the old behaviors.
        long: the first task takes `Setting.long` updates.
        tasks: in sequence.
    """

    weights: bool = True
    text: Literal["none", "pareto", "random", "neutral", "told"] = "none"
    guard: bool = False
    long: bool = False
    tasks: tuple[str, ...] = ("first", "second")

    @property
    def select(self) -> Literal["pareto", "random"] | None:
        """How cycles choose what is kept; None: no cycles."""
        return self.text if self.text in ("pareto", "random") else None


ARMS: dict[str, Arm] = {
    "slow": Arm(),
    "fast": Arm(weights=False, text="pareto"),
    "both": Arm(text="pareto"),
    "neutral": Arm(text="neutral"),
    "told": Arm(text="told"),
    "random": Arm(text="random"),
    "guarded": Arm(guard=True),
    "slow_long": Arm(long=True),
    "both_long": Arm(text="pareto", long=True),
    "slow_proxy": Arm(tasks=("proxy",)),
    "both_proxy": Arm(text="pareto", tasks=("proxy",)),
}
