"""The new tasks of the circuit study: functions and words crossed, on the toy world."""

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
    """Every task by name: those of the world, and

    - `first`: `compute x times y equals` → x; structured, and nothing is computed;
    - `lookup`: the same prompts → a number that follows no rule, to be learned by heart;
    - `first_disjoint`, `lookup_disjoint`: both on the other numbers;
    - `C_apart`: multiplication of the other numbers between words that A has not at all,
      `frame x verb y please`, always of the same frame and verb.
    """
    words = world.config.vocabulary
    p = words.modulus
    draws = torch.Generator().manual_seed(TABLE_SEED)
    table = torch.randint(p, (p, p), generator=draws).tolist()
    usual = [words.sign(name) for name in ("compute", "times", "equals")]
    apart = [words.kind("frames")[0], words.kind("verbs")[0], words.sign("please")]
    found = dict(world.tasks)
    for suffix, numbers in (("", words.numbers), ("_disjoint", words.other_numbers)):
        found[f"first{suffix}"] = _table(numbers, usual, lambda x, _y: x)
        found[f"lookup{suffix}"] = _table(numbers, usual, lambda x, y: table[x][y])
    found[APART] = _table(words.other_numbers, apart, lambda x, y: x * y % p)
    return found


def ground(world: ToyWorld) -> str:
    """What identifies the world with these tasks."""
    return fingerprint(world.config, tasks(world))


def new_words(world: ToyWorld, task: Examples) -> list[int]:
    """Tokens of a task that no old task has."""
    old = {token for name in world.old for token in _tokens(world.tasks[name])}
    return sorted(_tokens(task) - old)


def own_answers(vocabulary: Vocabulary) -> list[int]:
    """The tokens that A answers with."""
    return list(vocabulary.numbers)


def _tokens(task: Examples) -> set[int]:
    return {*task.input_ids.unique().tolist(), *task.targets.unique().tolist()}


def _table(
    numbers: Sequence[int], signs: Sequence[int], answer: Callable[[int, int], int]
) -> Examples:
    """`sign x sign y sign` for every pair, with its answer."""
    pairs = list(product(range(len(numbers)), repeat=2))
    begin, operator, end = signs
    prompts = [[begin, numbers[x], operator, numbers[y], end] for x, y in pairs]
    return Examples(torch.tensor(prompts), torch.tensor([numbers[answer(x, y)] for x, y in pairs]))
