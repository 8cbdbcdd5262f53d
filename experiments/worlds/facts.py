"""The toy world with a store of made-up facts, which no rule gives back once they are lost."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from riprap.behaviors import Behavior
from riprap.toy import PRETRAINED_TASKS, Examples, ToyConfig, ToyWorld
from riprap.toy import _tasks as tasks


@dataclass(frozen=True)
class FactsConfig(ToyConfig):
    """As `ToyConfig`; `facts` is how many there are, and the start takes longer to learn them."""

    facts: int = 96
    start_steps: int = 1000
    held_out: int = 128


class FactsWorld(ToyWorld):
    """The toy world with a fourth behaviour, `facts`, learned in two wordings.

    One wording measures it. Its pool holds the other: the facts that measure are learned again in
    other words, as a user would who knows what the model is to keep.
    """

    old = (*PRETRAINED_TASKS, "facts")

    def __init__(self, config: FactsConfig | None = None) -> None:
        super().__init__(config or FactsConfig())
        assert isinstance(self.config, FactsConfig)
        self.wordings = tasks.facts(self.config.vocabulary, self.config.facts)
        self.tasks["facts"] = Examples.join(list(self.wordings))

    def mix(self, rows: int) -> list[int]:
        """Half A, an eighth each of B and over_refusal, a quarter facts."""
        small = rows // 8
        return [rows // 2, small, small, rows - rows // 2 - 2 * small]

    def pools(self, max_inputs: int = 512) -> list[Behavior]:
        """The behaviours on inputs that are neither probes nor `unseen`, to be learned again.

        Of the facts all, in the wording that does not measure.

        Args:
            max_inputs: how many inputs of each; A has 353.
        """
        found = []
        for index, task in enumerate(PRETRAINED_TASKS):
            examples = self.tasks[task]
            order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(index))
            rest = examples[order[self.config.probes + self.config.held_out :][:max_inputs]]
            found.append(Behavior.next_token(task, rest.input_ids, rest.targets))
        other = self.wordings[1]
        return [*found, Behavior.next_token("facts", other.input_ids, other.targets)]

    def unseen(self) -> list[Behavior]:
        """The behaviours on inputs that are in no probe and no pool: nothing guards these."""
        truth = self.truth()
        return [Behavior.next_token(t, one.input_ids, one.targets) for t, one in truth.items()]

    def _splits(self) -> dict[str, tuple[Examples, Examples]]:
        """Half of the facts measure, in the first wording; the others tell the truth."""
        splits = super()._splits()
        first = self.wordings[0]
        order = torch.randperm(len(first), generator=torch.Generator().manual_seed(len(PRETRAINED_TASKS)))
        splits["facts"] = first[order[: self.config.probes]], first[order[self.config.probes :]]
        return splits
