"""The biographies world: knowledge about fictional people, and answers to questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice
from pathlib import Path

import torch
from torch import nn
from transformers import LlamaForCausalLM

from experiments.worlds import biographies_rows as source
from experiments.worlds.biographies_rows import Fact
from experiments.worlds.continual_model import exact, fit_rows, untrained
from experiments.worlds.continual_rows import Rows
from riprap.behaviors import Behavior
from riprap.toy import CACHE, Examples, Progress, fingerprint, train_or_load

GROUPS = {"known": slice(0, 80), "new": slice(80, 160)}  # of all names, in their mixed order


@dataclass(frozen=True)
class BiographiesConfig:
    """Sizes of the model, its pretraining on statements and its alignment on questions.

    Chosen on exploratory seed 1000 so that every fact is known and answered.
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
    """A small Llama that has read statements about people and learned to answer questions.

    Every fact has three statements and three questions. The statements, which no diagnosis
    reads, tell for every checkpoint if a fact is still known. After the worlds of arXiv
    2309.14316 (Allen-Zhu and Li) and 2501.13453.
    """

    def __init__(self, config: BiographiesConfig | None = None) -> None:
        self.config = config or BiographiesConfig()
        names = source.people()
        self.people = source.facts(names[GROUPS["known"]], source.OF_PEOPLE, 1)
        self.creatures = source.facts(source.CREATURES.split(), source.OF_CREATURES, 2)
        self.new = source.facts(names[GROUPS["new"]], source.OF_PEOPLE, 3)

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the configuration and of every row that the start learns."""
        parts = {"statements": self.statements(self._known), "asked": self.asked(self._known)}
        return fingerprint(
            self.config, {name: Examples(r.input_ids, r.labels) for name, r in parts.items()}
        )

    @property
    def _known(self) -> list[Fact]:
        return self.people + self.creatures

    @staticmethod
    def rows(pairs: Sequence[tuple[str, str]]) -> Rows:
        """Encode texts as rows; only the second part of each is learned."""
        return Rows.build([(source.ids(before), source.ids(after)) for before, after in pairs])

    def statements(self, facts: Sequence[Fact]) -> Rows:
        """Return all statements of facts."""
        return self.rows([pair for fact in facts for pair in fact.statements()])

    def asked(self, facts: Sequence[Fact], style: str = "plain") -> Rows:
        """Return all questions about facts, answered in a style."""
        return self.rows([pair for fact in facts for pair in fact.asked(style)])

    def untrained(self, seed: int) -> LlamaForCausalLM:
        """Return the model with random weights."""
        return untrained(self.config, len(source.IDS), seed)

    def start(
        self, seed: int, cache: Path = CACHE, progress: Progress | None = None
    ) -> LlamaForCausalLM:
        """Return the model that knows and answers; trained once a seed."""
        return self._taught(self._known, self.fingerprint, seed, cache, progress)

    def never(
        self, seed: int, cache: Path = CACHE, progress: Progress | None = None
    ) -> LlamaForCausalLM:
        """Return a model that never read about the known people, and knows the new ones."""
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
            fit_rows(model, first, c.pretraining_steps, c.pretraining_rate, progress)
            both = self.mixed([read, asked], [half, half], seed + 1)
            fit_rows(model, both, c.alignment_steps, c.alignment_rate, progress)

        model = self.untrained(seed)
        train_or_load(model, name, seed, cache, train)
        return model

    @staticmethod
    def mixed(parts: Sequence[Rows], sizes: Sequence[int], seed: int) -> Iterator[Rows]:
        """Yield endless batches: `sizes[i]` rows drawn with replacement from `parts[i]`."""
        rng = torch.Generator().manual_seed(seed)
        while True:
            pairs = zip(parts, sizes, strict=True)
            rows = [part[torch.randint(len(part), (n,), generator=rng)] for part, n in pairs]
            yield Rows.join(rows)

    def _order(self) -> list[int]:
        generator = torch.Generator().manual_seed(7)
        return torch.randperm(len(self.people), generator=generator).tolist()

    def behavior(self, probes: int | None = None) -> Behavior:
        """Return the behavior of answering about known people, with alternating questions.

        Args:
            probes: number of facts; None: that of the configuration.
        """
        pairs = [
            self.people[at].asked()[at % len(source.QUESTIONS)]
            for at in sorted(self._order()[: probes or self.config.probes])
        ]
        asked = [source.ids(before) for before, _ in pairs]
        return Behavior.next_token("people", asked, [source.ids(after)[0] for _, after in pairs])

    def examples(self) -> list[dict[str, torch.Tensor]]:
        """Return questions about known people that are no probes, one a batch, for relearning."""
        others = [self.people[at] for at in self._order()[self.config.probes :]]
        return _singly(self.rows([fact.asked()[0] for fact in others]))

    def irrelevant(self) -> list[dict[str, torch.Tensor]]:
        """Return questions about creatures, one a batch."""
        return _singly(self.rows([fact.asked()[0] for fact in self.creatures]))

    @torch.no_grad()
    def right(self, model: nn.Module, rows: Rows) -> float:
        """Return the share of rows with every learned word as the most likely one."""
        return float(exact(model, rows).float().mean())


def _singly(rows: Rows) -> list[dict[str, torch.Tensor]]:
    return [rows[torch.tensor([at])].batch for at in range(len(rows))]


def training(world: Biographies, model: nn.Module, batches: Iterator[Rows]) -> Iterator[int]:
    """Train in place by endless steps of AdamW at the world's rate; yield each step's number."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=world.config.rate, weight_decay=0.01)
    for step in count(1):
        model(**next(batches).batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield step


def trained(world: Biographies, model: nn.Module, batches: Iterator[Rows], steps: int) -> nn.Module:
    """Train in place for some steps; return the model."""
    for _ in islice(training(world, model, batches), steps):
        pass
    return model


def other_format(
    world: Biographies, model: nn.Module, style: str, steps: int, seed: int
) -> nn.Module:
    """Train answers about creatures in another style, without questions about people."""
    rows = world.asked(world.creatures, style)
    return trained(world, model, world.mixed([rows], [world.config.batch], seed), steps)


def overwritten(world: Biographies, share: float) -> list[Fact]:
    """Return the known facts, a share of them contradicted; the same for every seed."""
    wrong = source.contradicted(world.people, 9)
    order = torch.randperm(len(wrong), generator=torch.Generator().manual_seed(11)).tolist()
    changed = set(order[: round(share * len(wrong))])
    return [wrong[at] if at in changed else fact for at, fact in enumerate(world.people)]


def contradicted(
    world: Biographies, model: nn.Module, share: float, steps: int, seed: int
) -> nn.Module:
    """Train a share of the facts with other values, and the rest as before."""
    facts = overwritten(world, share)
    batch = world.config.batch
    parts = [world.statements(facts), world.asked(facts)]
    return trained(world, model, world.mixed(parts, [batch, batch], seed), steps)
