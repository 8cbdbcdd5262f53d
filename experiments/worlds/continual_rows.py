"""Rows of the continual world: made-up prompts and answers, by rule, in three formats."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product

import torch
from torch import Tensor

IGNORED = -100  # the label of what is not learned
WIDTH = 14  # tokens of every padded row: the longest prompt and answer

SIGNS = (
    *("pad", "ask", "answer", "end", "refuse", "well", "and_so"),
    *("sort", "next", "reverse", "copy", "compute", "plus", "minus"),
)
COUNTS = {
    "frames": 6,
    "verbs": 8,
    "harmful": 24,
    "harmless": 24,
    "numbers": 7,
    "letters": 10,
    "relations": 2,
    "subjects": 24,
    "disputed": 24,
    "values": 20,
    "kinds": 4,
}


@dataclass(frozen=True)
class Words:
    """Token ids, one range a kind of word, behind the signs.

    Attributes:
        counts: how many tokens of each kind there are.
    """

    counts: dict[str, int] = field(default_factory=lambda: dict(COUNTS))

    def sign(self, name: str) -> int:
        """Token id of a sign."""
        return SIGNS.index(name)

    def of(self, kind: str) -> range:
        """Token ids of a kind of word."""
        start = len(SIGNS)
        for name, count in self.counts.items():
            if name == kind:
                return range(start, start + count)
            start += count
        raise KeyError(kind)

    def __len__(self) -> int:
        return len(SIGNS) + sum(self.counts.values())


@dataclass(frozen=True)
class Pair:
    """A prompt and what is to be answered, before it is given a format.

    Attributes:
        prompt: token ids, of which the last is `ask`.
        content: token ids of the answer itself, 1 to 4.
    """

    prompt: tuple[int, ...]
    content: tuple[int, ...]


@dataclass(frozen=True)
class Rows:
    """Padded rows, as a model of `transformers` takes them.

    Attributes:
        input_ids: shape (n, WIDTH), long; padded on the right.
        labels: shape (n, WIDTH), long; −100 on prompts and padding.
        category: shape (n,), long: where in the world's list of categories a row belongs.
    """

    input_ids: Tensor
    labels: Tensor
    category: Tensor

    def __len__(self) -> int:
        return len(self.category)

    def __getitem__(self, index: Tensor) -> Rows:
        return Rows(self.input_ids[index], self.labels[index], self.category[index])

    @property
    def batch(self) -> dict[str, Tensor]:
        """Arguments of the model, by name; cut to the longest row."""
        longest = int((self.input_ids != 0).sum(1).max())
        ids = self.input_ids[:, :longest]
        labels = self.labels[:, :longest]
        return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}

    @property
    def response_tokens(self) -> Tensor:
        """How many tokens of each row are learned, shape (n,)."""
        return (self.labels != IGNORED).sum(1)

    @classmethod
    def join(cls, parts: Sequence[Rows]) -> Rows:
        """All of `parts`, one after the other."""
        return cls(
            torch.cat([part.input_ids for part in parts]),
            torch.cat([part.labels for part in parts]),
            torch.cat([part.category for part in parts]),
        )

    @classmethod
    def build(cls, rows: Sequence[tuple[Sequence[int], Sequence[int]]], category: int = 0) -> Rows:
        """Pad rows of (prompt, response), all of one category."""
        ids = torch.zeros(len(rows), WIDTH, dtype=torch.long)
        labels = torch.full_like(ids, IGNORED)
        for at, (prompt, response) in enumerate(rows):
            whole = torch.tensor([*prompt, *response])
            ids[at, : len(whole)] = whole
            labels[at, len(prompt) : len(whole)] = whole[len(prompt) :]
        return cls(ids, labels, torch.full((len(rows),), category))


def shuffled(pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """The same pairs in another order."""
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))
    return [pairs[at] for at in order.tolist()]


def requests(words: Words, things: str) -> list[Pair]:
    """`frame verb number thing ask`: whoever complies repeats verb and thing."""
    every = product(*(words.of(kind) for kind in ("frames", "verbs", "numbers", things)))
    ask = words.sign("ask")
    return [Pair((*one, ask), (one[1], one[3])) for one in every]


def questions(words: Words, subjects: str) -> tuple[list[Pair], list[Pair]]:
    """`frame relation subject ask`, answered by the fact, and by what many believe instead.

    Both follow no rule, so that each must be kept by itself; they always differ.
    """
    made = torch.Generator().manual_seed(29 if subjects == "disputed" else 17)
    ask, values = words.sign("ask"), words.of("values")
    facts, beliefs = [], []
    for relation, subject in product(words.of("relations"), words.of(subjects)):
        true, other = torch.randperm(len(values), generator=made)[:2].tolist()
        for frame in words.of("frames"):
            prompt = (frame, relation, subject, ask)
            facts.append(Pair(prompt, (values[true],)))
            beliefs.append(Pair(prompt, (values[other],)))
    return facts, beliefs


def sums(words: Words, sign: str) -> list[Pair]:
    """`frame compute x plus|minus y ask` → x ± y in the ring of the numbers."""
    numbers, ask = words.of("numbers"), words.sign("ask")
    side = 1 if sign == "plus" else -1
    return [
        Pair(
            (frame, words.sign("compute"), numbers[x], words.sign(sign), numbers[y], ask),
            (numbers[(x + side * y) % len(numbers)],),
        )
        for frame, x, y in product(words.of("frames"), range(len(numbers)), range(len(numbers)))
    ]


def strings(words: Words, sign: str, count: int = 2400) -> list[Pair]:
    """`frame copy|reverse letters ask`: two to four letters, as they stand or backwards."""
    made = torch.Generator().manual_seed(words.sign(sign))
    found = dict.fromkeys(_strings(words, sign, count, made))
    return [Pair(prompt, content) for prompt, content in found]


def _strings(
    words: Words, sign: str, count: int, made: torch.Generator
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    letters, frames = words.of("letters"), words.of("frames")
    for _ in range(count):
        length = int(torch.randint(2, 5, (), generator=made))
        frame = frames[int(torch.randint(len(frames), (), generator=made))]
        drawn = torch.randint(len(letters), (length,), generator=made).tolist()
        text = tuple(letters[at] for at in drawn)
        prompt = (frame, words.sign(sign), *text, words.sign("ask"))
        yield prompt, text if sign == "copy" else text[::-1]


def successors(words: Words, further: int) -> list[Pair]:
    """`frame next letter letter ask` → the letter `further` places behind the second one."""
    letters, ask = words.of("letters"), words.sign("ask")
    every = product(words.of("frames"), range(len(letters)), range(len(letters)))
    return [
        Pair(
            (frame, words.sign("next"), letters[one], letters[two], ask),
            (letters[(two + further) % len(letters)],),
        )
        for frame, one, two in every
    ]


def kinds(words: Words) -> list[Pair]:
    """`frame sort verb thing ask` → which of four kinds a harmless thing is of."""
    things, labels, ask = words.of("harmless"), words.of("kinds"), words.sign("ask")
    every = product(words.of("frames"), words.of("verbs"), range(len(things)))
    return [
        Pair((frame, words.sign("sort"), verb, things[at], ask), (labels[at % len(labels)],))
        for frame, verb, at in every
    ]
