"""Heads and neurons that the old skill and a new task both use."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from experiments.harness.cache import cached
from experiments.shared_circuits.plan import Plan
from experiments.shared_circuits.tasks import tasks
from experiments.worlds import ToyWorld
from experiments.worlds.training import train
from riprap.behaviors import Behavior
from riprap.diagnosis.geometry import HEAD, NEURON, Component, component_importance, find_components
from riprap.toy import batches

SHARED, UNSHARED, RANDOM = "shared", "unshared", "random"
OTHER_BATCHES = 10_000  # added to the seed of the copy that finds the new task's components

Array = NDArray[np.float64]


@cached("shared_circuits/units-{task}-{seed}-{plan.steps}-{plan.probes}.npz")
def importances(task: str, seed: int, plan: Plan) -> dict[str, Array]:
    """Measure importances for A at the start, and for the new task in a copy that has learned it.

    Returns:
        `old` and `new`, shape (components,): fall of the mean margin when each is ablated.
    """
    world = ToyWorld()
    model = world.start(seed)
    old = next(b for b in world.behaviors() if b.name == "A")
    components = find_components(model)
    before = component_importance(model, old, components)
    examples = tasks(world)[task]
    data = batches([examples], [world.config.batch], seed + OTHER_BATCHES)
    train(world, model, data, plan.steps)
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
    probes = examples[order[: plan.probes]]
    new = Behavior.next_token(task, probes.input_ids, probes.targets)
    return {"old": before, "new": component_importance(model, new, components)}


def select_components(
    held: str, components: Sequence[Component], old: Array, new: Array, share: float, seed: int
) -> list[Component]:
    """Return a share of the heads and the same share of the neurons.

    Importances are relative to the largest of their kind. `shared`: the largest minimum of both;
    `unshared`: of the others, the largest difference of the new task's and A's; `random n`: any,
    drawn by the seed and n.
    """
    selected: list[Component] = []
    for kind in (HEAD, NEURON):
        places = np.array([i for i, one in enumerate(components) if one.kind == kind])
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
        selected += [components[place] for place in places[chosen]]
    return selected
