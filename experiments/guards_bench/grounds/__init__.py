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
from experiments.guards_bench.grounds._lists import Lists
from experiments.guards_bench.grounds._smollm2 import SmolLM2

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
    )
}

__all__ = ["GROUNDS", "Ground", "OldTask", "Stage", "accuracy", "answers", "loss"]
