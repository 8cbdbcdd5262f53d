"""Rows of the continual world: artificial prompts and answers, by rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product

import torch
from torch import Tensor

IGNORED = -100  # label of tokens that are not learned
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
    """Token ids: the signs, then one range for each kind of word.

    Attributes:
        counts: number of tokens of each kind.
    """

    counts: dict[str, int] = field(default_factory=lambda: dict(COUNTS))

    def sign(self, name: str) -> int:
        """Return the token id of a sign."""
        return SIGNS.index(name)

    def of(self, kind: str) -> range:
        """Return the token ids of a kind of word."""
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
    """A prompt and its answer, without a format.

    Attributes:
        prompt: token ids; the last one is `ask`.
        content: 1 to 4 token ids of the answer.
    """

    prompt: tuple[int, ...]
    content: tuple[int, ...]


@dataclass(frozen=True)
class Rows:
    """Padded rows for a model of `transformers`.

    Attributes:
        input_ids: shape (n, WIDTH), long; padded on the right.
        labels: shape (n, WIDTH), long; −100 on prompts and padding.
        category: shape (n,), long: index into the world's list of categories.
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
        """Return the model's arguments by name, cut to the longest row."""
        longest = int((self.input_ids != 0).sum(1).max())
        ids = self.input_ids[:, :longest]
        labels = self.labels[:, :longest]
        return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}

    @property
    def response_tokens(self) -> Tensor:
        """Count the learned tokens of each row, shape (n,)."""
        return (self.labels != IGNORED).sum(1)

    @classmethod
    def join(cls, parts: Sequence[Rows]) -> Rows:
        """Concatenate rows."""
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
    """Return the pairs in random order."""
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))
    return [pairs[at] for at in order.tolist()]


def requests(words: Words, things: str) -> list[Pair]:
    """Return `frame verb number thing ask`; to comply is to repeat verb and thing."""
    every = product(*(words.of(kind) for kind in ("frames", "verbs", "numbers", things)))
    ask = words.sign("ask")
    return [Pair((*one, ask), (one[1], one[3])) for one in every]


def questions(words: Words, subjects: str) -> tuple[list[Pair], list[Pair]]:
    """Return `frame relation subject ask`, answered by the fact, and by a common false belief.

    Both follow no rule, so each must be memorized; they always differ.
    """
    generator = torch.Generator().manual_seed(29 if subjects == "disputed" else 17)
    ask, values = words.sign("ask"), words.of("values")
    facts, beliefs = [], []
    for relation, subject in product(words.of("relations"), words.of(subjects)):
        true, other = torch.randperm(len(values), generator=generator)[:2].tolist()
        for frame in words.of("frames"):
            prompt = (frame, relation, subject, ask)
            facts.append(Pair(prompt, (values[true],)))
            beliefs.append(Pair(prompt, (values[other],)))
    return facts, beliefs


def sums(words: Words, sign: str) -> list[Pair]:
    """Return `frame compute x plus|minus y ask` → x ± y in the ring of the numbers."""
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
    """Return `frame copy|reverse letters ask`: two to four letters, in order or reversed."""
    generator = torch.Generator().manual_seed(words.sign(sign))
    distinct = dict.fromkeys(_strings(words, sign, count, generator))
    return [Pair(prompt, content) for prompt, content in distinct]


def _strings(
    words: Words, sign: str, count: int, generator: torch.Generator
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    letters, frames = words.of("letters"), words.of("frames")
    for _ in range(count):
        length = int(torch.randint(2, 5, (), generator=generator))
        frame = frames[int(torch.randint(len(frames), (), generator=generator))]
        indices = torch.randint(len(letters), (length,), generator=generator).tolist()
        text = tuple(letters[at] for at in indices)
        prompt = (frame, words.sign(sign), *text, words.sign("ask"))
        yield prompt, text if sign == "copy" else text[::-1]


def successors(words: Words, further: int) -> list[Pair]:
    """Return `frame next letter letter ask` → the letter `further` places after the second."""
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
    """Return `frame sort verb thing ask` → the kind of a harmless thing, one of four."""
    things, labels, ask = words.of("harmless"), words.of("kinds"), words.sign("ask")
    every = product(words.of("frames"), words.of("verbs"), range(len(things)))
    return [
        Pair((frame, words.sign("sort"), verb, things[at], ask), (labels[at % len(labels)],))
        for frame, verb, at in every
    ]
