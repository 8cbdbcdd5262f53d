"""Measure a repair: scores, margins, divergence, and the score of the new task."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from riprap import evaluation
from riprap.behaviors import Behavior
from riprap.diagnosis.evidence import (
    ResponseBatch,
    Rows,
    TokenKL,
    greedy_responses,
    mean_kl,
    paired_responses,
    response_batches,
)
from riprap.diagnosis.repair._strategies import RepairState, RepairStrategy
from riprap.errors import ConfigError

NO_REPAIR = "no repair"
VALIDATION_EVERY = 3  # every third probe selects the setting; the others measure it
RESPONSE_TOKENS = 12  # of the model's own answers


@dataclass(frozen=True)
class Repair:
    """One repair, measured on a copy.

    Attributes:
        kind: no repair, few-shot, replay, interpolation, interpolation of layers, task vector or
            checkpoint.
        detail: description of its setting.
        amount: steps, α of the path to the reference, or λ.
        scores, margins: share of margins above 0 and mean margin by behavior, on the probes that
            did not select the setting.
        divergence: KL(model ‖ repaired) on the given prompts, in nats per response token; None
            without prompts.
        task_score: score of the newly learned task; None without a task.
        steps: optimizer steps.
        seconds: time to apply it.
        strategy, setting_index: how `apply_repair` applies it again.
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
        """Return whether all behaviors are at their floors."""
        return all(self.scores[name] >= floor for name, floor in floors.items())


@dataclass
class RepairEvaluator:
    """Measure repairs of one model, all in the same way."""

    model: nn.Module
    behaviors: list[Behavior]
    task: Callable[[nn.Module], float] | None
    prompts: Sequence[Sequence[int]] | None
    responses: Sequence[Sequence[int]] | None
    lost: Sequence[str] = ()
    # Batches of responses, with the log-probabilities of the model without a repair.
    baseline: list[tuple[ResponseBatch, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = [behavior.name for behavior in self.behaviors]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"repairs of {names}: pass behaviors with different names")
        self.validation = [self.split(b, is_validation=True) for b in self.behaviors]
        self.test = [self.split(b, is_validation=False) for b in self.behaviors]
        if self.prompts is not None:
            prompts: Rows = [list(row) for row in self.prompts]
            responses = (
                greedy_responses(self.model, prompts, RESPONSE_TOKENS)
                if self.responses is None
                else paired_responses(prompts, self.responses)
            )
            with torch.no_grad(), evaluation.preserve_training_state(self.model):
                for batch in response_batches(self.model, prompts, responses):
                    self.baseline.append((batch, batch.logits(self.model).log_softmax(-1)))

    def split(self, behavior: Behavior, is_validation: bool) -> Behavior:
        """Return the behavior on its validation probes, or on its test probes."""
        order = np.random.default_rng(0).permutation(len(behavior.probes))
        validation = order[::VALIDATION_EVERY]
        rows = validation if is_validation else np.setdiff1d(order, validation)
        return behavior.subset(sorted(rows.tolist()))

    def score(self, behavior: Behavior) -> float:
        """Compute the score at the current weights."""
        return float((evaluation.evaluate(behavior, self.model).margins > 0).mean())

    def measure_best(
        self, kind: str, strategies: Sequence[RepairStrategy], report: Callable[[int], None]
    ) -> Repair:
        """Measure the first setting that passes, or the best one; report the strategies tried."""
        best: tuple[tuple[float, ...], RepairStrategy, int] | None = None
        for tried, strategy in enumerate(strategies):
            report(tried)
            with closing(strategy()) as states:
                began, seconds = time.perf_counter(), 0.0
                for index, state in enumerate(states):
                    seconds += time.perf_counter() - began
                    score = self.validation_score()
                    if score[:2] == (0.0, 0.0):
                        return self.measure(kind, state, seconds, strategy, index)
                    if best is None or score > best[0]:
                        best = score, strategy, index
                    began = time.perf_counter()
        assert best is not None
        _, strategy, index = best
        began = time.perf_counter()
        with closing(strategy()) as states:
            state = next(islice(states, index, None))
            return self.measure(kind, state, time.perf_counter() - began, strategy, index)

    def validation_score(self) -> tuple[float, float, float]:
        """Compute (shortfall of the lost behaviors, shortfall of the others, sum of margins).

        Shortfalls are at most 0. The other behaviors are not evaluated while a lost one is under
        its floor; then the mean margins decide between two settings.
        """
        lost = self.shortfall([b for b in self.validation if b.name in self.lost])
        if lost[0] < 0:
            return lost[0], float("-inf"), lost[1]
        others = self.shortfall([b for b in self.validation if b.name not in self.lost])
        return lost[0], others[0], others[1]

    def shortfall(self, behaviors: Sequence[Behavior]) -> tuple[float, float]:
        """Compute the sum of (score − floor) below 0, and the sum of mean margins."""
        margins = [evaluation.evaluate(b, self.model).margins for b in behaviors]
        above = [(m > 0).mean() - b.floor for b, m in zip(behaviors, margins, strict=True)]
        return float(sum(min(x, 0.0) for x in above)), float(sum(m.mean() for m in margins))

    def measure(
        self,
        kind: str,
        state: RepairState,
        seconds: float = 0.0,
        strategy: RepairStrategy | None = None,
        index: int = 0,
    ) -> Repair:
        """Measure the model at its current weights, on the test probes."""
        margins = {b.name: evaluation.evaluate(b, self.model).margins for b in self.test}
        return Repair(
            kind,
            state.detail,
            state.amount,
            {name: float((values > 0).mean()) for name, values in margins.items()},
            {name: float(values.mean()) for name, values in margins.items()},
            self.divergence(),
            None if self.task is None else float(self.task(self.model)),
            state.steps,
            seconds,
            strategy,
            index,
        )

    def divergence(self) -> float | None:
        """Compute the KL from the model without a repair, in nats per token."""
        if not self.baseline:
            return None
        kl = TokenKL()
        with torch.no_grad(), evaluation.preserve_training_state(self.model):
            for batch, baseline in self.baseline:
                kl.add(batch, baseline, batch.logits(self.model).log_softmax(-1))
        return mean_kl(kl.forward).mean
