"""One recorded run: a start, a new task and a monitor."""

from __future__ import annotations

import numpy as np

from experiments.detectors.plan import Plan
from experiments.harness.cache import cached
from experiments.harness.plan import require_world
from experiments.harness.preregistration import Preregistration
from experiments.harness.recorded_run import RecordedRun, train_monitored
from experiments.worlds import ToyWorld
from riprap import signals
from riprap.detectors import Detector, reevaluate
from riprap.types import Level


class Run(RecordedRun):
    """One finished run of which detectors are evaluated again."""

    def first(self, detector: Detector, name: str, level: Level) -> int | None:
        """Return the first probe evaluation with an alert at a level or above."""
        alerts = reevaluate(detector, self.histories[name])
        return next((a.step for a in alerts if a.level.rank >= level.rank), None)


@cached("detectors/{condition}-{seed}/margins.npz", own_folder=True)
def simulate(condition: str, seed: int, preregistration: Preregistration) -> dict[str, np.ndarray]:
    """Run one condition from one seed; return the margins at every step, beside the record."""
    plan, world = Plan.of(preregistration), ToyWorld()
    require_world(plan.world, world.fingerprint)
    return train_monitored(
        world,
        condition,
        seed,
        simulate.path(condition, seed, preregistration).parent,
        preregistration,
        steps=plan.steps,
        every=plan.every,
        signals=[*signals.per_step(), signals.LossCosine(), signals.SpectralEntropy()],
    )
