"""New tasks that cross functions with words, on the toy world."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import torch

from experiments.worlds import ToyWorld
from riprap.toy import Examples, Vocabulary, fingerprint

NULL = "null"
APART = "C_apart"
TABLE_SEED = 23


def tasks(world: ToyWorld) -> dict[str, Examples]:
    """Return every task by name: those of the world, and

    - `first`: `compute x times y equals` → x; structured, without computation;
    - `lookup`: the same prompts → a number that follows no rule and must be memorized;
    - `first_disjoint`, `lookup_disjoint`: both on the other numbers;
    - `C_apart`: multiplication of the other numbers between words that are not in A,
      `frame x verb y please`, always with the same frame and verb.
    """
    words = world.config.vocabulary
    p = words.modulus
    draws = torch.Generator().manual_seed(TABLE_SEED)
    table = torch.randint(p, (p, p), generator=draws).tolist()
    usual = [words.sign(name) for name in ("compute", "times", "equals")]
    apart = [words.kind("frames")[0], words.kind("verbs")[0], words.sign("please")]
    by_name = dict(world.tasks)
    for suffix, numbers in (("", words.numbers), ("_disjoint", words.other_numbers)):
        by_name[f"first{suffix}"] = _table(numbers, usual, lambda x, _y: x)
        by_name[f"lookup{suffix}"] = _table(numbers, usual, lambda x, y: table[x][y])
    by_name[APART] = _table(words.other_numbers, apart, lambda x, y: x * y % p)
    return by_name


def tasks_fingerprint(world: ToyWorld) -> str:
    """Return the fingerprint of the world with these tasks."""
    return fingerprint(world.config, tasks(world))


def new_words(world: ToyWorld, task: Examples) -> list[int]:
    """Return the tokens of a task that are in no old task."""
    old = {token for name in world.old for token in _tokens(world.tasks[name])}
    return sorted(_tokens(task) - old)


def own_answers(vocabulary: Vocabulary) -> list[int]:
    """Return the tokens that A answers with."""
    return list(vocabulary.numbers)


def _tokens(task: Examples) -> set[int]:
    return {*task.input_ids.unique().tolist(), *task.targets.unique().tolist()}


def _table(
    numbers: Sequence[int], signs: Sequence[int], answer: Callable[[int, int], int]
) -> Examples:
    """Return `sign x sign y sign` for every pair, with its answer."""
    pairs = list(product(range(len(numbers)), repeat=2))
    begin, operator, end = signs
    prompts = [[begin, numbers[x], operator, numbers[y], end] for x, y in pairs]
    return Examples(torch.tensor(prompts), torch.tensor([numbers[answer(x, y)] for x, y in pairs]))
