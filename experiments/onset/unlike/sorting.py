"""A decoder transformer that sorts and reverses short lists and knows a table by heart."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from experiments.onset.unlike.base import UNASKED, Draw, Rows, World, join

ITEMS = 16  # tokens 0 to 15
SORT, REVERSE, LOOK, COPY, COUNT, ANSWER, PAD = range(ITEMS, ITEMS + 7)
LENGTHS = (2, 3, 4, 5)
POSITIONS = 2 * max(LENGTHS) + 1


class Block(nn.Module):
    """Causal attention and a feed-forward layer, each after a normalization."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_feed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the hidden states after the block, shape (n, positions, width)."""
        n, positions, width = hidden.shape
        parts = self.qkv(self.before_attention(hidden)).view(n, positions, 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.out(mixed.transpose(1, 2).reshape(n, positions, width))
        return hidden + self.down(F.gelu(self.up(self.before_feed(hidden))))


class Decoder(nn.Module):
    """Two blocks over token and position embeddings."""

    def __init__(self, width: int = 48, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(PAD + 1, width), nn.Embedding(POSITIONS, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, ITEMS)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of the next item, shape (n, positions, ITEMS)."""
        hidden = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
        logits: Tensor = self.head(self.norm(self.blocks(hidden)))
        return logits


def rows(task: int, questions: Tensor, answers: Tensor, groups: Tensor) -> Rows:
    """Return rows `task, question, ANSWER, answer`; it is asked for each item of the last."""
    n, length = questions.shape
    text = torch.full((n, POSITIONS + 1), PAD)
    text[:, 0], text[:, length + 1] = task, ANSWER
    text[:, 1 : length + 1] = questions
    start, end = length + 2, length + 2 + answers.shape[1]
    text[:, start:end] = answers
    targets = torch.full((n, POSITIONS), UNASKED)
    targets[:, start - 1 : end - 1] = answers
    return Rows(text[:, :-1], targets, groups)


def lists(task: int, answer: Callable[[Tensor], Tensor], lengths: tuple[int, ...]) -> Draw:
    """Return a task on lists of distinct items; the groups are their lengths."""

    def draw(generator: torch.Generator, n: int) -> Rows:
        kinds = torch.randint(len(lengths), (n,), generator=generator)
        order = torch.rand(n, ITEMS, generator=generator).argsort(1)
        parts = []
        for kind, length in enumerate(lengths):
            questions = order[kinds == kind, :length]
            groups = torch.full((len(questions),), length)
            parts.append(rows(task, questions, answer(questions), groups))
        shuffled = torch.randperm(n, generator=generator)
        return join(parts)[shuffled]

    return draw


def lookups(first: int, last: int, seed: int) -> Draw:
    """Return a table of pairs of items and their values; pairs number `first` to `last` of 256."""
    values = torch.randint(ITEMS, (ITEMS**2,), generator=torch.Generator().manual_seed(seed))
    order = torch.randperm(ITEMS**2, generator=torch.Generator().manual_seed(7))[first:last]

    def draw(generator: torch.Generator, n: int) -> Rows:
        places = torch.cat(
            [torch.randperm(len(order), generator=generator)] * (n // len(order) + 1)
        )
        pairs = order[places[:n]]
        questions = torch.stack([pairs // ITEMS, pairs % ITEMS], 1)
        return rows(LOOK, questions, values[pairs][:, None], questions[:, 0] // 4)

    return draw


def ascending(questions: Tensor) -> Tensor:
    """Return the items in order."""
    return questions.sort(1).values


def count_larger(questions: Tensor) -> Tensor:
    """Return how many items are larger than the first, shape (n, 1)."""
    return (questions > questions[:, :1]).sum(1, keepdim=True)


OLD: dict[str, Draw] = {
    "sort": lists(SORT, ascending, LENGTHS),
    "reverse": lists(REVERSE, lambda items: items.flip(1), LENGTHS),
    "lookup": lookups(0, 60, seed=1),
}
WORLD = World(
    name="sorting",
    build=Decoder,
    behaviors=OLD,
    probes=OLD,
    related={
        "long_lists": lists(SORT, ascending, (4, 5)),
        "sort_again": OLD["sort"],
        "lookup_more": lookups(30, 90, seed=1),
    },
    new={
        "descending": lists(SORT, lambda items: ascending(items).flip(1), LENGTHS),
        "lookup_changed": lookups(0, 60, seed=2),
        "lookup_new": lookups(60, 160, seed=3),
        "copy": lists(COPY, lambda items: items, LENGTHS),
        "count": lists(COUNT, count_larger, (4, 5)),
    },
    n_probes={"sort": 48, "reverse": 36, "lookup": 48},
    pretraining=(2500, 96, 3e-3),
    rates={"sgd": 6e-3, "adamw": 6e-4, "adafactor": 4e-3, "muon": 2e-3},
    batch=24,
)
