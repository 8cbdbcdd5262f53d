"""Relearning runs: copies of a model that learn a few examples, each stopped at its best step.

Two ways to search for steps and learning rate:

- *full*: every rate, each until the choosing probes reach the score of the reference.
- *short*: the middle rate first; the smallest for the reference, which has nothing to regain; after
  a source that did not reach the score of the reference, its best rate. A rate is stopped at the
  first look at which neither score nor mean margin is better than at its best. A smaller rate is
  tried if the best look came after `EARLY_STEPS` at most (r/3 covers in 16 steps what r covers in
  5), a larger one if it was the last; each only while this is better. The search ends at the score
  of the reference.

Between steps only the choosing probes are evaluated. The others are evaluated once, after the best
step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import nn

from riprap.behaviors import Behavior, PlainMargin, ProbeSet
from riprap.diagnosis._base import Progress
from riprap.diagnosis.recovery._answer_choices import (
    AnswerTable,
    Array,
    evaluate_answers,
    evaluate_sides,
    weighted_share,
)
from riprap.diagnosis.recovery._examples import Examples
from riprap.diagnosis.recovery._relearn import (
    STEPS,
    learning_rates,
    train_steps,
    trainable_copy,
    trains_adapters,
)
from riprap.errors import ConfigError

VALIDATION_EVERY = 3  # every third probe selects steps and learning rate; the others measure
MIN_PROBES = 6  # of a behavior
EARLY_STEPS = 4  # best number of steps up to which a smaller learning rate is tried


@dataclass(frozen=True)
class Source:
    """A model that learns examples: `own`, `unrelated`, `naive_model` or `reference`."""

    name: str
    examples: Examples
    open: Callable[[], AbstractContextManager[nn.Module]]

    def n_draws(self, count: int, draws: int) -> int:
        """Return how many of `draws` draws differ: all examples are one draw."""
        return 1 if count == len(self.examples) else draws


@dataclass(frozen=True)
class RelearningRun:
    """Answers to the test probes of one copy after its best number of steps."""

    answers: AnswerTable
    learning_rate: float
    steps: int
    validation_score: tuple[float, float]  # score and mean margin


@dataclass
class RelearningRuns:
    """Settings, results and progress of all relearning runs of one recovery."""

    behavior: Behavior
    contrast: Behavior | None
    seed: int
    full: bool
    answers: frozenset[int]  # tokens that count as answers
    progress: Progress | None = None
    target_score: float = 1.0  # validation score at which a run stops: that of the reference
    n_first: int = 0  # probes of the behavior itself, before those of the contrast
    weights: Array = field(default_factory=lambda: np.zeros(0))  # of all probes
    validation: list[int] = field(default_factory=list)  # probes that select steps and rate
    test: list[int] = field(default_factory=list)  # probes that measure
    runs: dict[str, dict[int, list[RelearningRun]]] = field(default_factory=dict)
    first_rate: float = 0.0  # best learning rate of a source that missed the target score; 0: none
    steps: int = 0  # taken
    max_steps: int = 0  # taken and still allowed

    def evaluate(self, model: nn.Module) -> AnswerTable:
        """Evaluate all probes."""
        return evaluate_answers(self.behavior, model, self.contrast, self.answers)

    def start_from(self, before: AnswerTable) -> None:
        """Split the probes of the reference's table, separately for each side."""
        sides = before.correct if before.two_sided else None
        sides = np.zeros(len(before.margins), int) if sides is None else sides
        for side, behavior in enumerate(filter(None, (self.behavior, self.contrast))):
            rows = np.flatnonzero(sides == side)
            if len(rows) < MIN_PROBES:
                raise ConfigError(
                    f"recover: {behavior.name!r} has {len(rows)} probes, and a third of them "
                    f"select steps and learning rate: pass {MIN_PROBES} or more"
                )
            shuffled = np.random.default_rng(self.seed).permutation(rows).tolist()
            validation = shuffled[::VALIDATION_EVERY]
            self.validation += validation
            self.test += [row for row in shuffled if row not in set(validation)]
        self.weights = before.weights
        self.n_first = int((sides == 0).sum())
        self.target_score = before.select(self.validation).score

    def select_test(self, table: AnswerTable) -> AnswerTable:
        """Return the table of the test probes."""
        return table.select(self.test)

    def evaluate_paraphrased(
        self, paraphrased: Behavior | None, model: nn.Module
    ) -> AnswerTable | None:
        """Evaluate the paraphrased test probes; None if there are none."""
        if paraphrased is None:
            return None
        table = evaluate_answers(paraphrased, model)
        if len(table.margins) != len(self.weights) or self.contrast:
            raise ConfigError(
                f"recover: {len(table.margins)} probes of {paraphrased.name!r} paraphrase those of "
                f"{self.behavior.name!r}: pass one for each, in the same order, and no contrast"
            )
        return self.select_test(table)

    def learn(self, source: Source, count: int, draw: int) -> None:
        """Let a copy of the source's model learn one draw of its examples.

        The first run of a source selects the learning rate of the others.
        """
        chosen = self.draw_examples(source.examples, count, draw)
        done = self.runs.setdefault(source.name, {})
        with source.open() as model:
            if done:
                rate = next(iter(done.values()))[0].learning_rate
                run = self.run(model, source.examples, chosen, rate)
            else:
                run = self.search(model, source, chosen)
        done.setdefault(count, []).append(run)

    def draw_examples(self, examples: Examples, count: int, draw: int) -> list[int]:
        """Draw `count` examples; within one draw, larger counts include the smaller ones."""
        order = np.random.default_rng([self.seed, draw]).permutation(len(examples))
        return [int(at) for at in order[:count]]

    def search(self, model: nn.Module, source: Source, chosen: Sequence[int]) -> RelearningRun:
        """Run the learning rates, all or the likely ones, and return the best run."""
        examples, rates = source.examples, sorted(learning_rates(trains_adapters(model)))
        if self.full:
            runs = [self.run(model, examples, chosen, rate) for rate in rates]
            return max(runs, key=lambda run: run.validation_score)
        middle = 0 if source.name == "reference" else len(rates) // 2
        at = rates.index(self.first_rate) if self.first_rate in rates else middle
        best, tried = self.run(model, examples, chosen, rates[at]), {at}
        while best.validation_score[0] < self.target_score:
            further = best.steps == max(STEPS)
            beside = at + (1 if further else -1 if best.steps <= EARLY_STEPS else 0)
            if beside in tried or not 0 <= beside < len(rates):
                break
            tried.add(beside)
            run = self.run(model, examples, chosen, rates[beside])
            if run.validation_score <= best.validation_score:
                break
            best, at = run, beside
        if best.validation_score[0] < self.target_score:
            self.first_rate = best.learning_rate
        self._count_steps(0, skipped=max(STEPS) * (len(rates) - len(tried)))
        return best

    def run(
        self, model: nn.Module, examples: Examples, chosen: Sequence[int], learning_rate: float
    ) -> RelearningRun:
        """Train a copy; stop at the target score, and measure the best step."""
        best, at, step, last = (-1.0, 0.0), 0, 0, 0
        with trainable_copy(model) as (parameters, adapters):
            for step in train_steps(model, parameters, adapters, examples, chosen, learning_rate):
                score = self.validation_score(model)
                self._count_steps(step - last)
                last = step
                is_best = not at or score > best
                if is_best:
                    best, at = score, step
                    kept = [parameter.detach().clone() for parameter in parameters]
                is_worse = not is_best and score[1] <= best[1]
                if score[0] >= self.target_score or (is_worse and not self.full):
                    break
            if at < step:
                with torch.no_grad():
                    for parameter, value in zip(parameters, kept, strict=True):
                        parameter.copy_(value)
            answers = self.evaluate_test(model)
        self._count_steps(0, skipped=max(STEPS) - step)
        return RelearningRun(answers, learning_rate, at, best)

    def validation_score(self, model: nn.Module) -> tuple[float, float]:
        """Compute score and mean margin on the validation probes."""
        behaviors, rows = self._restrict(self.validation)
        margins = np.concatenate([one.margins for one in evaluate_sides(behaviors, model)])
        weights = self.weights[self.validation] / self.weights[self.validation].sum()
        return weighted_share(margins[rows] > 0, weights), float(margins[rows] @ weights)

    def evaluate_test(self, model: nn.Module) -> AnswerTable:
        """Evaluate the test probes."""
        behaviors, rows = self._restrict(self.test)
        behavior, contrast = (*behaviors, None)[:2]
        assert behavior is not None
        table = evaluate_answers(behavior, model, contrast, self.answers)
        weights = self.weights[self.test] / self.weights[self.test].sum()
        return replace(table.select(rows), weights=weights)

    def _restrict(self, rows: list[int]) -> tuple[list[Behavior], list[int]]:
        """Return the behaviors on some of the probes, and where these are in their results.

        A plain margin function may hold something for each probe, so all of its probes are passed.
        """
        sides = [side for side in (self.behavior, self.contrast) if side is not None]
        if not all(_is_divisible(side) for side in sides):
            return sides, rows
        parts = [
            [row for row in rows if row < self.n_first],
            [row - self.n_first for row in rows if row >= self.n_first],
        ]
        subsets = [side.subset(part) for side, part in zip(sides, parts, strict=False)]
        return subsets, list(range(len(rows)))

    def finish(self) -> None:
        """Report that no further steps are taken."""
        self._count_steps(0, skipped=self.max_steps - self.steps)

    def _count_steps(self, taken: int, skipped: int = 0) -> None:
        self.steps += taken
        self.max_steps -= skipped
        if self.progress is not None:
            self.progress(self.steps, self.max_steps)


def most_steps(sources: Sequence[Source], counts: Sequence[int], draws: int, rates: int) -> int:
    """Return the optimizer steps of all runs, if none is stopped early."""
    runs = sum(source.n_draws(count, draws) for source in sources for count in counts)
    return (runs + len(sources) * (rates - 1)) * max(STEPS)


def _is_divisible(behavior: Behavior) -> bool:
    return isinstance(behavior.probes, ProbeSet) and not isinstance(behavior.margins, PlainMargin)
