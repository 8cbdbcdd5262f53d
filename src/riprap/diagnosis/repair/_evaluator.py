"""One repair, and how it is measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from riprap import evaluation as probing
from riprap.behaviors import Behavior
from riprap.diagnosis.evidence import ResponseBatch, Rows, TokenKL, mean_kl, paired_responses, response_batches, greedy_responses
from riprap.diagnosis.repair._strategies import RepairState, RepairStrategy
from riprap.errors import ConfigError

AS_IT_IS = "as it is"
VALIDATION_EVERY = 3  # every third probe chooses the place, the others measure it
RESPONSE_TOKENS = 12  # of the model's own answers


@dataclass(frozen=True)
class Repair:
    """One repair, measured on a copy.

    Attributes:
        kind: as it is (no repair), few-shot, replay, interpolation, interpolation of layers, task
            vector, checkpoint.
        detail: its setting, in words.
        amount: steps, share of the way to the reference, or λ.
        scores, margins: share of margins above 0 and mean margin by behaviour, on the probes that
            did not choose the setting.
        divergence: KL(model ‖ repaired), nats per response token, on the prompts that were given;
            None without.
        task: score of what was newly learned; None where none was given.
        steps: optimizer steps.
        seconds: to get there from the model as it is.
        way, place: where it is found again; see `repaired`.
    """

    kind: str
    detail: str
    amount: float
    scores: dict[str, float]
    margins: dict[str, float]
    divergence: float | None = None
    task_score: float | None = None
    steps: int = 0
    seconds: float = 0.0
    strategy: RepairStrategy | None = field(default=None, repr=False, compare=False)
    setting_index: int = 0

    def passes(self, floors: Mapping[str, float]) -> bool:
        """Whether every behaviour is at its floor."""
        return all(self.scores[name] >= floor for name, floor in floors.items())


@dataclass
class RepairEvaluator:
    """What all repairs are measured by."""

    model: nn.Module
    behaviors: list[Behavior]
    task: Callable[[nn.Module], float] | None
    prompts: Sequence[Sequence[int]] | None
    responses: Sequence[Sequence[int]] | None
    lost: Sequence[str] = ()
    baseline: list[tuple[ResponseBatch, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = [behavior.name for behavior in self.behaviors]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"repairs of {names}: give behaviours of different names")
        self.validation = [self.split(b, True) for b in self.behaviors]
        self.test = [self.split(b, False) for b in self.behaviors]
        if self.prompts is not None:
            rows: Rows = [list(row) for row in self.prompts]
            given = self.responses
            wanted = (
                greedy_responses(self.model, rows, RESPONSE_TOKENS) if given is None else paired_responses(rows, given)
            )
            with torch.no_grad(), probing.preserve_training_state(self.model):
                for part in response_batches(self.model, rows, wanted):
                    self.baseline.append((part, part.logits(self.model).log_softmax(-1)))

    def split(self, behavior: Behavior, chooses: bool) -> Behavior:
        """The probes that choose, or those that measure."""
        order = np.random.default_rng(0).permutation(len(behavior.probes)).tolist()
        own = [row for at, row in enumerate(order) if (at % VALIDATION_EVERY == 0) == chooses]
        return behavior.subset(sorted(own))

    def score(self, behavior: Behavior) -> float:
        """As the model stands."""
        return float((probing.evaluate(behavior, self.model).margins > 0).mean())

    def measure_best(self, kind: str, ways: Sequence[RepairStrategy]) -> Repair:
        """The first setting that passes, or the best, measured."""
        best: tuple[tuple[float, ...], RepairStrategy, int] | None = None
        for way in ways:
            with closing(way()) as places:
                began, seconds = time.perf_counter(), 0.0
                for at, place in enumerate(places):
                    seconds += time.perf_counter() - began
                    worth = self.validation_score()
                    if worth[:2] == (0.0, 0.0):
                        return self.measure(kind, place, seconds, way, at)
                    if best is None or worth > best[0]:
                        best = worth, way, at
                    began = time.perf_counter()
        assert best is not None
        return self.remeasure(kind, *best[1:])

    def remeasure(self, kind: str, way: RepairStrategy, at: int) -> Repair:
        """A setting that was left behind."""
        began = time.perf_counter()
        with closing(way()) as places:
            place = next(islice(places, at, None))
            return self.measure(kind, place, time.perf_counter() - began, way, at)

    def validation_score(self) -> tuple[float, float, float]:
        """What is missing to the floors, at most 0: by the lost behaviours, then by the others.

        The others are not looked at while a lost one is under its floor: then the mean margins
        tell which of two settings is nearer.
        """
        lost = self.shortfall([b for b in self.validation if b.name in self.lost])
        if lost[0] < 0:
            return lost[0], float("-inf"), lost[1]
        others = self.shortfall([b for b in self.validation if b.name not in self.lost])
        return lost[0], others[0], others[1]

    def shortfall(self, behaviors: Sequence[Behavior]) -> tuple[float, float]:
        """Sums of what scores are short of their floors, at most 0, and of mean margins."""
        looks = [probing.evaluate(b, self.model).margins for b in behaviors]
        over = [(m > 0).mean() - b.floor for b, m in zip(behaviors, looks, strict=True)]
        return float(sum(min(x, 0.0) for x in over)), float(sum(m.mean() for m in looks))

    def measure(
        self,
        kind: str,
        place: RepairState,
        seconds: float = 0.0,
        way: RepairStrategy | None = None,
        at: int = 0,
    ) -> Repair:
        """As the model stands, on the probes that measure."""
        looks = {b.name: probing.evaluate(b, self.model).margins for b in self.test}
        return Repair(
            kind,
            place.detail,
            place.amount,
            {name: float((margins > 0).mean()) for name, margins in looks.items()},
            {name: float(margins.mean()) for name, margins in looks.items()},
            self.divergence(),
            None if self.task is None else float(self.task(self.model)),
            place.steps,
            seconds,
            way,
            at,
        )

    def divergence(self) -> float | None:
        """KL from the model as it was, nats per token."""
        if not self.baseline:
            return None
        tally = TokenKL()
        with torch.no_grad(), probing.preserve_training_state(self.model):
            for part, before in self.baseline:
                tally.add(part, before, part.logits(self.model).log_softmax(-1))
        return mean_kl(tally.forward).mean
