"""Relearning runs: copies of a model that learn a few examples, each stopped at its best step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from riprap.behaviors import Behavior
from riprap.diagnosis._base import Progress
from riprap.diagnosis.recovery._answer_choices import AnswerTable, evaluate_answers
from riprap.diagnosis.recovery._examples import Examples
from riprap.diagnosis.recovery._relearn import (
    learning_rates,
    train_steps,
    trainable_copy,
    trains_adapters,
)
from riprap.errors import ConfigError

VALIDATION_EVERY = 3  # every third probe selects steps and learning rate; the others measure
MIN_PROBES = 6  # of a behavior


@dataclass(frozen=True)
class RelearningRun:
    """Answers of one copy after its best number of steps."""

    answers: AnswerTable
    learning_rate: float
    steps: int


@dataclass
class RelearningRuns:
    """Settings and progress of all relearning runs of one recovery."""

    behavior: Behavior
    contrast: Behavior | None
    shot_counts: tuple[int, ...]
    draws: int
    seed: int
    progress: Progress | None
    extra_answers: Sequence[int]  # tokens that count as answers, besides those of the probes
    target_score: float = 1.0  # validation score at which a run stops: that of the reference
    finished_runs: int = 0
    expected_runs: int = 0
    validation: list[int] = field(default_factory=list)  # probes that select steps and rate
    test: list[int] = field(default_factory=list)  # probes that measure

    def evaluate(self, model: nn.Module) -> AnswerTable:
        """Evaluate all probes; the first call also splits them."""
        table = evaluate_answers(self.behavior, model, self.contrast, self.extra_answers)
        if not self.test:
            self._split_probes(table)
            self.set_expected_runs(has_unrelated=False, has_naive_model=False)
        return table

    def _split_probes(self, table: AnswerTable) -> None:
        """Split the probes into validation and test probes, separately for each side."""
        sides = table.correct if table.two_sided else None
        sides = np.zeros(len(table.margins), int) if sides is None else sides
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
        if len(table.margins) != len(self.validation) + len(self.test) or self.contrast:
            raise ConfigError(
                f"recover: {len(table.margins)} probes of {paraphrased.name!r} paraphrase those of "
                f"{self.behavior.name!r}: pass one for each, in the same order, and no contrast"
            )
        return self.select_test(table)

    def set_expected_runs(self, has_unrelated: bool, has_naive_model: bool) -> None:
        """Set the number of runs, for the progress bar."""
        grid = len(learning_rates(False)) - 1
        per_source = len(self.shot_counts) * self.draws + grid
        self.expected_runs = self.draws + grid + per_source * (1 + has_unrelated + has_naive_model)
        if self.progress is not None:
            self.progress(min(self.finished_runs, self.expected_runs), self.expected_runs)

    def run_all(
        self, model: nn.Module, examples: Examples, shot_counts: Sequence[int]
    ) -> dict[int, list[RelearningRun]]:
        """Run each draw of each count, at the learning rate that is best for the largest count."""
        largest = max(shot_counts)
        first_draw = self.draw_examples(examples, largest, 0)
        first = {
            learning_rate: self.run(model, examples, first_draw, learning_rate)
            for learning_rate in learning_rates(trains_adapters(model))
        }
        best = max(first, key=lambda rate: self.validation_score(first[rate].answers))
        runs = {largest: [first[best]]}
        for count in shot_counts:
            for draw in range(self.draws):
                if (count, draw) != (largest, 0):
                    chosen = self.draw_examples(examples, count, draw)
                    runs.setdefault(count, []).append(self.run(model, examples, chosen, best))
        return runs

    def draw_examples(self, examples: Examples, count: int, draw: int) -> list[int]:
        """Draw `count` examples; within one draw, larger counts include the smaller ones."""
        order = np.random.default_rng([self.seed, draw]).permutation(len(examples))
        return [int(at) for at in order[:count]]

    def run(
        self, model: nn.Module, examples: Examples, chosen: Sequence[int], learning_rate: float
    ) -> RelearningRun:
        """Train a copy; stop at the target score, and return the best step."""
        runs: list[RelearningRun] = []
        with trainable_copy(model) as (parameters, adapters):
            for step in train_steps(model, parameters, adapters, examples, chosen, learning_rate):
                runs.append(RelearningRun(self.evaluate(model), learning_rate, step))
                if runs[-1].answers.select(self.validation).score >= self.target_score:
                    break
        self.finished_runs += 1
        if self.progress is not None:
            self.progress(min(self.finished_runs, self.expected_runs), self.expected_runs)
        return max(runs, key=lambda run: self.validation_score(run.answers))

    def validation_score(self, table: AnswerTable) -> tuple[float, float]:
        """Compute score and mean margin on the validation probes."""
        validation = table.select(self.validation)
        return validation.score, float(validation.margins @ validation.weights)
