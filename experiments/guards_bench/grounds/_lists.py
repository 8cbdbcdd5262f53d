"""An unlike transformer: plain blocks, learned positions, questions about short lists."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experiments.guards_bench.grounds._base import Ground, OldTask, Stage, shuffled, train
from experiments.onset.unlike.sorting import ITEMS, PAD, Decoder
from riprap.toy import CACHE, Examples, fingerprint, train_or_load

LARGEST, MIDDLE, FIRST, LOOK, ANSWER = range(ITEMS, ITEMS + 5)  # signs; the items come before
LENGTH, KNOWN, LEARNED = 5, 120, 100  # items of a list; pairs of each table
LISTS = 4000


@dataclass(frozen=True)
class Pretraining:
    """How the model is trained before the bench; a part of the stored model's name."""

    steps: int = 1500
    last_steps: int = 300
    batch: int = 128
    rate: float = 2e-3


class ListModel(nn.Module):
    """A decoder of two blocks with a head of items."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = Decoder()

    @property
    def blocks(self) -> nn.Module:
        """The blocks."""
        return self.decoder.blocks

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return logits, shape (n, positions, ITEMS)."""
        logits: Tensor = self.decoder(input_ids)
        return logits


def questions(sign: int, lists: Tensor, answers: Tensor) -> Examples:
    """Return rows `sign, list, ANSWER`; short lists are filled up."""
    text = torch.full((len(lists), LENGTH + 2), PAD)
    text[:, 0], text[:, -1] = sign, ANSWER
    text[:, 1 : lists.shape[1] + 1] = lists
    return Examples(text, answers)


def of_lists() -> dict[str, Examples]:
    """Return the questions about lists of distinct items, each with its answer."""
    generator = torch.Generator().manual_seed(0)
    lists = torch.rand(3 * LISTS, ITEMS, generator=generator).argsort(1)[:, :LENGTH]
    first, second, third = lists.split(LISTS)
    return {
        "largest": questions(LARGEST, first, first.amax(1)),
        "middle": questions(MIDDLE, second, second.median(1).values),
        "first": questions(FIRST, third, third[:, 0]),
    }


def table() -> tuple[Examples, Examples]:
    """Return the known and the new part of a table of pairs, whose values follow no rule."""
    generator = torch.Generator().manual_seed(7)
    order = torch.randperm(ITEMS**2, generator=generator)
    values = torch.randint(ITEMS, (ITEMS**2,), generator=generator)
    rows = questions(LOOK, torch.stack([order // ITEMS, order % ITEMS], 1), values[order])
    return rows[:KNOWN], rows[KNOWN : KNOWN + LEARNED]


class Lists(Ground):
    """Questions about lists and a table are kept while more of the table is learned."""

    name = "lists"
    about = (
        "a plain transformer learns 100 more entries of a table by heart; entries that are "
        "tested are never replayed; AdamW at 1e-3"
    )
    layer = "decoder.blocks.1"

    def start(self, seed: int) -> nn.Module:
        """Return the model that knows the old tasks; it is trained once a seed and stored."""
        torch.manual_seed(seed)
        model, how = ListModel(), Pretraining()
        parts = [*(rows[:3000] for rows in of_lists().values()), table()[0]]

        def learn(model: nn.Module) -> None:
            optimizer = torch.optim.AdamW(model.parameters(), lr=how.rate)
            train(model, optimizer, parts, how.steps, how.batch, seed)
            for group in optimizer.param_groups:
                group["lr"] /= 10
            train(model, optimizer, parts, how.last_steps, how.batch, seed + 1)

        world = fingerprint(how, {str(at): part for at, part in enumerate(parts)})
        train_or_load(model, world, seed, CACHE, learn)
        return model

    def stages(self, seed: int) -> list[Stage]:
        """Return the only stage."""
        old = []
        for name, rows in of_lists().items():
            probes, pool, _ = shuffled(rows[:3000], 40, 60, seed=3)
            old.append(OldTask(name, probes, pool, rows[3000:3400]))
        known, new = table()
        probes, pool, rest = shuffled(known, 40, 40, seed=3)
        old.append(OldTask("table", probes, pool, rest))
        return [Stage(tuple(old), new, new, 400, 32, _adamw)]


def _adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3)
