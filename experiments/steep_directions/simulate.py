"""One run: a new task on the toy world, and its gradient's alignment with steep directions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from experiments.harness.cache import cached
from experiments.harness.plan import require_world
from experiments.harness.preregistration import Preregistration
from experiments.steep_directions.plan import Plan
from experiments.worlds import ToyWorld
from riprap import evaluation
from riprap.behaviors import Behavior
from riprap.linalg import Vector, VectorStack, cosine, norm
from riprap.signals.gradients import alignment, steep_stack

UNRELATED = ("targets", "pairs", "inputs")
COLUMNS = ("steep", *UNRELATED, "random", "cosine_loss", "cosine_margin")


@cached("steep_directions/{condition}-{seed}.npz")
def simulate(condition: str, seed: int, preregistration: Preregistration) -> dict[str, np.ndarray]:
    """Run one condition from one seed; return `COLUMNS` by behavior, (measurements, columns)."""
    plan, world = Plan.of(preregistration), ToyWorld()
    require_world(plan.world, world.fingerprint)
    model = world.start(seed)
    parameters: list[Tensor] = list(model.parameters())
    generator = torch.Generator().manual_seed(seed)
    alignments = [
        SteepAlignments(behavior, model, parameters, plan, generator)
        for behavior in world.behaviors()
    ]
    optimizer, data = world.optimizer(model), world.batches(condition, seed=seed)
    for step in range(plan.steps):
        world.loss(model, next(data)).backward()
        if step % plan.every == 0:
            gradient = [p.grad for p in parameters if p.grad is not None]
            for one in alignments:
                one.measure(gradient, model, parameters)
        optimizer.step()
        optimizer.zero_grad()
    return {one.behavior.name: np.array(one.rows) for one in alignments}


def steep_directions(
    behavior: Behavior, model: nn.Module, parameters: list[Tensor], most: int, k: int
) -> VectorStack:
    """Return the `k` directions to which the margins of the first `most` probes are steepest."""
    jacobian = evaluation.margin_gradients(behavior, model, parameters, most)
    assert jacobian is not None
    return steep_stack(jacobian, k)


class SteepAlignments:
    """Alignment of task gradients with the steep directions of a behavior at θ₀.

    The directions of unrelated margins and random directions are there for comparison.
    """

    def __init__(
        self,
        behavior: Behavior,
        model: nn.Module,
        parameters: list[Tensor],
        plan: Plan,
        generator: torch.Generator,
    ) -> None:
        self.behavior = behavior
        self.rows: list[list[float]] = []

        def steep(of: Behavior) -> VectorStack:
            return steep_directions(of, model, parameters, plan.most, plan.k)

        self.stacks = {"steep": [steep(behavior)]}
        for kind in UNRELATED:
            others = [unrelated(kind, behavior, generator) for _ in range(plan.draws)]
            self.stacks[kind] = [steep(other) for other in others]
        directions = [
            [torch.randn(p.shape, generator=generator) for p in parameters] for _ in range(plan.k)
        ]
        self.stacks["random"] = [steep_stack(directions, plan.k)]

    def measure(self, gradient: Vector, model: nn.Module, parameters: list[Tensor]) -> None:
        """Append the alignments (of several draws their geometric mean) and both cosines."""
        length = float(norm(gradient))
        alignments = [
            float(np.exp(np.mean([np.log(alignment(gradient, length, one)) for one in stacks])))
            for stacks in self.stacks.values()
        ]
        own_loss = evaluation.loss_gradient(self.behavior, model, parameters)
        own_margin = evaluation.evaluate(self.behavior, model, parameters).gradient
        assert own_loss is not None
        assert own_margin is not None
        cosines = [float(cosine(gradient, own_loss)), -float(cosine(gradient, own_margin))]
        self.rows.append([*alignments, *cosines])


def unrelated(kind: str, behavior: Behavior, generator: torch.Generator) -> Behavior:
    """Return a behavior whose margins are unrelated to the given one.

    `targets`: the behavior's own probes with random targets; the largest other logit is then the
    right answer's. `pairs`: the difference of two random logits on its probes. `inputs`: the same
    on random tokens.
    """
    ids = behavior.probes.input_ids
    size = len(ToyWorld().config.vocabulary)
    drawn = torch.randint(size, (2, len(ids)), generator=generator)
    if kind == "targets":
        return Behavior.next_token(behavior.name, ids, drawn[0])
    if kind == "inputs":
        ids = torch.randint(size, ids.shape, generator=generator)
    return Behavior(behavior.name, ids, _difference(*drawn))


def _difference(one: Tensor, two: Tensor) -> Callable[[nn.Module, Tensor], Tensor]:
    def margins(model: nn.Module, ids: Tensor) -> Tensor:
        logits = model(ids).logits[:, -1]
        rows = torch.arange(len(ids))
        return logits[rows, one] - logits[rows, two]

    return margins
