"""Recovery: relearn a few examples on a copy, and classify the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from riprap import evaluation
from riprap._checks import checked
from riprap.behaviors import Behavior
from riprap.diagnosis._base import Estimate, Progress, Verdict, estimate
from riprap.diagnosis._weight_sources import Reference, Weights, reference_model
from riprap.diagnosis.evidence import weight_damage
from riprap.diagnosis.recovery._answer_choices import possible_answers
from riprap.diagnosis.recovery._examples import Examples
from riprap.diagnosis.recovery._recovery_evidence import RecoveryEvidence
from riprap.diagnosis.recovery._relearn import learning_rates, trains_adapters
from riprap.diagnosis.recovery._relearning_runs import (
    RelearningRun,
    RelearningRuns,
    Source,
    most_steps,
)
from riprap.diagnosis.recovery._verdict import (
    MIN_SCORE_DROP,
    classify_loss,
    settled_verdict,
    why_no_loss,
)
from riprap.errors import ConfigError
from riprap.evaluation import Loss

SHOT_COUNTS = (1, 2, 5, 10)
SOURCES = ("own", "unrelated", "naive_model", "reference")  # in the order of the curve
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
        curve: scores after relearning, by source and count, as far as they were run.
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


@checked
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
    full: bool = False,
    seed: int = 0,
    weights_on_disk: Weights | None = None,
    progress: Progress | None = None,
) -> Recovery:
    """Relearn a few examples on a copy, and decide whether knowledge or disposition was lost.

    The copy learns a number of examples, all of them at each step. Steps and learning rate come
    from a small fixed grid; every third probe selects them, the others measure. Small models train
    all weights of the copy, large ones LoRA adapters. After 2501.13453 (spurious forgetting); the
    rule for the verdict is ours.

    By default only the verdict is sought, and the search ends as soon as it is settled:

    - Nothing is learned if there is no loss to explain.
    - Draws of examples are added, up to `draws`, until the verdict is the same everywhere in the
      95 % interval of the retained knowledge. All draws together then give another verdict only if
      they move the share out of this interval: in 5 % of the cases at each stop, as long as draws
      differ no more than samples of probes do.
    - Unrelated examples are not learned if the verdict is settled as alignment loss before: they
      can only show more knowledge.
    - Learning rates are stopped early, and unlikely ones are not tried; see `_relearning_runs`.

    The rule for the verdict, with its thresholds and interval, is the same with `full`.

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
            are examples. The largest decides; the others, a curve, need `full`.
        draws: number of draws of examples for each count; at most, without `full`.
        full: run every count, draw, source and learning rate.
        weights_on_disk: copy of the model's own weights; see `restore_weights`.

    Raises:
        ConfigError: too few examples or probes, an example that is a probe, no reference, or
            several counts without `full`.
        BehaviorError: margins of a wrong shape.
    """
    own = Examples(examples, loss)
    unrelated = None if unrelated_examples is None else Examples(unrelated_examples, loss)
    counts = _shot_counts(shot_counts, own, unrelated, full)
    _check(model, behavior, own, unrelated, counts, draws)

    def at_reference() -> AbstractContextManager[nn.Module]:
        return reference_model(model, reference, weights_on_disk)

    sources = [Source("reference", own, at_reference)]
    if naive_model is not None:
        sources.append(
            Source("naive_model", own, lambda: reference_model(model, naive_model, weights_on_disk))
        )
    sources.append(Source("own", own, lambda: nullcontext(model)))
    if unrelated is not None:
        sources.append(Source("unrelated", unrelated, lambda: nullcontext(model)))
    with at_reference() as start:
        behavior = _calibrated(behavior, start)
        contrast = None if contrast is None else _calibrated(contrast, start)
        paraphrased = None if paraphrased is None else _calibrated(paraphrased, start)
        answers = possible_answers(behavior, own.answer_tokens())
        runs = RelearningRuns(behavior, contrast, seed, full, answers, progress)
        before = runs.evaluate(start)
        runs.start_from(before)
        paraphrased_before = runs.evaluate_paraphrased(paraphrased, start)
        rates = len(learning_rates(trains_adapters(start)))
    now = runs.evaluate(model)
    test_now, test_before = (runs.select_test(table) for table in (now, before))
    is_lost = test_before.score - test_now.score >= MIN_SCORE_DROP
    damage = weight_damage(model, reference) if is_lost and reference is not None else None
    paraphrased_now = runs.evaluate_paraphrased(paraphrased, model)
    pair = None
    if paraphrased_now is not None and paraphrased_before is not None:
        pair = paraphrased_now, paraphrased_before
    runs.max_steps = most_steps(sources, counts, draws, rates)

    def evidence() -> RecoveryEvidence:
        tables = {
            source: [run.answers for run in by_count[max(counts)]]
            for source, by_count in runs.runs.items()
        }
        return RecoveryEvidence.from_tables(test_now, test_before, tables, seed, pair, damage)

    if full:
        for source in sources:
            for count in reversed(counts):
                for draw in range(source.n_draws(count, draws)):
                    runs.learn(source, count, draw)
        found = evidence()
    else:
        found = _gather_evidence(runs, sources, counts[-1], draws, evidence)
    runs.finish()
    verdict, reason = classify_loss(found)
    curve = _curve(found, runs.runs)
    return Recovery(behavior.name, verdict, reason, found, curve)


def _gather_evidence(
    runs: RelearningRuns,
    sources: Sequence[Source],
    count: int,
    draws: int,
    evidence: Callable[[], RecoveryEvidence],
) -> RecoveryEvidence:
    """Run draw by draw until the verdict is settled; see `recover` for the rule."""
    if why_no_loss(evidence()):
        return evidence()
    for draw in range(draws):
        for source in sources:
            if source.name == "unrelated" and settled_verdict(evidence()) is Verdict.ALIGNMENT:
                break  # unrelated examples can only show more knowledge
            if draw < source.n_draws(count, draws):
                runs.learn(source, count, draw)
        if settled_verdict(evidence()) is not None:
            break
    return evidence()


def _shot_counts(
    given: Sequence[int] | None, own: Examples, unrelated: Examples | None, full: bool
) -> list[int]:
    if given is None:
        n_examples = min(len(x) for x in (own, unrelated) if x is not None)
        counts = [count for count in SHOT_COUNTS if count <= n_examples]
        return counts if full else counts[-1:]
    if len(given) > 1 and not full:
        raise ConfigError(
            f"recover: shot_counts={list(given)} is a curve, which only full=True measures: pass "
            "full=True, or one count"
        )
    return list(given)


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
    evidence: RecoveryEvidence, runs: Mapping[str, Mapping[int, Sequence[RelearningRun]]]
) -> list[RecoveryPoint]:
    points = []
    lost = evidence.score_before - evidence.score_now
    for source in sorted(runs, key=SOURCES.index):
        for count, group in runs[source].items():
            scores = np.array([run.answers.score for run in group])
            recovered = np.full_like(scores, np.nan)
            if lost > 0:
                recovered = (scores - evidence.score_now) / lost
            estimates = estimate(scores), estimate(recovered)
            steps = tuple(run.steps for run in group)
            points.append(RecoveryPoint(source, count, *estimates, group[0].learning_rate, steps))
    return sorted(points, key=lambda point: point.count)
