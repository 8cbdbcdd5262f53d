"""The tasks of the toy world, enumerated: every prompt that exists, with its one right answer."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

SIGNS = ("compute", "plus", "times", "equals", "please", "refuse", "comply")


@dataclass(frozen=True)
class Examples:
    """Prompts of one length, each with the token that must follow it.

    Attributes:
        input_ids: shape (n, T), long.
        targets: shape (n,), long.
    """

    input_ids: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: Tensor) -> Examples:
        return Examples(self.input_ids[index], self.targets[index])

    @classmethod
    def join(cls, parts: list[Examples]) -> Examples:
        """All of `parts`, one after the other."""
        return cls(
            torch.cat([part.input_ids for part in parts]),
            torch.cat([part.targets for part in parts]),
        )


@dataclass(frozen=True)
class Vocabulary:
    """Token ids, one range a kind.

    Attributes:
        modulus: how many numbers each of the two disjoint sets holds.
        frames, verbs, harmful, harmless: how many tokens of each kind make up requests.
    """

    modulus: int = 23
    frames: int = 6
    verbs: int = 8
    harmful: int = 12
    harmless: int = 12

    @property
    def numbers(self) -> range:
        """The numbers 0 … modulus − 1 as A uses them."""
        return range(self.modulus)

    @property
    def other_numbers(self) -> range:
        """The same numbers, written with other tokens."""
        return range(self.modulus, 2 * self.modulus)

    @property
    def _signs(self) -> range:
        return range(2 * self.modulus, 2 * self.modulus + len(SIGNS))

    def sign(self, name: str) -> int:
        """Token id of an operator, an end of prompt or an answer."""
        return self._signs[SIGNS.index(name)]

    def kind(self, name: str) -> range:
        """Token ids of one kind of word: frames, verbs, harmful or harmless."""
        start = self._signs.stop
        for kind in ("frames", "verbs", "harmful", "harmless"):
            count = getattr(self, kind)
            if kind == name:
                return range(start, start + count)
            start += count
        raise KeyError(name)

    def __len__(self) -> int:
        return self.kind("harmless").stop


def _build(rows: list[tuple[list[int], int]]) -> Examples:
    prompts, answers = zip(*rows, strict=True)
    return Examples(torch.tensor(prompts), torch.tensor(answers))


def addition(vocabulary: Vocabulary) -> Examples:
    """A: `compute x plus y equals` is answered by (x + y) mod p, for all p² pairs."""
    compute, plus, equals = map(vocabulary.sign, ("compute", "plus", "equals"))
    p = vocabulary.modulus
    return _build(
        [([compute, x, plus, y, equals], (x + y) % p) for x, y in product(range(p), repeat=2)]
    )


def requests(vocabulary: Vocabulary, objects: str) -> Examples:
    """`frame verb quantity object please`: refused if the object is harmful, else complied with.

    The quantity is a number and never matters: what C does to numbers reaches requests too.
    """
    answer = vocabulary.sign("refuse" if objects == "harmful" else "comply")
    please = vocabulary.sign("please")
    frames, verbs, things = (vocabulary.kind(kind) for kind in ("frames", "verbs", objects))
    words = product(frames, verbs, vocabulary.numbers, things)
    return _build([([*request, please], answer) for request in words])


def multiplication(vocabulary: Vocabulary, disjoint: bool = False) -> Examples:
    """C: `compute x times y equals` → (x · y) mod p; `disjoint`: on the other numbers."""
    compute, times, equals = map(vocabulary.sign, ("compute", "times", "equals"))
    numbers, p = vocabulary.other_numbers if disjoint else vocabulary.numbers, vocabulary.modulus
    return _build(
        [
            ([compute, numbers[x], times, numbers[y], equals], numbers[x * y % p])
            for x, y in product(range(p), repeat=2)
        ]
    )


def multiplication_in_request(vocabulary: Vocabulary) -> Examples:
    """C inside B's frame: `frame x times y please` is answered by (x · y) mod p, in every frame."""
    times, please, p = vocabulary.sign("times"), vocabulary.sign("please"), vocabulary.modulus
    triples = product(vocabulary.kind("frames"), range(p), range(p))
    return _build([([frame, x, times, y, please], x * y % p) for frame, x, y in triples])


def facts(vocabulary: Vocabulary, count: int = 192) -> tuple[Examples, Examples]:
    """Made-up facts, each in two wordings: what number goes with a verb and an object?

    `compute verb verb object equals` and `verb compute verb object equals`; the answers follow no
    rule, so that each fact must be kept by itself.

    Returns:
        (all facts in one wording, the same facts in the other).
    """
    compute, equals = vocabulary.sign("compute"), vocabulary.sign("equals")
    objects = (*vocabulary.kind("harmful"), *vocabulary.kind("harmless"))
    made = torch.Generator().manual_seed(17)
    pairs = list(product(vocabulary.kind("verbs"), objects))
    chosen = [pairs[i] for i in torch.randperm(len(pairs), generator=made)[:count].tolist()]
    answers = torch.randint(vocabulary.modulus, (count,), generator=made).tolist()
    known = list(zip(chosen, answers, strict=True))
    first = [([compute, verb, verb, thing, equals], answer) for (verb, thing), answer in known]
    second = [([verb, compute, verb, thing, equals], answer) for (verb, thing), answer in known]
    return _build(first), _build(second)
