"""Recovery: what a few examples bring back, and what that says of the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from riprap import probing
from riprap.behaviors import Behavior
from riprap.diagnosis.answers import Answers, look
from riprap.diagnosis.base import Estimate, Progress, Verdict, estimate
from riprap.diagnosis.examples import Examples
from riprap.diagnosis.refresh import copy_of, learns_by_adapters, rates, steps_of
from riprap.diagnosis.verdict import Evidence, judge
from riprap.diagnosis.weights import Reference, Weights, at_reference
from riprap.evidence import ConfigError
from riprap.probing import Loss

COUNTS = (1, 2, 5, 10)
DRAWS = 3
CHOOSING = 3  # every third probe chooses steps and rates, the others measure
FEWEST = 6  # probes of a behaviour


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
        verdict: see `riprap.diagnosis.verdict`.
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
    best of a small declared grid (`riprap.diagnosis.refresh`), chosen on every third probe, and
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
        work = _Work(sides[0] or behavior, sides[1], tuple(counts), draws, seed, progress)
        work.also = own.answers()
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
    evidence = work.evidence(now, before, found, asked)
    verdict, reason = judge(evidence)
    return Recovery(behavior.name, verdict, reason, evidence, work.curve(now, before, found))


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


@dataclass(frozen=True)
class _Trial:
    """One copy at its best: what it says, and after what."""

    found: Answers
    rate: float
    steps: int


@dataclass
class _Work:
    """What all trials of one recovery share."""

    behavior: Behavior
    contrast: Behavior | None
    counts: tuple[int, ...]
    draws: int
    seed: int
    progress: Progress | None
    also: list[int] = field(default_factory=list)
    goal: float = 1.0
    done: int = 0
    expected: int = 0
    choosing: list[int] = field(default_factory=list)
    measuring: list[int] = field(default_factory=list)

    def look(self, model: nn.Module) -> Answers:
        """All probes; the first time, how they are shared out."""
        found = look(self.behavior, model, self.contrast, self.also)
        if len(found.margins) < FEWEST:
            raise ConfigError(
                f"recover: {len(found.margins)} probes of {self.behavior.name!r}; a third of them "
                f"choose steps and rates: give {FEWEST} or more"
            )
        if not self.measuring:
            right = found.right if self.contrast is not None else None
            sides = np.zeros(len(found.margins), int) if right is None else right
            for side in np.unique(sides):
                own = np.flatnonzero(sides == side)
                mixed = np.random.default_rng(self.seed).permutation(own).tolist()
                self.choosing += mixed[::CHOOSING]
                self.measuring += [row for row in mixed if row not in set(mixed[::CHOOSING])]
            self.expect(False, False)
        return found

    def ask(self, restated: Behavior | None, model: nn.Module) -> Answers | None:
        """The same in another form, on the probes that measure."""
        if restated is None:
            return None
        found = look(restated, model)
        if len(found.margins) != len(self.choosing) + len(self.measuring) or self.contrast:
            raise ConfigError(
                f"recover: {len(found.margins)} probes of {restated.name!r} restate those of "
                f"{self.behavior.name!r}: give one for each, in the same order, and no contrast"
            )
        return found.part(self.measuring)

    def expect(self, irrelevant: bool, control: bool) -> None:
        """How many trials there will be, for the progress bar."""
        grid = len(rates(False)) - 1
        of_one = len(self.counts) * self.draws + grid
        self.expected = self.draws + grid + of_one * (1 + irrelevant + control)

    def trials(
        self, model: nn.Module, examples: Examples, counts: Sequence[int]
    ) -> dict[int, list[_Trial]]:
        """For each count the trial of each draw; the rate is chosen on the largest count."""
        most = max(counts)
        grid = rates(learns_by_adapters(model))
        first = {
            rate: self.trial(model, examples, self.drawn(examples, most, 0), rate) for rate in grid
        }
        best = max(first, key=lambda rate: self.worth(first[rate].found))
        found = {most: [first[best]]}
        for count in counts:
            for draw in range(self.draws):
                if (count, draw) != (most, 0):
                    chosen = self.drawn(examples, count, draw)
                    found.setdefault(count, []).append(self.trial(model, examples, chosen, best))
        return found

    def drawn(self, examples: Examples, count: int, draw: int) -> list[int]:
        """The first `count` of an order of the examples; larger counts hold smaller ones."""
        order = np.random.default_rng([self.seed, draw]).permutation(len(examples))
        return [int(at) for at in order[:count]]

    def trial(
        self, model: nn.Module, examples: Examples, chosen: Sequence[int], rate: float
    ) -> _Trial:
        """The best number of steps; it ends once there is nothing left to regain."""
        tried: list[_Trial] = []
        with copy_of(model) as (parameters, adapters):
            for step in steps_of(model, parameters, adapters, examples, chosen, rate):
                tried.append(_Trial(self.look(model), rate, step))
                if tried[-1].found.part(self.choosing).score >= self.goal:
                    break
        self.done += 1
        if self.progress is not None:
            self.progress(min(self.done, self.expected), self.expected)
        return max(tried, key=lambda one: self.worth(one.found))

    def worth(self, one: Answers) -> tuple[float, float]:
        """By which of two looks the better one is told: on the probes that choose."""
        part = one.part(self.choosing)
        return part.score, float(part.margins @ part.weights)

    def evidence(
        self,
        now: Answers,
        before: Answers,
        found: dict[tuple[str, int], list[_Trial]],
        asked: Sequence[Answers | None],
    ) -> Evidence:
        """The numbers that a verdict rests on, from the probes that measure."""
        looks = {
            source: [
                one.found.part(self.measuring)
                for one in found[source, max(k for s, k in found if s == source)]
            ]
            for source in {s for s, _ in found}
        }
        then, today = asked
        restated = None if then is None or today is None else (today, then)
        parts = now.part(self.measuring), before.part(self.measuring)
        return Evidence.of(*parts, looks, self.seed, restated)

    def curve(
        self, now: Answers, before: Answers, found: dict[tuple[str, int], list[_Trial]]
    ) -> list[Regained]:
        """Scores and shares by source and count."""
        then, start = (one.part(self.measuring).score for one in (before, now))
        points = []
        for (source, count), tried in sorted(found.items(), key=lambda item: item[0][1]):
            scores = np.array([one.found.part(self.measuring).score for one in tried])
            shares = (
                (scores - start) / (then - start) if then > start else np.full_like(scores, np.nan)
            )
            steps = tuple(one.steps for one in tried)
            points.append(
                Regained(source, count, estimate(scores), estimate(shares), tried[0].rate, steps)
            )
        return points
