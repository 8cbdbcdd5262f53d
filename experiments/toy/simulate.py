"""One run: a start, a new task and a monitor; and what the monitor is measured against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from experiments.harness.cache import cached
from experiments.harness.interference_claim import InterferenceComparison
from experiments.harness.plan import require_world
from experiments.harness.preregistration import Preregistration
from experiments.harness.recorded_run import MarginTracker, train_monitored
from experiments.toy.plan import Plan
from experiments.worlds import ToyWorld
from riprap import evaluation, signals
from riprap.behaviors import Behavior
from riprap.detectors import score

HELD_OUT_EVERY = 10  # steps; the held-out inputs are ten times as many as the probes


class TruthTracker(MarginTracker):
    """Records what the monitor does not know: margins, held-out scores, predicted changes.

    The arrays are `margins/behavior`, shape (steps + 1, n_probes); `truth/behavior`, the score on
    held-out inputs every ten steps; and those of `InterferenceComparison`.
    """

    def __init__(
        self,
        model: nn.Module,
        probes: Sequence[Behavior],
        held_out: Sequence[Behavior],
        plan: Plan,
    ) -> None:
        self.held_out = list(held_out)
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.comparison = InterferenceComparison(
            model, probes, parameters, plan.claim_steps, plan.ages
        )
        self.truth: dict[str, list[float]] = {b.name: [] for b in probes}
        super().__init__(model, probes)

    def before_step(self) -> None:
        """Compute fresh protected gradients."""
        self.comparison.before_step()

    def after_step(self) -> None:
        """Compare predicted with realized change, then record margins and scores."""
        self.comparison.after_step()
        self.record_margins()

    def record_margins(self) -> None:
        """Append the present margins and, every ten steps, the held-out scores."""
        super().record_margins()
        if (len(next(iter(self.margins.values()))) - 1) % HELD_OUT_EVERY == 0:
            for name, result in evaluation.evaluate_batch(self.held_out, self.model).items():
                self.truth[name].append(score(result.margins))

    def arrays(self) -> dict[str, np.ndarray]:
        """Return everything by `kind/behavior`."""
        return (
            self.comparison.arrays()
            | {f"margins/{name}": margins for name, margins in super().arrays().items()}
            | {f"truth/{n}": np.array(own, dtype=np.float32) for n, own in self.truth.items()}
        )


@cached("toy/{condition}-{seed}/truth.npz", own_folder=True)
def simulate(condition: str, seed: int, preregistration: Preregistration) -> dict[str, np.ndarray]:
    """Run one condition from one seed; return the arrays of `TruthTracker`, beside the record."""
    plan, world = Plan.of(preregistration), ToyWorld()
    require_world(plan.world, world.fingerprint)
    held_out = [
        Behavior.next_token(name, examples.input_ids, examples.targets)
        for name, examples in world.truth().items()
    ]
    return train_monitored(
        world,
        condition,
        seed,
        simulate.path(condition, seed, preregistration).parent,
        preregistration,
        steps=plan.steps,
        every=plan.every,
        signals=[  # those of the preregistration; later ones would only slow the runs
            *signals.per_step(),
            *(signals.LossCosine(), signals.FisherCosine(), signals.SpectralEntropy()),
        ],
        make_tracker=lambda model, probes: TruthTracker(model, probes, held_out, plan),
    )
