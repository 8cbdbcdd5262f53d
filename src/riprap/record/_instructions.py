"""Instructions of fast–slow training, from the events that its cycles leave in the record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from riprap._text import escape_control_chars

FAST_CYCLE = "fast_cycle"  # kind of the events
MAX_LENGTH = 2000  # characters of an instruction that are kept


@dataclass(frozen=True)
class Instruction:
    """An instruction that cycles evaluated.

    Attributes:
        id: its number in this run; of a population, those that were given have the smallest.
        text: the instruction; empty: the problem as it is.
        parent: id of the instruction that it was made from; None: it was given.
        rewards: number of a cycle → mean reward on the problems of this cycle; None: not scored.
        kept: numbers of the cycles after which it was in the population.
    """

    id: int
    text: str
    parent: int | None
    rewards: dict[int, float | None] = field(default_factory=dict)
    kept: list[int] = field(default_factory=list)

    @property
    def reward(self) -> float | None:
        """Mean reward in the last cycle that evaluated it."""
        return self.rewards[max(self.rewards)]


@dataclass(frozen=True)
class RejectedInstruction:
    """A new instruction that did not beat its parent on the minibatch of a cycle.

    Attributes:
        reward, parent_reward: means over the problems on which both were scored; None: there are
            none.
    """

    cycle: int
    text: str
    parent: int
    reward: float | None
    parent_reward: float | None


@dataclass(frozen=True)
class Instructions:
    """Instructions that the cycles of a run evaluated, kept and rejected.

    Attributes:
        steps: number of a cycle → optimizer steps before it.
        population: ids of the instructions in use after the last cycle, the best first.
        evaluated: all instructions that cycles evaluated on all their problems, by id.
        rejected: those that no cycle evaluated further.
        training_rollouts, cycle_rollouts: texts that the model generated up to the last cycle of
            each population.
        failures: calls of the proposer that raised.
        restarts: numbers of the cycles, after the first, that began with a population as it was
            given, such as after a checkpoint without one. Its instructions have ids of their own,
            also where a text was there before.
    """

    steps: dict[int, int]
    population: list[int]
    evaluated: dict[int, Instruction]
    rejected: list[RejectedInstruction]
    training_rollouts: int
    cycle_rollouts: int
    failures: int
    restarts: list[int]

    @property
    def sentence(self) -> str:
        """Summary of the cycles in words."""
        new = sum(own.parent is not None for own in self.evaluated.values())
        spent = _many(self.cycle_rollouts, "rollout")
        said = [
            f"{_many(len(self.steps), 'cycle')} took {spent}.",
            f"Before the last cycle, the training took {self.training_rollouts:,}.",
            f"New instructions: {new:,} evaluated on all problems of a cycle, "
            f"{len(self.rejected):,} rejected because they did not beat their parents.",
        ]
        if self.failures:
            said.append(f"{_many(self.failures, 'call')} of the proposer failed.")
        said += [
            f"Cycle {number:,} began with the population as it was given: training before it is "
            f"counted up to cycle {number - 1:,}."
            for number in self.restarts
        ]
        return " ".join(said)


def instructions_of(events: Iterable[Mapping[str, Any]]) -> Instructions | None:
    """Return the instructions of a run from the events of its record; None: there were no cycles.

    Args:
        events: as `Reader.events` returns them.
    """
    own: list[Mapping[str, Any]] = []
    for event in events:
        if event["kind"] == "resumed":  # a cycle runs before its next step, which is taken again
            own = [one for one in own if one["step"] < event["step"]]
        elif event["kind"] == FAST_CYCLE:
            own.append(event)
    if not own:
        return None
    evaluated: dict[int, Instruction] = {}
    rejected, population, restarts = [], [], []
    first = 0  # of the ids of the population in use
    for number, event in enumerate(own, 1):
        facts = event["facts"]
        if facts["cycle"] == 1 and number > 1:  # another `FastSlow`, which counts from 0
            restarts.append(number)
            first = max(evaluated) + 1
        population = [first + c["id"] for c in facts["candidates"] if c["kept"]]
        for candidate in facts["candidates"]:
            key, parent = first + candidate["id"], candidate["parent"]
            parent = None if parent is None else first + parent
            found = evaluated.setdefault(key, Instruction(key, _shown(candidate["text"]), parent))
            found.rewards[number] = _mean(candidate["scores"])
            if candidate["kept"]:
                found.kept.append(number)
        for one in facts["rejected"]:
            both = zip(one["scores"], one["parent_scores"], strict=True)
            pairs = [pair for pair in both if None not in pair]
            rejected.append(
                RejectedInstruction(
                    number,
                    _shown(one["text"]),
                    first + one["parent"],
                    _mean([new for new, _ in pairs]),
                    _mean([old for _, old in pairs]),
                )
            )
    ends = [own[number - 2]["facts"] for number in [*restarts, len(own) + 1]]
    return Instructions(
        {number: event["step"] for number, event in enumerate(own, 1)},
        population,
        dict(sorted(evaluated.items())),
        rejected,
        sum(facts["training_rollouts"] for facts in ends),
        sum(facts["cycle_rollouts"] for facts in ends),
        sum(event["facts"]["failures"] for event in own),
        restarts,
    )


def _shown(text: str) -> str:
    """Return a text without control characters, of limited length; line breaks are kept."""
    shown = escape_control_chars(text[: MAX_LENGTH + 1])
    return shown if len(shown) <= MAX_LENGTH else shown[: MAX_LENGTH - 1] + "…"


def _mean(scores: Iterable[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known else None


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
