"""Checkpoints with a known loss, since it was caused on purpose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from experiments.worlds import Biographies, ToyWorld, biographies
from experiments.worlds.training import train
from riprap.behaviors import Behavior, TokenBatch, last_logits
from riprap.diagnosis import Verdict
from riprap.toy import Examples, batches

NOTHING = "nothing lost"


@dataclass(frozen=True)
class Case:
    """A damage to a start.

    Attributes:
        steps: trainings in order: (kind, amount, steps).
        truth: the right verdict; `NOTHING` if nothing was lost.
        left: retained share of the knowledge, by construction.
    """

    world: str
    name: str
    steps: tuple[tuple[str, Any, int], ...]
    truth: str
    left: float

    @property
    def label(self) -> str:
        """Return world and name."""
        return f"{self.world}: {self.name}"


A, K, BOTH = Verdict.ALIGNMENT, Verdict.KNOWLEDGE, Verdict.BOTH
CASES = (
    Case("people", "start", (), NOTHING, 1.0),
    Case("people", "well", (("format", "well", 60),), A, 1.0),
    Case("people", "well, long", (("format", "well", 200),), A, 1.0),
    Case("people", "quoted", (("format", "quoted", 60),), A, 1.0),
    Case("people", "polite", (("format", "polite", 60),), A, 1.0),
    Case("people", "unknown", (("format", "unknown", 20),), A, 1.0),
    Case("people", "all contradicted", (("wrong", 1.0, 500),), K, 0.0),
    Case("people", "three quarters contradicted", (("wrong", 0.75, 500),), K, 0.25),
    Case("people", "half contradicted", (("wrong", 0.5, 500),), K, 0.5),
    Case("people", "a fifth contradicted", (("wrong", 0.2, 500),), K, 0.8),
    Case("people", "never learned", (("never", 0, 0),), K, 0.0),
    Case("people", "all, well", (("wrong", 1.0, 500), ("format", "well", 60)), BOTH, 0.0),
    Case("people", "all, unknown", (("wrong", 1.0, 500), ("format", "unknown", 200)), BOTH, 0.0),
    Case("people", "half, well", (("wrong", 0.5, 500), ("format", "well", 60)), BOTH, 0.5),
    Case("people", "half, unknown", (("wrong", 0.5, 500), ("format", "unknown", 20)), BOTH, 0.5),
    Case("people", "never, polite", (("never", 0, 0), ("format", "polite", 60)), BOTH, 0.0),
    Case("sums", "other digits", (("format", "digits", 150),), A, 1.0),
    Case("sums", "table", (("wrong", 1.0, 800),), K, 0.0),
    Case("sums", "half a table", (("wrong", 0.5, 800),), K, 0.5),
    Case("sums", "a fifth of a table", (("wrong", 0.2, 800),), K, 0.8),
    Case("sums", "table, digits", (("wrong", 1.0, 800), ("format", "digits", 150)), BOTH, 0.0),
)  # fmt: skip


@dataclass
class Checkpoint:
    """A checkpoint with all arguments of `recover`, and what it still knows.

    Attributes:
        decoded: enough probes to fit a linear probe to their answers.
        knows: retained share of the start's knowledge, by tests that no diagnosis sees.
    """

    model: nn.Module
    reference: nn.Module
    behavior: Behavior
    decoded: Behavior
    examples: Any
    irrelevant: Any
    knows: float


def make(case: Case, seed: int) -> Checkpoint:
    """Construct the checkpoint of a case."""
    return (_people if case.world == "people" else _sums)(case, seed)


def _people(case: Case, seed: int) -> Checkpoint:
    world = Biographies()
    model = world.start(seed)
    for what, amount, steps in case.steps:
        if what == "format":
            biographies.other_format(world, model, amount, steps, seed)
        elif what == "wrong":
            biographies.contradicted(world, model, amount, steps, seed)
        else:
            model = world.never(seed)
    return Checkpoint(
        model,
        world.start(seed),
        world.behavior(),
        world.behavior(len(world.people)),
        world.examples(),
        world.irrelevant(),
        world.right(model, world.statements(world.people)),
    )


def _sums(case: Case, seed: int) -> Checkpoint:
    """Train sums with the other set of digits, or with a table that follows no rule."""
    world = ToyWorld()
    model = world.start(seed)
    facts = world.tasks["A"]
    for what, share, steps in case.steps:
        if what == "wrong":
            facts = tabulated(facts, share, world.config.vocabulary.modulus)
            _train(world, model, facts, steps, seed)
        else:
            _train(world, model, renumbered(world, spare(world, facts)), steps, seed)
    pools = world.pools()
    return Checkpoint(
        model,
        world.start(seed),
        world.behaviors()[0],
        world.pools()[0],
        pools[0].subset(range(200)),
        pools[1].subset(range(50)),
        knows_sums(world, model),
    )


def _train(world: ToyWorld, model: nn.Module, rows: Examples, steps: int, seed: int) -> None:
    train(world, model, batches([rows], [world.config.batch], seed), steps)


def tabulated(rows: Examples, share: float, modulus: int) -> Examples:
    """Return the sums, a share of them with wrong answers by no rule; the same for every seed."""
    generator = torch.Generator().manual_seed(13)
    chosen = torch.randperm(len(rows), generator=generator)[: round(share * len(rows))]
    shift = torch.randint(1, modulus, (len(chosen),), generator=generator)
    targets = rows.targets.clone()
    targets[chosen] = (targets[chosen] + shift) % modulus
    return Examples(rows.input_ids, targets)


def spare(world: ToyWorld, rows: Examples) -> Examples:
    """Return the sums that are neither probes nor held out."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    return rows[order[world.config.probes + world.config.held_out :]]


def renumbered(world: ToyWorld, rows: Examples) -> Examples:
    """Return the same answers in the other set of digits."""
    return Examples(rows.input_ids, rows.targets + world.config.vocabulary.modulus)


@torch.no_grad()
def knows_sums(world: ToyWorld, model: nn.Module) -> float:
    """Return the share of held-out sums that are right in either set of digits."""
    rows = world.truth()["A"]
    answers = last_logits(model, TokenBatch(rows.input_ids))[:, -1].argmax(-1)
    modulus = world.config.vocabulary.modulus
    return float(((answers == rows.targets) | (answers == rows.targets + modulus)).float().mean())
