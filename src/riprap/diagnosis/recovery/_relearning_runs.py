"""Copies of a model that learn a few examples, each at its best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from riprap.behaviors import Behavior
from riprap.diagnosis._base import Progress
from riprap.diagnosis.recovery._answer_choices import Answers, look
from riprap.diagnosis.recovery._examples import Examples
from riprap.diagnosis.recovery._relearn import copy_of, learns_by_adapters, rates, steps_of
from riprap.errors import ConfigError

CHOOSING = 3  # every third probe chooses steps and rates, the others measure
FEWEST = 6  # probes of a behaviour


@dataclass(frozen=True)
class Trial:
    """One copy at its best: what it says, and after what."""

    found: Answers
    rate: float
    steps: int


@dataclass
class Trials:
    """What all trials of one recovery share.

    Attributes:
        also: tokens that are answers too, beside those of the probes.
        goal: score at which there is nothing left to regain.
        done, expected: trials, for the progress bar.
        choosing, measuring: indices of the probes that choose steps and rates, and of the others.
    """

    behavior: Behavior
    contrast: Behavior | None
    counts: tuple[int, ...]
    draws: int
    seed: int
    progress: Progress | None
    also: Sequence[int]
    goal: float = 1.0
    done: int = 0
    expected: int = 0
    choosing: list[int] = field(default_factory=list)
    measuring: list[int] = field(default_factory=list)

    def look(self, model: nn.Module) -> Answers:
        """All probes; the first time, how they are shared out."""
        found = look(self.behavior, model, self.contrast, self.also)
        if not self.measuring:
            self._share_out(found)
            self.expect(False, False)
        return found

    def _share_out(self, found: Answers) -> None:
        """Which probes choose, and which measure; alike on both sides of a contrast."""
        sides = found.right if found.two_sided else None
        sides = np.zeros(len(found.margins), int) if sides is None else sides
        for side, behavior in enumerate(filter(None, (self.behavior, self.contrast))):
            own = np.flatnonzero(sides == side)
            if len(own) < FEWEST:
                raise ConfigError(
                    f"recover: {len(own)} probes of {behavior.name!r}; a third of them choose "
                    f"steps and rates: give {FEWEST} or more"
                )
            mixed = np.random.default_rng(self.seed).permutation(own).tolist()
            self.choosing += mixed[::CHOOSING]
            self.measuring += [row for row in mixed if row not in set(mixed[::CHOOSING])]

    def measured(self, found: Answers) -> Answers:
        """Of the probes that measure."""
        return found.part(self.measuring)

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
        return self.measured(found)

    def expect(self, irrelevant: bool, control: bool) -> None:
        """How many trials there will be, for the progress bar."""
        grid = len(rates(False)) - 1
        of_one = len(self.counts) * self.draws + grid
        self.expected = self.draws + grid + of_one * (1 + irrelevant + control)

    def trials(
        self, model: nn.Module, examples: Examples, counts: Sequence[int]
    ) -> dict[int, list[Trial]]:
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
    ) -> Trial:
        """The best number of steps; it ends once there is nothing left to regain."""
        tried: list[Trial] = []
        with copy_of(model) as (parameters, adapters):
            for step in steps_of(model, parameters, adapters, examples, chosen, rate):
                tried.append(Trial(self.look(model), rate, step))
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
