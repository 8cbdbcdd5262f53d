"""Recovery: what a few examples bring back, and what that says of the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from riprap import evaluation as probing
from riprap.behaviors import Behavior
from riprap.diagnosis._base import Estimate, Progress, Verdict, estimate
from riprap.diagnosis._weight_sources import Reference, Weights, at_reference
from riprap.diagnosis.recovery._answer_choices import Answers
from riprap.diagnosis.recovery._examples import Examples
from riprap.diagnosis.recovery._relearning_runs import Trial, Trials
from riprap.diagnosis.recovery._verdict import Evidence, judge
from riprap.errors import ConfigError
from riprap.evaluation import Loss

COUNTS = (1, 2, 5, 10)
DRAWS = 3


@dataclass(frozen=True)
class Regained:
    """What a number of examples brought back.

    Attributes:
        source: own (examples of the behaviour), irrelevant, control (own examples on a model that
            never had the behaviour) or reference (own examples on the reference).
        count: examples learned.
        score: on the probes that chose nothing, over draws of examples.
        share: of the lost score, over the same draws; below 0 where it fell further, NaN where
            nothing was lost.
        rate: of the grid, the one that was best.
        steps: how many were best, draw by draw.
    """

    source: str
    count: int
    score: Estimate
    share: Estimate
    rate: float
    steps: tuple[int, ...]


@dataclass(frozen=True)
class Recovery:
    """Whether what was lost is the knowledge or the disposition to use it.

    Attributes:
        behavior: its name.
        verdict: see `riprap.diagnosis.recovery._verdict`.
        reason: the verdict's, in a sentence.
        evidence: the numbers that it rests on.
        curve: what came back, by source and count.
    """

    behavior: str
    verdict: Verdict
    reason: str
    evidence: Evidence
    curve: list[Regained] = field(default_factory=list)

    def regained(self, source: str, count: int) -> Regained | None:
        """One point of the curve; None where it was not run."""
        return next((p for p in self.curve if (p.source, p.count) == (source, count)), None)


def recover(
    model: nn.Module,
    behavior: Behavior,
    examples: Any,
    *,
    loss: Loss | None = None,
    reference: Reference = None,
    irrelevant: Any = None,
    control: nn.Module | Weights | None = None,
    contrast: Behavior | None = None,
    restated: Behavior | None = None,
    counts: Sequence[int] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    home: Weights | None = None,
    progress: Progress | None = None,
) -> Recovery:
    """Learn a few examples on a copy, and see how much of a lost behaviour is back.

    The copy learns `counts` examples at a time, all of them at each step; steps and rates are the
    best of a small declared grid (`riprap.diagnosis.recovery._relearn`), chosen on every third probe, and
    measured on the others. Small models train all weights of the copy, large ones adapters.
    After 2501.13453 (spurious forgetting); the verdict is ours.

    Args:
        model: the model that lost something; afterwards it is bit by bit as before.
        behavior: what was lost; its probes must be none of the examples.
        examples: of the behaviour, at least as many as the largest count that is given: a
            `Behavior` with losses, a list of examples or batches, or one batch; see `Examples`.
        loss: loss(model, example), a scalar; None: the model's own, `model(**example).loss`.
        reference: the model as it was before, or its weights; None: with adapters switched off.
        irrelevant: examples of another task, in the same forms; they can bring back a disposition
            and no knowledge.
        control: a model, or its weights, that never had the behaviour: what examples alone teach.
            None: what guessing among the answers would give.
        contrast: the behaviour on the other side, such as over-refusal beside refusal, without
            which answers that are all the same are learned from one example.
        restated: the same as the behaviour, probe by probe, asked in another form: what the model
            says right there it knows.
        counts: examples a time, in rising order; None: 1, 2, 5 and 10, as far as there are
            examples.
        draws: how often examples are drawn for each count.
        home: where the model's own weights can be read again; see `weights.kept`.

    Raises:
        ConfigError: too few examples or probes, an example that is a probe, or no reference.
        BehaviorError: margins of a wrong shape.
    """
    own = Examples(examples, loss)
    other = None if irrelevant is None else Examples(irrelevant, loss)
    if counts is None:
        counts = [k for k in COUNTS if k <= min(len(x) for x in (own, other) if x is not None)]
    _check(behavior, own, other, counts, draws)
    _check_precision(model)
    with at_reference(model, reference, home) as start:
        sides = [_started(one, start) if one else None for one in (behavior, contrast, restated)]
        work = Trials(
            sides[0] or behavior, sides[1], tuple(counts), draws, seed, progress, own.answers()
        )
        before = work.look(start)
        asked = [work.ask(sides[2], start)]
        work.goal = before.part(work.choosing).score
        again = work.trials(start, own, [max(counts)])
    now = work.look(model)
    asked.append(work.ask(sides[2], model))
    work.expect(other is not None, control is not None)
    found = {("own", k): v for k, v in work.trials(model, own, counts).items()}
    if other is not None:
        found |= {("irrelevant", k): v for k, v in work.trials(model, other, counts).items()}
    if control is not None:
        with at_reference(model, control, home) as never:
            found |= {("control", k): v for k, v in work.trials(never, own, counts).items()}
    found |= {("reference", k): v for k, v in again.items()}
    evidence = _evidence(work, now, before, found, asked)
    verdict, reason = judge(evidence)
    return Recovery(behavior.name, verdict, reason, evidence, _curve(work, now, before, found))


def _check(
    behavior: Behavior, own: Examples, other: Examples | None, counts: Sequence[int], draws: int
) -> None:
    if not counts or min(counts) < 1 or list(counts) != sorted(set(counts)) or draws < 1:
        raise ConfigError(
            f"recover: counts={list(counts)}, draws={draws}; counts rise from 1, and there is at "
            "least one draw"
        )
    for what, given in (("examples of", own), ("irrelevant examples beside", other)):
        if given is not None and len(given) < max(counts):
            raise ConfigError(
                f"recover: {len(given)} {what} {behavior.name!r}, and {max(counts)} are to be "
                "learned at a time: give more, or smaller counts"
            )
    rows = getattr(behavior.probes, "rows", None)
    if callable(rows):
        probes = {tuple(row) for row in rows()}
        lengths = sorted({len(row) for row in probes})
        for examples in filter(None, (own, other)):
            if any(row[:n] in probes for row in examples.tokens() for n in lengths):
                raise ConfigError(
                    f"recover: probes of {behavior.name!r} are among the examples: "
                    "what is learned cannot measure"
                )


def _check_precision(model: nn.Module) -> None:
    """Steps of Adam are lost in half precision of five bits of exponent."""
    if any(p.dtype == torch.float16 for p in model.parameters()):
        raise ConfigError(
            "recover: the model is in float16, in which few small steps cannot be learned: load it "
            "in bfloat16 or float32"
        )


def _started(behavior: Behavior, start: nn.Module) -> Behavior:
    """A behaviour that measures against the start; one that has not begun does so on a copy."""
    kind: Any = behavior.margins
    unset = getattr(kind, "reference", ...) is None or getattr(kind, "openers", ...) == []
    if behavior.start is None or not unset:
        return behavior
    own = behavior.subset(range(len(behavior.probes)))
    probing.start(own, start)
    return own


Tried = Mapping[tuple[str, int], Sequence[Trial]]  # by source and count


def _evidence(
    work: Trials, now: Answers, before: Answers, found: Tried, asked: Sequence[Answers | None]
) -> Evidence:
    """The numbers that a verdict rests on, from the probes that measure."""
    most = {source: max(k for s, k in found if s == source) for source, _ in found}
    looks = {
        source: [work.measured(one.found) for one in found[source, count]]
        for source, count in most.items()
    }
    then, today = asked
    restated = None if then is None or today is None else (today, then)
    return Evidence.of(work.measured(now), work.measured(before), looks, work.seed, restated)


def _curve(work: Trials, now: Answers, before: Answers, found: Tried) -> list[Regained]:
    """Scores and shares by source and count."""
    then, start = (work.measured(one).score for one in (before, now))
    points = []
    for (source, count), tried in sorted(found.items(), key=lambda item: item[0][1]):
        scores = np.array([work.measured(one.found).score for one in tried])
        lost = then - start
        shares = (scores - start) / lost if lost > 0 else np.full_like(scores, np.nan)
        steps = tuple(one.steps for one in tried)
        points.append(
            Regained(source, count, estimate(scores), estimate(shares), tried[0].rate, steps)
        )
    return points
