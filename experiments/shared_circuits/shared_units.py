"""Which heads and neurons the old skill and a new task both use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from experiments.shared_circuits import tasks as ground
from experiments.shared_circuits.plan import Plan
from experiments.worlds import ToyWorld
from riprap.behaviors import Behavior
from riprap.diagnosis.geometry import HEAD, NEURON, Component, component_importance, find_components
from riprap.toy import batches

RAW = Path("runs/circuit")  # raw runs; not committed
SHARED, UNSHARED, RANDOM = "shared", "unshared", "random"
APART = 10_000  # the copy in which the new task's units are found sees other batches

Array = NDArray[np.float64]


def file_of(task: str, seed: int, plan: Plan) -> Path:
    """Where the importances of units are kept."""
    return RAW / f"units-{task}-{seed}-{plan.steps}-{plan.probes}.npz"


def find(task: str, seed: int, plan: Plan) -> tuple[Array, Array]:
    """Importances for A at the start, and for the new task in a copy that has learned it.

    Returns:
        two arrays, shape (units,): by how much the mean margin falls when each is ablated.
    """
    path = file_of(task, seed, plan)
    if not path.exists():
        torch.set_num_threads(1)
        world = ToyWorld()
        model = world.start(seed)
        old = next(b for b in world.behaviors() if b.name == "A")
        every = find_components(model)
        before = component_importance(model, old, every)
        examples = ground.tasks(world)[task]
        optimizer = world.optimizer(model)
        data = batches([examples], [world.config.batch], seed + APART)
        for _ in range(plan.steps):
            world.loss(model, next(data)).backward()
            optimizer.step()
            optimizer.zero_grad()
        chosen = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
        asked = examples[chosen[: plan.probes]]
        new = Behavior.next_token(task, asked.input_ids, asked.targets)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"partial-{path.name}")
        np.savez(partial, old=before, new=component_importance(model, new, every))
        partial.rename(path)
    with np.load(path) as found:
        return found["old"], found["new"]


def picked(
    held: str, every: Sequence[Component], old: Array, new: Array, share: float, seed: int
) -> list[Component]:
    """A share of the heads and as large a share of the neurons.

    Importances are taken as shares of the largest of their kind. `shared`: those of which the
    lesser of the two shares is largest; `unshared`: of the others, those of which the new task's
    share is most above A's; `random n`: any, drawn by the seed and n.
    """
    found: list[Component] = []
    for kind in (HEAD, NEURON):
        places = np.array([i for i, unit in enumerate(every) if unit.kind == kind])
        count = max(1, round(share * len(places)))
        own = [np.clip(a[places], 0, None) / a[places].max() for a in (old, new)]
        shared = np.argsort(-np.minimum(*own), kind="stable")[:count]
        if held == SHARED:
            chosen = shared
        elif held == UNSHARED:
            ranked = np.argsort(own[0] - own[1], kind="stable")
            chosen = ranked[~np.isin(ranked, shared)][:count]
        else:
            draw = int(held.removeprefix(f"{RANDOM} "))
            noise = np.random.default_rng([seed, draw, kind == HEAD])
            chosen = noise.choice(len(places), count, replace=False)
        found += [every[place] for place in places[chosen]]
    return found
