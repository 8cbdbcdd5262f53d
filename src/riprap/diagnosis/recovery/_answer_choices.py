"""Answers of a model on probes if it must choose among the answers that occur there."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from riprap import evaluation
from riprap.behaviors import (
    Behavior,
    Choice,
    LastLogitsMargin,
    Margins,
    last_logits,
    score_continuations,
)
from riprap.evaluation import ProbeResult

Array = NDArray[np.float64]
TIE_TOLERANCE = 1e-4  # logits or nats; a smaller lead may be a rounding error


@dataclass(frozen=True)
class AnswerTable:
    """Results of one evaluation of a behavior's probes, and of those of its contrast.

    Attributes:
        margins: shape (n,), as the behaviors define them.
        weights: shape (n,), sum 1; a behavior and its contrast have equal weight.
        answer_scores: shape (n, c), score of each of c answers on each probe; None if the behavior
            does not say which answers there are.
        correct: shape (n,), index of the correct answer; with a contrast, of the probe's side.
        shared: whether all probes have the same c answers.
        first_choice: shape (n,), the token that the model itself ranks first; None if unknown.
        is_known_answer: shape (n,), whether this token is one of the c answers, right or wrong.
        insufficient: why the margins do not measure the behavior; empty if they do.
        two_sided: whether the table has a behavior and its contrast, with the sides as answers.
    """

    margins: Array
    weights: Array
    answer_scores: Array | None = None
    correct: NDArray[np.int64] | None = None
    shared: bool = False
    first_choice: NDArray[np.int64] | None = None
    is_known_answer: NDArray[np.bool_] | None = None
    insufficient: str = ""
    two_sided: bool = False

    @property
    def in_format_rate(self) -> float:
        """Share of first choices that are answers; NaN if unknown."""
        if self.is_known_answer is None:
            return float("nan")
        return weighted_share(self.is_known_answer, self.weights)

    @property
    def modal_off_format_rate(self) -> float:
        """Rate at which first choices that are not answers are their most frequent token.

        Given one choice of that token, the share of the *other* off-format choices that equal it;
        NaN for fewer than two off-format choices.
        """
        if self.first_choice is None or self.is_known_answer is None:
            return float("nan")
        counts = np.unique(self.first_choice[~self.is_known_answer], return_counts=True)[1]
        if counts.sum() < 2:
            return float("nan")
        return float((counts.max() - 1) / (counts.sum() - 1))

    @property
    def modal_answer_rate(self) -> float:
        """Share of the probes that get the most frequent of the shared answers; NaN if none."""
        if self.answer_scores is None or not self.shared:
            return float("nan")
        return float(np.bincount(self.answer_scores.argmax(1), weights=self.weights).max())

    @property
    def score(self) -> float:
        """Share of margins above 0."""
        return weighted_share(self.margins > 0, self.weights)

    def select(self, rows: Sequence[int]) -> AnswerTable:
        """Return the table of some of the probes, with weights that sum to 1 again."""
        rows = list(rows)
        names = ("margins", "answer_scores", "correct", "first_choice", "is_known_answer")
        columns = {name: getattr(self, name) for name in names}
        selected = {name: column[rows] for name, column in columns.items() if column is not None}
        return replace(self, weights=self.weights[rows] / self.weights[rows].sum(), **selected)


def weighted_share(holds: NDArray[Any], weights: Array) -> float:
    """Compute the weighted share of probes for which a condition holds; exactly 1 for all."""
    return round(float(holds @ weights), 12)


def evaluate_answers(
    behavior: Behavior,
    model: nn.Module,
    contrast: Behavior | None = None,
    answers: Collection[int] | None = None,
) -> AnswerTable:
    """Evaluate the probes in one pass that leaves training untouched.

    With a contrast there are two answers, the two sides: the margin of a refusal on harmful
    requests scores the same answer as the negative margin of over-refusal on harmless ones.

    Args:
        answers: tokens that count as answers; None: those of `possible_answers`.
    """
    if contrast is not None:
        return _two_sided(*evaluate_sides([behavior, contrast], model))
    margin_fn, probes = behavior.margins, behavior.probes
    answers = possible_answers(behavior) if answers is None else answers
    if not answers:
        result = evaluation.evaluate(behavior, model)
        return AnswerTable(result.margins, _equal(result), insufficient=result.insufficient)
    is_choice = isinstance(margin_fn, Choice)
    read = _read_options if is_choice else _read_tokens
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def margins(model: nn.Module, probes: Any) -> Tensor | Margins:
        values, scores, correct, first = read(behavior, model, sorted(answers))
        seen[:] = [(scores.detach().cpu(), correct.cpu(), first.cpu())]
        return values

    result = evaluation.evaluate(Behavior(behavior.name, probes, margins), model)
    scores, correct, first = seen[0]
    return AnswerTable(
        result.margins,
        _equal(result),
        scores.double().numpy(),
        correct.numpy(),
        shared=not is_choice,
        first_choice=first.numpy(),
        is_known_answer=np.isin(first.numpy(), sorted(answers)),
        insufficient=result.insufficient,
    )


# Margins, scores of the answers, index of the correct one, and the model's own first choice.
_Read = tuple[Tensor | Margins, Tensor, Tensor, Tensor]


def _read_tokens(behavior: Behavior, model: nn.Module, answers: list[int]) -> _Read:
    """Read the answers of a margin with targets from the logits at the last position."""
    margin_fn = behavior.margins
    assert margin_fn.targets is not None
    logits = last_logits(model, behavior.probes)[:, -1]
    if isinstance(margin_fn, LastLogitsMargin) and not margin_fn.branches:
        values: Tensor | Margins = margin_fn.from_logits(logits)
    else:
        values = margin_fn(model, behavior.probes)
    targets = margin_fn.targets.to(logits.device)
    allowed = targets.new_tensor([token for token in answers if 0 <= token < logits.shape[-1]])
    scores = logits.log_softmax(-1)[:, allowed]
    return values, scores, torch.searchsorted(allowed, targets), logits.argmax(-1)


def _read_options(behavior: Behavior, model: nn.Module, _answers: list[int]) -> _Read:
    """Read the options of a choice, each with its own score."""
    scores, _, first = score_continuations(model, behavior.probes)
    correct = behavior.probes.is_correct.to(scores.device)
    best, best_other = (
        scores.masked_fill(~options, float("-inf")).amax(-1) for options in (correct, ~correct)
    )
    return best - best_other, scores, correct.long().argmax(-1), first


def evaluate_sides(behaviors: Sequence[Behavior], model: nn.Module) -> list[ProbeResult]:
    """Evaluate a behavior and its contrast, in one pass where one can serve both."""
    if len({behavior.name for behavior in behaviors}) < len(behaviors):
        return [evaluation.evaluate(behavior, model) for behavior in behaviors]
    found: dict[str, ProbeResult] = {}
    for group in evaluation.group_by_forward_pass(behaviors, model):
        found |= evaluation.evaluate_batch(group, model)
    return [found[behavior.name] for behavior in behaviors]


def possible_answers(behavior: Behavior, extra: Sequence[int] = ()) -> frozenset[int]:
    """Return the first tokens that count as answers: right ones, options, and `extra` ones.

    Empty where there is nothing to choose: a single right answer, or margins without answers.
    """
    margin_fn = behavior.margins
    if isinstance(margin_fn, Choice):
        return frozenset([*behavior.probes.first_tokens().tolist(), *extra])
    targets = [] if margin_fn.targets is None else margin_fn.targets.tolist()
    return frozenset([*targets, *extra]) if len(set(targets)) > 1 else frozenset()


def _equal(result: ProbeResult) -> Array:
    return np.full(len(result.margins), 1 / len(result.margins))


def _two_sided(first: ProbeResult, second: ProbeResult) -> AnswerTable:
    both = np.concatenate([first.margins, second.margins])
    sides = np.repeat([0, 1], [len(first.margins), len(second.margins)])
    weights = 0.5 / np.bincount(sides)[sides]
    leads = np.where(sides == 0, both, -both)
    scores = np.stack([leads, -leads], 1) / 2
    why = first.insufficient or second.insufficient
    return AnswerTable(both, weights, scores, sides, True, insufficient=why, two_sided=True)


def choose_answers(tables: Sequence[AnswerTable]) -> NDArray[np.int64]:
    """Return the answer with the best mean score on each probe, shape (n,); -1 for a tie.

    Scores are averaged over the tables, so that chance forgetting in one of them counts less. If
    all probes share the answers, the mean score of each answer over the probes is subtracted first
    (calibration for answer bias, after Zhao et al., 2102.09690).
    """
    first = tables[0]
    scores = np.mean([t.answer_scores for t in tables if t.answer_scores is not None], 0)
    if first.shared:
        scores = scores - first.weights @ scores
    ordered = np.sort(scores, 1)
    return np.where(ordered[:, -1] - ordered[:, -2] > TIE_TOLERANCE, scores.argmax(1), -1)


def chooses_correctly(tables: Sequence[AnswerTable]) -> Array:
    """Return 1 for probes on which the tables together choose the correct answer, shape (n,).

    Without answers: 1 where the mean margin is above 0.
    """
    first = tables[0]
    if first.answer_scores is None or first.correct is None:
        return np.asarray(np.mean([t.margins for t in tables], 0) > 0, dtype=np.float64)
    return np.asarray(choose_answers(tables) == first.correct, dtype=np.float64)


def chance_accuracy(tables: Sequence[AnswerTable]) -> Array:
    """Expected `chooses_correctly` of random answers at the same rates, shape (n,).

    With shared answers, the rate at which a probe's correct answer is chosen on all probes; with
    separate options, 1 over their number. NaN without answers.
    """
    first = tables[0]
    if first.answer_scores is None or first.correct is None:
        return np.full(len(first.margins), np.nan)
    n_answers = first.answer_scores.shape[1]
    if not first.shared:
        return np.full(len(first.margins), 1 / n_answers)
    chosen = choose_answers(tables)
    answered = chosen >= 0
    rates = np.bincount(chosen[answered], first.weights[answered], minlength=n_answers)
    return np.asarray(rates[first.correct], dtype=np.float64)


def relabeled_accuracy(table: AnswerTable) -> Array:
    """Return 1 for probes whose correct answer follows from the chosen one, shape (n,).

    The rule "chosen answer → most frequent correct answer" is learned on all other probes. It finds
    knowledge under swapped labels. All 0 unless all probes share the answers.
    """
    follows = np.zeros(len(table.margins))
    if table.answer_scores is None or table.correct is None or not table.shared:
        return follows
    counts = np.zeros((table.answer_scores.shape[1],) * 2)
    chosen = choose_answers([table])
    answered = chosen >= 0
    np.add.at(counts, (chosen[answered], table.correct[answered]), table.weights[answered])
    for row in np.flatnonzero(answered):
        others, correct = counts[chosen[row]].copy(), table.correct[row]
        others[correct] -= table.weights[row]
        follows[row] = others.argmax() == correct and others[correct] > 1e-12
    return follows
