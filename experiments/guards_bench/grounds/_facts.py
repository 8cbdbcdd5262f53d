"""The toy world with facts: a small Llama learns to multiply."""

from __future__ import annotations

from functools import cached_property

from torch import nn

from experiments.guards_bench.grounds._base import Ground, OldTask, Stage
from experiments.worlds import FactsWorld
from riprap.behaviors import Behavior
from riprap.toy import Examples

TASK = "C"


class Facts(Ground):
    """Addition, refusals, answers and arbitrary facts are to be kept."""

    name = "facts"
    about = "the toy world with facts: a small Llama learns multiplication; its own AdamW"

    @cached_property
    def world(self) -> FactsWorld:
        """The world; its models are trained once a seed and stored."""
        return FactsWorld()

    def start(self, seed: int) -> nn.Module:
        """Return the model that knows the old tasks."""
        return self.world.start(seed)

    def stages(self, seed: int) -> list[Stage]:
        """Return the only stage."""
        world = self.world
        parts = zip(world.behaviors(), world.pools(), world.unseen(), strict=True)
        old = tuple(
            OldTask(probes.name, rows_of(probes), rows_of(pool), rows_of(test))
            for probes, pool, test in parts
        )
        task = world.tasks[TASK]
        return [Stage(old, task, task, 400, world.config.batch, world.optimizer)]


def rows_of(behavior: Behavior) -> Examples:
    """Return the rows of a next-token behavior."""
    targets = behavior.margins.targets
    assert targets is not None
    return Examples(behavior.probes.input_ids, targets)
