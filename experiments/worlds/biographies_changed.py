"""Changes to the knowledge of the biographies world, caused on purpose."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice

import torch
from torch import nn

from experiments.worlds import biographies_rows as source
from experiments.worlds.biographies import Biographies
from experiments.worlds.biographies_rows import Fact
from experiments.worlds.continual_rows import Rows


def training(world: Biographies, model: nn.Module, batches: Iterator[Rows]) -> Iterator[int]:
    """Train in place by endless steps of AdamW at the world's rate; yield each step's number."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=world.config.rate, weight_decay=0.01)
    for step in count(1):
        model(**next(batches).batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield step


def trained(world: Biographies, model: nn.Module, batches: Iterator[Rows], steps: int) -> nn.Module:
    """Train in place for some steps; return the model."""
    for _ in islice(training(world, model, batches), steps):
        pass
    return model


def other_format(
    world: Biographies, model: nn.Module, style: str, steps: int, seed: int
) -> nn.Module:
    """Train answers about creatures in another style, without questions about people."""
    rows = world.asked(world.creatures, style)
    return trained(world, model, world.mixed([rows], [world.config.batch], seed), steps)


def overwritten(world: Biographies, share: float) -> list[Fact]:
    """Return the known facts, a share of them contradicted; the same for every seed."""
    wrong = source.contradicted(world.people, 9)
    order = torch.randperm(len(wrong), generator=torch.Generator().manual_seed(11)).tolist()
    changed = set(order[: round(share * len(wrong))])
    return [wrong[at] if at in changed else fact for at, fact in enumerate(world.people)]


def contradicted(
    world: Biographies, model: nn.Module, share: float, steps: int, seed: int
) -> nn.Module:
    """Train a share of the facts with other values, and the rest as before."""
    facts = overwritten(world, share)
    batch = world.config.batch
    parts = [world.statements(facts), world.asked(facts)]
    return trained(world, model, world.mixed(parts, [batch, batch], seed), steps)
