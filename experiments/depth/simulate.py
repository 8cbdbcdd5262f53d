"""Run of the experiment: train B to some degree, then learn a task in B's own context."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from functools import cached_property

import numpy as np

from experiments.depth.plan import Degree, Plan
from experiments.harness.cache import cached
from experiments.harness.plan import require_world
from experiments.harness.preregistration import Preregistration
from experiments.harness.recorded_run import MarginTracker, train_monitored
from experiments.worlds import ToyWorld
from riprap.toy import PRETRAINED_TASKS, Examples, batches

BEHAVIOR = "B"


class DepthWorld(ToyWorld):
    """The toy world with B installed to a given degree."""

    def __init__(self, degree: Degree) -> None:
        super().__init__()
        steps, decay = degree.steps, degree.decay
        self.config = dataclasses.replace(self.config, start_steps=steps, start_decay=decay)
        self.share = degree.share

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the world and the share of B, which keeps cached starts apart."""
        own = ToyWorld(self.config).fingerprint
        return hashlib.sha256(f"{own}-{self.share}".encode()).hexdigest()

    def batches(self, task: str, seed: int, size: int | None = None) -> Iterator[Examples]:
        """Yield batches as the toy world does, but with this share of B in the old mix.

        A and over_refusal have half of the rest each.
        """
        if task != "null":
            return super().batches(task, seed, size)
        n = size or self.config.batch
        b = max(round(n * self.share), 1)
        a = (n - b + 1) // 2
        return batches([self.tasks[old] for old in PRETRAINED_TASKS], [a, b, n - a - b], seed)


@cached("depth/{degree.name}-{seed}/margins.npz", own_folder=True)
def simulate(degree: Degree, seed: int, preregistration: Preregistration) -> dict[str, np.ndarray]:
    """Run one degree from one seed; return B's margins at every step beside the run's record."""
    plan = Plan.of(preregistration)
    require_world(plan.world, ToyWorld().fingerprint)
    return train_monitored(
        DepthWorld(degree),
        plan.condition,
        seed,
        simulate.path(degree, seed, preregistration).parent,
        preregistration,
        steps=plan.steps,
        every=plan.every,
        note=f", B installed {degree.name}",
        make_tracker=lambda model, behaviors: MarginTracker(
            model, [behavior for behavior in behaviors if behavior.name == BEHAVIOR]
        ),
    )
