"""Grounds of the bench, by name, and their common interface."""

from experiments.guards_bench.grounds._base import (
    Ground,
    OldTask,
    Stage,
    accuracy,
    answers,
    loss,
)
from experiments.guards_bench.grounds._digits import (
    ContradictingTask,
    HighRate,
    LongRun,
    PermutedDigits,
    SmallBuffer,
    SplitDigits,
    TwentyBehaviors,
    WrongBuffer,
)
from experiments.guards_bench.grounds._facts import Facts
from experiments.guards_bench.grounds._fresh import Moves, Shapes, Tables
from experiments.guards_bench.grounds._fresh_texts import RefusedMessages, Sources
from experiments.guards_bench.grounds._lists import Lists
from experiments.guards_bench.grounds._smollm2 import SmolLM2

# made after the rules of AutoGuard were chosen
FRESH: tuple[Ground, ...] = (Shapes(), Tables(), Moves(), Sources(), RefusedMessages())

GROUNDS: dict[str, Ground] = {
    ground.name: ground
    for ground in (
        PermutedDigits(),
        Facts(),
        SmallBuffer(),
        HighRate(),
        ContradictingTask(),
        SplitDigits(),
        Lists(),
        TwentyBehaviors(),
        LongRun(),
        WrongBuffer(),
        SmolLM2(),
        *FRESH,
    )
}

__all__ = ["FRESH", "GROUNDS", "Ground", "OldTask", "Stage", "accuracy", "answers", "loss"]
