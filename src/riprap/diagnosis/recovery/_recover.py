"""Recovery: relearn a few examples on a copy, and classify the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from riprap import evaluation
from riprap.behaviors import Behavior
from riprap.diagnosis._base import Estimate, Progress, Verdict, estimate
from riprap.diagnosis._weight_sources import Reference, Weights, reference_model
from riprap.diagnosis.recovery._examples import Examples
from riprap.diagnosis.recovery._relearning_runs import RelearningRun, RelearningRuns
from riprap.diagnosis.recovery._verdict import RecoveryEvidence, classify_loss
from riprap.errors import ConfigError
from riprap.evaluation import Loss

SHOT_COUNTS = (1, 2, 5, 10)
DRAWS = 3


@dataclass(frozen=True)
class RecoveryPoint:
    """Score after relearning a number of examples.

    Attributes:
        source: `own` (examples of the behavior), `unrelated`, `naive_model` (own examples, on the
            naive model) or `reference` (own examples, on the reference).
        count: number of examples.
        score: on the test probes, over draws of examples.
        recovered: share of the lost score that returned, over the same draws; below 0 if the score
            dropped further, NaN if nothing was lost.
        learning_rate: the best one of the grid.
        steps: the best number of steps, by draw.
    """

    source: str
    count: int
    score: Estimate
    recovered: Estimate
    learning_rate: float
    steps: tuple[int, ...]


@dataclass(frozen=True)
class Recovery:
    """Result of `recover`.

    Attributes:
        behavior: name of the behavior.
        verdict: whether the knowledge was lost, or the disposition to use it.
        reason: for the verdict, in one sentence.
        evidence: the numbers behind it.
        curve: scores after relearning, by source and count.
    """

    behavior: str
    verdict: Verdict
    reason: str
    evidence: RecoveryEvidence
    curve: list[RecoveryPoint] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"Recovery({self.behavior}: {self.verdict}; {self.reason})"

    def point(self, source: str, count: int) -> RecoveryPoint | None:
        """Return one point of the curve; None if it was not run."""
        return next((p for p in self.curve if (p.source, p.count) == (source, count)), None)


def recover(
    model: nn.Module,
    behavior: Behavior,
    examples: Any,
    *,
    loss: Loss | None = None,
    reference: Reference = None,
    unrelated_examples: Any = None,
    naive_model: nn.Module | Weights | None = None,
    contrast: Behavior | None = None,
    paraphrased: Behavior | None = None,
    shot_counts: Sequence[int] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    weights_on_disk: Weights | None = None,
    progress: Progress | None = None,
) -> Recovery:
    """Relearn a few examples on a copy, and decide whether knowledge or disposition was lost.

    The copy learns `shot_counts` examples, all of them at each step. Steps and learning rate come
    from a small fixed grid; every third probe selects them, the others measure. Small models train
    all weights of the copy, large ones LoRA adapters. After 2501.13453 (spurious forgetting); the
    rule for the verdict is ours.

    Args:
        model: the model with the loss; restored bit by bit afterwards.
        behavior: the lost behavior; none of its probes may be an example.
        examples: of the behavior, at least as many as the largest shot count: a `Behavior` with
            losses, a list of examples or batches, or one batch; see `Examples`.
        loss: loss(model, example), a scalar; None: the model's own, `model(**example).loss`.
        reference: the model before training, or its weights; None: `model` with its adapters
            disabled.
        unrelated_examples: examples of another task in the same form; they can restore a
            disposition, but teach no knowledge.
        naive_model: a model, or its weights, that never had the behavior: it shows what the
            examples alone teach. None: the chance level among the answers.
        contrast: the opposite behavior, such as over-refusal for refusal. Without it, a behavior
            with a single answer is learned from one example.
        paraphrased: the same probes in another form, in the same order: what the model answers
            right there, it knows.
        shot_counts: numbers of examples, in rising order; None: 1, 2, 5 and 10, as far as there
            are examples.
        draws: number of draws of examples for each count.
        weights_on_disk: copy of the model's own weights; see `restore_weights`.

    Raises:
        ConfigError: too few examples or probes, an example that is a probe, or no reference.
        BehaviorError: margins of a wrong shape.
    """
    own = Examples(examples, loss)
    unrelated = None if unrelated_examples is None else Examples(unrelated_examples, loss)
    if shot_counts is None:
        n_examples = min(len(x) for x in (own, unrelated) if x is not None)
        shot_counts = [count for count in SHOT_COUNTS if count <= n_examples]
    _check(model, behavior, own, unrelated, list(shot_counts), draws)
    with reference_model(model, reference, weights_on_disk) as start:
        behavior = _calibrated(behavior, start)
        contrast = None if contrast is None else _calibrated(contrast, start)
        paraphrased = None if paraphrased is None else _calibrated(paraphrased, start)
        runs = RelearningRuns(
            behavior, contrast, tuple(shot_counts), draws, seed, progress, own.answer_tokens()
        )
        before = runs.evaluate(start)
        paraphrased_before = runs.evaluate_paraphrased(paraphrased, start)
        runs.target_score = before.select(runs.validation).score
        reference_runs = runs.run_all(start, own, [max(shot_counts)])
    now = runs.evaluate(model)
    paraphrased_now = runs.evaluate_paraphrased(paraphrased, model)
    runs.set_expected_runs(unrelated is not None, naive_model is not None)
    by_source = {"own": runs.run_all(model, own, shot_counts)}
    if unrelated is not None:
        by_source["unrelated"] = runs.run_all(model, unrelated, shot_counts)
    if naive_model is not None:
        with reference_model(model, naive_model, weights_on_disk) as naive:
            by_source["naive_model"] = runs.run_all(naive, own, shot_counts)
    by_source["reference"] = reference_runs
    test_now, test_before = runs.select_test(now), runs.select_test(before)
    tables = {
        source: [runs.select_test(run.answers) for run in by_count[max(by_count)]]
        for source, by_count in by_source.items()
    }
    pair = None
    if paraphrased_now is not None and paraphrased_before is not None:
        pair = paraphrased_now, paraphrased_before
    evidence = RecoveryEvidence.from_tables(test_now, test_before, tables, seed, pair)
    verdict, reason = classify_loss(evidence)
    curve = _curve(runs, test_now.score, test_before.score, by_source)
    return Recovery(behavior.name, verdict, reason, evidence, curve)


def _check(
    model: nn.Module,
    behavior: Behavior,
    own: Examples,
    unrelated: Examples | None,
    counts: list[int],
    draws: int,
) -> None:
    if not counts or min(counts) < 1 or counts != sorted(set(counts)) or draws < 1:
        raise ConfigError(
            f"recover: shot_counts={counts}, draws={draws}; pass rising counts from 1, and at "
            "least one draw"
        )
    for what, given in (("examples of", own), ("unrelated examples beside", unrelated)):
        if given is not None and len(given) < max(counts):
            raise ConfigError(
                f"recover: {len(given)} {what} {behavior.name!r}, and {max(counts)} are to be "
                "learned at a time: pass more, or smaller shot_counts"
            )
    rows = behavior.token_rows()
    if rows is not None:
        probes = {tuple(row) for row in rows}
        lengths = sorted({len(row) for row in probes})
        for examples in filter(None, (own, unrelated)):
            if any(row[:n] in probes for row in examples.token_rows() for n in lengths):
                raise ConfigError(
                    f"recover: probes of {behavior.name!r} are among the examples: pass examples "
                    "that are not probes, otherwise the score is contaminated"
                )

    if any(p.dtype == torch.float16 for p in model.parameters()):  # too small for steps of Adam
        raise ConfigError(
            "recover: the model is in float16, in which small steps cannot be learned: load it in "
            "bfloat16 or float32"
        )


def _calibrated(behavior: Behavior, start: nn.Module) -> Behavior:
    """The behavior, or a copy calibrated at the reference if it is not calibrated yet."""
    if behavior.margins.is_calibrated:
        return behavior
    copy = behavior.subset(range(len(behavior.probes)))
    evaluation.calibrate(copy, start)
    return copy


def _curve(
    runs: RelearningRuns,
    score_now: float,
    score_before: float,
    by_source: Mapping[str, Mapping[int, Sequence[RelearningRun]]],
) -> list[RecoveryPoint]:
    points = []
    lost = score_before - score_now
    for source, by_count in by_source.items():
        for count, group in by_count.items():
            scores = np.array([runs.select_test(run.answers).score for run in group])
            recovered = (scores - score_now) / lost if lost > 0 else np.full_like(scores, np.nan)
            estimates = estimate(scores), estimate(recovered)
            steps = tuple(run.steps for run in group)
            points.append(RecoveryPoint(source, count, *estimates, group[0].learning_rate, steps))
    return sorted(points, key=lambda point: point.count)
