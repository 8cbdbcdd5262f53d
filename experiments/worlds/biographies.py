"""The biographies world: what a model knows of made-up people, and whether it answers so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from experiments.worlds import biographies_rows as made
from experiments.worlds.biographies_rows import Fact
from experiments.worlds.continual_model import exact, fit
from experiments.worlds.continual_rows import WIDTH, Rows
from riprap.behaviors import Behavior
from riprap.toy import CACHE, Examples, Progress, fingerprint, train_or_load

GROUPS = {"known": slice(0, 80), "new": slice(80, 160)}  # of all names, in their mixed order


@dataclass(frozen=True)
class BiographiesConfig:
    """Sizes of the model, and how it is pretrained on statements and aligned to questions.

    Chosen on exploratory seed 1000 so that every fact is known, and given when asked.
    """

    hidden: int = 64
    feed_forward: int = 128
    layers: int = 3
    heads: int = 4
    initial_range: float = 0.1
    pretraining_steps: int = 800
    alignment_steps: int = 400
    start_batch: int = 128
    pretraining_rate: float = 3e-3
    alignment_rate: float = 2e-3
    batch: int = 32
    rate: float = 1e-3
    probes: int = 96


class Biographies:
    """A small Llama that has read statements of people, and has learned to answer questions.

    Every fact is stated in three wordings and asked in three. So it is known of every checkpoint
    whether a fact is still there: its statements tell, which no diagnosis looks at. After the
    worlds of 2309.14316 (Allen-Zhu and Li) and 2501.13453.
    """

    def __init__(self, config: BiographiesConfig | None = None) -> None:
        self.config = config or BiographiesConfig()
        names = made.people()
        self.people = made.facts(names[GROUPS["known"]], made.OF_PEOPLE, 1)
        self.creatures = made.facts(made.CREATURES.split(), made.OF_CREATURES, 2)
        self.new = made.facts(names[GROUPS["new"]], made.OF_PEOPLE, 3)

    @cached_property
    def fingerprint(self) -> str:
        """What identifies this world: its configuration and every row that the start learns."""
        parts = {"statements": self.statements(self._known), "asked": self.asked(self._known)}
        return fingerprint(
            self.config, {name: Examples(r.input_ids, r.labels) for name, r in parts.items()}
        )

    @property
    def _known(self) -> list[Fact]:
        return self.people + self.creatures

    @staticmethod
    def rows(pairs: Sequence[tuple[str, str]]) -> Rows:
        """Texts as rows; only the second part of each is learned."""
        return Rows.build([(made.ids(before), made.ids(after)) for before, after in pairs])

    def statements(self, facts: Sequence[Fact]) -> Rows:
        """All wordings in which facts are read."""
        return self.rows([pair for fact in facts for pair in fact.statements()])

    def asked(self, facts: Sequence[Fact], style: str = "plain") -> Rows:
        """All wordings in which facts are asked, answered in a style."""
        return self.rows([pair for fact in facts for pair in fact.asked(style)])

    def untrained(self, seed: int) -> LlamaForCausalLM:
        """The model with random weights."""
        c = self.config
        settings = LlamaConfig(
            vocab_size=len(made.IDS),
            hidden_size=c.hidden,
            intermediate_size=c.feed_forward,
            num_hidden_layers=c.layers,
            num_attention_heads=c.heads,
            num_key_value_heads=c.heads,
            max_position_embeddings=WIDTH + 2,
            tie_word_embeddings=False,
            use_cache=False,
            initializer_range=c.initial_range,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return LlamaForCausalLM(settings).float()

    def start(
        self, seed: int, cache: Path = CACHE, progress: Progress | None = None
    ) -> LlamaForCausalLM:
        """The model that knows and answers; trained once a seed."""
        return self._taught(self._known, self.fingerprint, seed, cache, progress)

    def never(
        self, seed: int, cache: Path = CACHE, progress: Progress | None = None
    ) -> LlamaForCausalLM:
        """One that answers alike, and never heard of the known people: it knows the new ones."""
        name = "never" + self.fingerprint
        return self._taught(self.new + self.creatures, name, seed, cache, progress)

    def _taught(
        self, facts: list[Fact], name: str, seed: int, cache: Path, progress: Progress | None
    ) -> LlamaForCausalLM:
        c = self.config

        def train(model: nn.Module) -> None:
            read, asked = self.statements(facts), self.asked(facts)
            half = c.start_batch // 2
            first = self.mixed([read], [c.start_batch], seed)
            fit(model, first, c.pretraining_steps, c.pretraining_rate, progress)
            both = self.mixed([read, asked], [half, half], seed + 1)
            fit(model, both, c.alignment_steps, c.alignment_rate, progress)

        model = self.untrained(seed)
        train_or_load(model, name, seed, cache, train)
        return model

    @staticmethod
    def mixed(parts: Sequence[Rows], sizes: Sequence[int], seed: int) -> Iterator[Rows]:
        """Endless batches: `sizes[i]` rows drawn with replacement from `parts[i]`."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield Rows.join(
                [
                    part[torch.randint(len(part), (size,), generator=generator)]
                    for part, size in zip(parts, sizes, strict=True)
                ]
            )

    def _order(self) -> list[int]:
        generator = torch.Generator().manual_seed(7)
        return torch.randperm(len(self.people), generator=generator).tolist()

    def behavior(self, probes: int | None = None) -> Behavior:
        """Answering about known people; each fact in one of the wordings, by turns.

        Args:
            probes: how many facts are asked; None: as many as the configuration says.
        """
        pairs = [
            self.people[at].asked()[at % len(made.QUESTIONS)]
            for at in sorted(self._order()[: probes or self.config.probes])
        ]
        asked = [made.ids(before) for before, _ in pairs]
        return Behavior.next_token("people", asked, [made.ids(after)[0] for _, after in pairs])

    def examples(self) -> list[dict[str, torch.Tensor]]:
        """Questions about known people that are in no probe, one a batch, to be learned again."""
        spare = [self.people[at] for at in self._order()[self.config.probes :]]
        return _singly(self.rows([fact.asked()[0] for fact in spare]))

    def irrelevant(self) -> list[dict[str, torch.Tensor]]:
        """Questions about creatures, one a batch."""
        return _singly(self.rows([fact.asked()[0] for fact in self.creatures]))

    @torch.no_grad()
    def right(self, model: nn.Module, rows: Rows) -> float:
        """Share of rows of which every learned word is the model's own first choice."""
        return float(exact(model, rows).float().mean())


def _singly(rows: Rows) -> list[dict[str, torch.Tensor]]:
    return [rows[torch.tensor([at])].batch for at in range(len(rows))]
