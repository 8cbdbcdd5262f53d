"""The toy world with arbitrary facts, which no rule restores once they are lost."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch

from riprap.behaviors import Behavior
from riprap.toy import PRETRAINED_TASKS, Examples, ToyConfig, ToyWorld, Vocabulary


@dataclass(frozen=True)
class FactsConfig(ToyConfig):
    """`ToyConfig` with a number of facts, and a longer training of the start."""

    facts: int = 96
    start_steps: int = 1000
    held_out: int = 128


class FactsWorld(ToyWorld):
    """The toy world with a fourth behavior, `facts`, learned in two wordings.

    One wording measures it. Its pool has the other: the measured facts are replayed in other
    words, as by a user who knows what the model must keep.
    """

    old = (*PRETRAINED_TASKS, "facts")

    def __init__(self, config: FactsConfig | None = None) -> None:
        super().__init__(config or FactsConfig())
        assert isinstance(self.config, FactsConfig)
        self.wordings = facts(self.config.vocabulary, self.config.facts)
        self.tasks["facts"] = Examples.join(list(self.wordings))

    def mix(self, rows: int) -> list[int]:
        """Return the rows by old task: half A, an eighth each of the others, a quarter facts."""
        small = rows // 8
        return [rows // 2, small, small, rows - rows // 2 - 2 * small]

    def pools(self, max_inputs: int = 512) -> list[Behavior]:
        """Return the behaviors on inputs that are neither probes nor `unseen`, for replay.

        It has all of the facts, in the wording that does not measure.

        Args:
            max_inputs: number of inputs of each; A has 353.
        """
        behaviors = []
        for index, task in enumerate(PRETRAINED_TASKS):
            examples = self.tasks[task]
            order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(index))
            rest = examples[order[self.config.probes + self.config.held_out :][:max_inputs]]
            behaviors.append(Behavior.next_token(task, rest.input_ids, rest.targets))
        other = self.wordings[1]
        return [*behaviors, Behavior.next_token("facts", other.input_ids, other.targets)]

    def unseen(self) -> list[Behavior]:
        """Return the behaviors on held-out inputs, which no guard reads."""
        truth = self.truth()
        return [Behavior.next_token(t, one.input_ids, one.targets) for t, one in truth.items()]

    def _splits(self) -> dict[str, tuple[Examples, Examples]]:
        """Return half of the facts as probes, in the first wording, and the others as held out."""
        splits = super()._splits()
        first = self.wordings[0]
        order = torch.randperm(
            len(first), generator=torch.Generator().manual_seed(len(PRETRAINED_TASKS))
        )
        splits["facts"] = first[order[: self.config.probes]], first[order[self.config.probes :]]
        return splits


def facts(vocabulary: Vocabulary, count: int) -> tuple[Examples, Examples]:
    """Invent facts, each in two wordings: the number that belongs to a verb and an object.

    `compute verb verb object equals` and `verb compute verb object equals`. The answers follow no
    rule: each fact must be memorized.

    Returns:
        (all facts in one wording, the same facts in the other).
    """
    compute, equals = vocabulary.sign("compute"), vocabulary.sign("equals")
    objects = (*vocabulary.kind("harmful"), *vocabulary.kind("harmless"))
    generator = torch.Generator().manual_seed(17)
    pairs = list(product(vocabulary.kind("verbs"), objects))
    chosen = [pairs[i] for i in torch.randperm(len(pairs), generator=generator)[:count].tolist()]
    answers = torch.randint(vocabulary.modulus, (count,), generator=generator)
    first = [[compute, verb, verb, thing, equals] for verb, thing in chosen]
    second = [[verb, compute, verb, thing, equals] for verb, thing in chosen]
    return Examples(torch.tensor(first), answers), Examples(torch.tensor(second), answers.clone())
