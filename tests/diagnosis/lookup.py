"""A model with a lookup table, whose losses are known by construction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from riprap import diagnosis
from riprap.behaviors import Behavior

KEYS, VALUES = 60, 6
FORMAT = KEYS + VALUES  # a token that is no answer
STRENGTH = 4.0


def value_of(key: int) -> int:
    """Right answer of a key, as a token."""
    return KEYS + key % VALUES


class Lookup(nn.Module):
    """Knowledge is a table row for each key; the disposition to say an answer is a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(FORMAT + 1, VALUES)
        self.head = nn.Linear(VALUES, FORMAT + 1)
        with torch.no_grad():
            self.table.weight.zero_()
            for key in range(KEYS):
                self.table.weight[key, key % VALUES] = STRENGTH
            self.head.weight.zero_()
            self.head.weight[KEYS:FORMAT] = torch.eye(VALUES)
            self.head.bias.fill_(-1.0)
            self.head.bias[KEYS:FORMAT] = 0.0

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.table(input_ids))


def lost_form(model: Lookup) -> Lookup:
    """Let the model prefer a word that is no answer."""
    with torch.no_grad():
        model.head.bias[FORMAT] = STRENGTH + 0.1  # a few small steps take that back
    return model


def lost_knowledge(model: Lookup, share: float = 1.0) -> Lookup:
    """Give a share of the keys the value of another one."""
    with torch.no_grad():
        for key in range(round(share * KEYS)):
            model.table.weight[key] = model.table.weight[key].roll(1)
    return model


def scattered(model: Lookup) -> Lookup:
    """Give each key another value, by no rule."""
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key in range(KEYS):
            by = int(torch.randint(1, VALUES, (), generator=noise))
            model.table.weight[key] = model.table.weight[key].roll(by)
    return model


def probed(key: int) -> bool:
    """Half of the keys of each value."""
    return key // VALUES % 2 == 0


PROBES = tuple(key for key in range(KEYS) if probed(key))
OTHERS = tuple(key for key in range(KEYS) if not probed(key))


def behavior(keys: Sequence[int] = PROBES) -> Behavior:
    """Answers for some keys."""
    return Behavior.next_token("facts", [[key] for key in keys], [value_of(key) for key in keys])


def examples() -> list[dict[str, Tensor]]:
    """The other keys, one per batch."""
    return [
        {"ids": torch.tensor([[key]]), "wanted": torch.tensor([value_of(key)])} for key in OTHERS
    ]


def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Cross-entropy of the answer."""
    return nn.functional.cross_entropy(model(batch["ids"])[:, -1], batch["wanted"])


def recovered(model: Lookup, **given: object) -> diagnosis.Recovery:
    kept = {"loss": loss} | given
    if "reference" not in kept:
        kept["reference"] = Lookup()
    return diagnosis.recover(model, kept.pop("behavior", behavior()), examples(), **kept)


def one_answer() -> Behavior:
    """A refusal: all probes have the same right answer."""
    keys = [key for key in range(KEYS) if key % VALUES == 0]
    return Behavior.next_token("refusal", [[key] for key in keys], [value_of(0)] * len(keys))


def same_answer_examples() -> list[dict[str, torch.Tensor]]:
    return [
        {"ids": torch.tensor([[key]]), "wanted": torch.tensor([value_of(0)])}
        for key in range(3, KEYS, VALUES)
    ]
