"""One run: a new task on the toy world, and how its gradient lies to steep directions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.harness.preregistration import Preregistration, PreregistrationError
from experiments.steep_directions.plan import Plan
from experiments.worlds import ToyWorld
from riprap import evaluation as probing
from riprap.behaviors import Behavior
from riprap.linalg import Stack, Vector, cosine, norm
from riprap.signals.gradients import alignment, steep_stack

RAW = Path("runs/steep")  # alignments and cosines; not committed
UNRELATED = ("targets", "pairs", "inputs")
COLUMNS = ("steep", *UNRELATED, "random", "cosine_loss", "cosine_margin")


def file_of(condition: str, seed: int) -> Path:
    """Where a run's measurements lie: for each behaviour an array, (measurements, columns)."""
    return RAW / f"{condition}-{seed}.npz"


def simulate(condition: str, seed: int, preregistration: Preregistration) -> None:
    """One run; alignments of `COLUMNS` at each measured step end up in its file.

    Raises:
        ProtocolError: the protocol was made for another world.
    """
    path = file_of(condition, seed)
    if path.exists():
        return
    torch.set_num_threads(1)  # the world is too small for two cores to help each other
    plan, world = Plan.of(preregistration), ToyWorld()
    if plan.world != world.fingerprint:
        raise PreregistrationError(
            f"protocol {preregistration.name!r} was made for another toy world: amend it"
        )
    model = world.start(seed)
    parameters: list[Tensor] = list(model.parameters())
    made = torch.Generator().manual_seed(seed)
    watched = [Watched(behavior, model, parameters, plan, made) for behavior in world.behaviors()]
    optimizer, data = world.optimizer(model), world.batches(condition, seed=seed)
    for step in range(plan.steps):
        world.loss(model, next(data)).backward()
        if step % plan.every == 0:
            gradient = [p.grad for p in parameters if p.grad is not None]
            for one in watched:
                one.measure(gradient, model, parameters)
        optimizer.step()
        optimizer.zero_grad()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"partial-{path.name}")
    measured: dict[str, Any] = {one.behavior.name: np.array(one.rows) for one in watched}
    np.savez_compressed(partial, **measured)
    partial.rename(path)


class Watched:
    """A behaviour, its steep directions at θ₀, and those of margins that are none of its own."""

    def __init__(
        self,
        behavior: Behavior,
        model: nn.Module,
        parameters: list[Tensor],
        plan: Plan,
        made: torch.Generator,
    ) -> None:
        self.behavior = behavior
        self.rows: list[list[float]] = []

        def steep(of: Behavior) -> Stack:
            jacobian = probing.margin_gradients(of, model, parameters, plan.most)
            assert jacobian is not None
            return steep_stack(jacobian, plan.k)

        self.stacks = {"steep": [steep(behavior)]}
        for kind in UNRELATED:
            drawn = [unrelated(kind, behavior, made) for _ in range(plan.draws)]
            self.stacks[kind] = [steep(one) for one in drawn]
        directions = [
            [torch.randn(p.shape, generator=made) for p in parameters] for _ in range(plan.k)
        ]
        self.stacks["random"] = [steep_stack(directions, plan.k)]

    def measure(self, gradient: Vector, model: nn.Module, parameters: list[Tensor]) -> None:
        """Alignments, of several draws their geometric mean, and both whole cosines."""
        length = float(norm(gradient))
        found = [
            float(np.exp(np.mean([np.log(alignment(gradient, length, one)) for one in stacks])))
            for stacks in self.stacks.values()
        ]
        own_loss = probing.loss_gradient(self.behavior, model, parameters)
        own_margin = probing.look(self.behavior, model, parameters).gradient
        assert own_loss is not None
        assert own_margin is not None
        cosines = [float(cosine(gradient, own_loss)), -float(cosine(gradient, own_margin))]
        self.rows.append([*found, *cosines])


def unrelated(kind: str, behavior: Behavior, made: torch.Generator) -> Behavior:
    """Margins that say nothing of the behaviour.

    `targets`: the behaviour's own probes with random targets; the largest other logit is then the
    right answer's. `pairs`: the difference of two random logits on its probes. `inputs`: the same
    on random tokens.
    """
    ids = behavior.probes.input_ids
    size = len(ToyWorld().config.vocabulary)
    drawn = torch.randint(size, (2, len(ids)), generator=made)
    if kind == "targets":
        return Behavior.next_token(behavior.name, ids, drawn[0])
    if kind == "inputs":
        ids = torch.randint(size, ids.shape, generator=made)
    return Behavior(behavior.name, ids, _difference(*drawn))


def _difference(one: Tensor, two: Tensor) -> Callable[[nn.Module, Tensor], Tensor]:
    def margins(model: nn.Module, ids: Tensor) -> Tensor:
        logits = model(ids).logits[:, -1]
        rows = torch.arange(len(ids))
        return logits[rows, one] - logits[rows, two]

    return margins
