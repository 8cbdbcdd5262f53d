"""Recorder of a run: a pretrained model is trained on, and its behaviors are read at each step."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.onset.held_out.optimizers import make, share
from experiments.onset.held_out.plan import Recipe
from experiments.onset.held_out.world import OLD, Behavior, World
from experiments.onset.trace import BehaviorTrace, Trace

REFRESH = 40
FIRST_REFRESH = 8


def record(world: World, start: nn.Module, behaviors: dict[str, Behavior], recipe: Recipe) -> Trace:
    """Train a copy of `start` as the recipe says, and return what its behaviors did."""
    model = copy.deepcopy(start)
    weights = list(model.parameters())
    optimizers = make(recipe.optimizer, model, recipe.learning_rate)
    largest = [[group["lr"] for group in one.param_groups] for one in optimizers]
    rates = np.array([share(recipe.schedule, at, recipe.steps) for at in range(recipe.steps)])
    rates /= rates.max()
    refreshed, losses, protected = [], [], {}
    notes: dict[str, Any] = {name: ([], [], []) for name in behaviors}
    _look(world, model, behaviors, notes)
    for step, (inputs, targets) in enumerate(batches(world, recipe)):
        if step == FIRST_REFRESH or step % REFRESH == 0:
            refreshed.append(step)
            for name, probes in behaviors.items():
                protected[name] = mean_margin_gradient(world, model, probes)
                notes[name][2].append(protected[name].norm().item())
        before = _flat(weights)
        for one, tops in zip(optimizers, largest, strict=True):
            one.zero_grad()
            for group, top in zip(one.param_groups, tops, strict=True):
                group["lr"] = top * rates[step]
        loss = world.loss(model, inputs, targets)
        loss.backward()
        for one in optimizers:
            one.step()
        losses.append(loss.item())
        update = _flat(weights) - before
        for name, gradient in protected.items():
            notes[name][1].append((gradient @ update).item())
        _look(world, model, behaviors, notes)
    traced = {
        name: BehaviorTrace(
            np.array(margins), probes.groups, np.array(interference), np.array(norms)
        )
        for (name, probes), (margins, interference, norms) in zip(
            behaviors.items(), notes.values(), strict=True
        )
    }
    return Trace(
        "held_out", recipe.name, "confirmatory", recipe.about(), np.arange(recipe.steps + 1),
        rates, np.array(losses), np.array(refreshed), traced,
    )  # fmt: skip


def batches(world: World, recipe: Recipe) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of a run: its task, or after the switch another, with old rows mixed in."""
    rng = np.random.default_rng(recipe.seed)
    for step in range(recipe.steps):
        first = recipe.then is None or step < recipe.switch
        task = recipe.task if first or recipe.then is None else recipe.then
        old = round(world.batch_size * recipe.replay)
        inputs, targets = world.batch(task, world.batch_size - old, rng)
        if old:
            more, answers = world.batch(OLD, old, rng)
            inputs, targets = torch.cat([inputs, more]), torch.cat([targets, answers])
        yield inputs, targets


def mean_margin_gradient(world: World, model: nn.Module, probes: Behavior) -> Tensor:
    """Return h_b, the gradient of the mean margin in all weights, flat."""
    weights = list(model.parameters())
    mean = world.margins(model, probes).mean()
    parts = torch.autograd.grad(mean, weights, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])


def _look(
    world: World, model: nn.Module, behaviors: dict[str, Behavior], notes: dict[str, Any]
) -> None:
    """Note the margins of all behaviors."""
    with torch.no_grad():
        for name, probes in behaviors.items():
            notes[name][0].append(world.margins(model, probes).numpy())


def _flat(weights: list[nn.Parameter]) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in weights])
