"""The population: which instructions are in use, where they come from, and what each scored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any

from riprap.record import check_fields


@dataclass(frozen=True)
class Candidate:
    """An instruction that a cycle evaluated on all its problems.

    Attributes:
        id: number of the text in this run; a text that comes back has the same one.
        text: the instruction.
        parent: id of the instruction that it was made from; None: it was given.
        scores: reward on each problem of the cycle; None: no reward function scored it.
        on_front: it is on the per-instance Pareto front; see `docs/fastslow.md`.
        kept: it is in the population after the cycle.
    """

    id: int
    text: str
    parent: int | None
    scores: list[float | None]
    on_front: bool
    kept: bool

    @property
    def score(self) -> float:
        """Mean reward over the problems on which it was scored; NaN if there is none."""
        scored = [own for own in self.scores if own is not None]
        return sum(scored) / len(scored) if scored else math.nan


@dataclass(frozen=True)
class Rejected:
    """A new instruction that did not beat its parent on a minibatch; a cycle tried no more of it.

    Attributes:
        text: the instruction.
        parent: id of the instruction that it was made from.
        problems: rows of the training data in the minibatch.
        scores: its reward on each of them; None: no reward function scored it.
        parent_scores: its parent's.
    """

    text: str
    parent: int
    problems: list[int]
    scores: list[float | None]
    parent_scores: list[float | None]


@dataclass(frozen=True)
class Cycle:
    """An evolution of the population with the weights as they were.

    Attributes:
        step: optimizer steps before it.
        problems: rows of the training data on which it scored.
        candidates: all instructions that were evaluated on all problems; kept ones in their order.
        rollouts: texts that the model in training generated for it.
        proposals: calls of the proposer.
        failures: calls of the proposer that raised.
        error: text of the first of these failures; else empty.
        rejected: new instructions that did not beat their parents. Checkpoints leave them out.
    """

    step: int
    problems: list[int]
    candidates: list[Candidate]
    rollouts: int
    proposals: int
    failures: int = 0
    error: str = ""
    rejected: list[Rejected] = field(default_factory=list)

    def __repr__(self) -> str:
        kept = [f"{c.score:.3g}" for c in self.candidates if c.kept]
        return (
            f"Cycle(step {self.step}: kept {len(kept)} of {len(self.candidates)} candidates, "
            f"scores {', '.join(kept)}; {self.rollouts} rollouts)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as they stand in the record."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Cycle:
        """Invert `to_dict`."""
        candidates = [Candidate(**own) for own in state["candidates"]]
        rejected = [Rejected(**own) for own in state["rejected"]]
        return cls(**state | {"candidates": candidates, "rejected": rejected})


class Population:
    """Instructions in use, the best first, with the lineage of all that a cycle evaluated."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = list(texts)
        self._ids = {text: at for at, text in enumerate(texts)}
        self._parents: list[int | None] = [None] * len(self.texts)

    def add(self, text: str, parent: str) -> None:
        """Note a new instruction and the one that it was made from."""
        if text not in self._ids:
            self._ids[text] = len(self._parents)
            self._parents.append(self._ids[parent])

    def lineage(self, text: str) -> tuple[int, int | None]:
        """Return the id of an instruction, and that of its parent."""
        return self._ids[text], self._parents[self._ids[text]]

    def state_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "texts": list(self.texts),
            "known": list(self._ids),
            "parents": list(self._parents),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Invert `state_dict`; raise a ValueError if it is none."""
        check_fields(state, texts=list, known=list, parents=list)
        if not state["texts"] or not set(state["texts"]) <= set(state["known"]):
            raise ValueError("the population is empty, or not among the known instructions")
        if len(state["known"]) != len(state["parents"]):
            raise ValueError("there is not one parent for each instruction")
        self.texts = list(state["texts"])
        self._ids = {text: at for at, text in enumerate(state["known"])}
        self._parents = list(state["parents"])


Scores = Sequence[Sequence[float | None]]  # of each candidate on each problem; None: not scored


def choose_front(scores: Scores, keep: int) -> list[int]:
    """Choose candidates of the per-instance Pareto front; see `front`.

    The next one is always that which is best on most problems on which none chosen so far is best;
    ties go to the higher mean, then to the older one. Where no problem tells them apart, the oldest
    are chosen.

    Args:
        scores: reward of each candidate on each problem.
        keep: largest number of candidates.

    Returns:
        their positions, the highest mean first.
    """
    wins = front(scores)
    columns = _columns(scores).values()
    totals = [sum(column[at] for column in columns) for at in range(len(scores))]
    left = [at for at, own in enumerate(wins) if own] or list(range(len(scores)))
    chosen: list[int] = []
    covered: set[int] = set()
    while left and len(chosen) < keep:
        best = max(left, key=lambda at: (len(wins[at] - covered), totals[at], -at))
        left.remove(best)
        chosen.append(best)
        covered |= wins[best]
    return sorted(chosen, key=lambda at: (-totals[at], at))


def front(scores: Scores) -> list[set[int]]:
    """Return, for each candidate, the problems on which no other has a higher reward.

    A problem on which all candidates have the same reward, or on which one was not scored, tells
    nothing and is left out. A candidate has no problems if another one has at least its reward on
    all of them, and more on one.
    """
    columns = _columns(scores)
    told = {p: column for p, column in columns.items() if len(set(column)) > 1}
    table = [[column[at] for column in told.values()] for at in range(len(scores))]
    return [
        {p for p, column in told.items() if column[at] == max(column)}
        if not any(_dominates(other, own) for other in table)
        else set()
        for at, own in enumerate(table)
    ]


def _columns(scores: Scores) -> dict[int, list[float]]:
    """Return the rewards on each problem on which all candidates were scored."""
    columns = ([s for s in column if s is not None] for column in zip(*scores, strict=True))
    return {p: column for p, column in enumerate(columns) if len(column) == len(scores)}


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))


def choose_at_random(n: int, keep: int, rng: Random) -> list[int]:
    """Choose candidates at random, whatever they scored."""
    return rng.sample(range(n), min(n, keep))
