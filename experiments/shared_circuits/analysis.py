"""Claims on each explanation of the harm, by the rules of the preregistration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from experiments.shared_circuits import tasks
from experiments.shared_circuits.frozen_parts import ALL_BUT_NEW, BLOCKS, WORDS
from experiments.shared_circuits.plan import Condition, Plan
from experiments.shared_circuits.shared_units import RANDOM, SHARED, UNSHARED
from experiments.shared_circuits.simulate import Run

SAME, DISJOINT = "C", "C_disjoint"
EARLY = {"predicted": -1, "cosine": -1, "steep": 1, "moved": 1}  # +1: more of it, more harm
SAME_WORDS = (SAME, "first", "lookup")
OTHER_WORDS = (DISJOINT, tasks.APART, "first_disjoint", "lookup_disjoint")
UNKNOWN = float("nan")


def harm(run: Run, name: str = "A") -> float:
    """Return the mean over the run of the share of held-out inputs that are answered wrongly."""
    steps = np.array(run.visits["step"])
    lost = 1 - np.array(run.visits[f"score/{name}"])
    return float(np.trapezoid(lost, steps) / (steps[-1] - steps[0]))


def broke(run: Run, floor: float, name: str = "A") -> float:
    """Return the step of the first measurement with the score below the floor, or ∞."""
    under = np.flatnonzero(np.array(run.visits[f"score/{name}"]) < floor)
    return run.visits["step"][under[0]] if len(under) else float("inf")


def halved(run: Run, name: str = "A") -> float:
    """Return the step of the first measurement with at most half of the first mean margin, or ∞."""
    margins = np.array(run.visits[f"margin/{name}"])
    under = np.flatnonzero(margins <= margins[0] / 2)
    return run.visits["step"][under[0]] if len(under) else float("inf")


def reached(run: Run, level: float) -> int | None:
    """Return the index of the first measurement with at least this accuracy on the new task."""
    indices = np.flatnonzero(np.array(run.visits["task"]) >= level)
    return int(indices[0]) if len(indices) else None


def lost_at(run: Run, level: float, name: str = "A") -> float:
    """Return the share of A lost when the new task first reached an accuracy, or NaN."""
    visit = reached(run, level)
    return UNKNOWN if visit is None else 1 - run.visits[f"score/{name}"][visit]


def equally(one: Run, other: Run, most: float) -> tuple[float, float, float]:
    """Compare the losses of A at the same accuracy on the new task.

    Returns:
        (loss of one, loss of the other, the best accuracy that both reached, at most `most`).
    """
    level = min(most, *(float(np.max(run.visits["task"])) for run in (one, other)))
    return lost_at(one, level), lost_at(other, level), level


@dataclass(frozen=True)
class Seed:
    """The runs of one seed."""

    seed: int
    runs: dict[Condition, Run]
    plan: Plan

    def run(self, task: str, held: str = "") -> Run:
        """Return the run of a condition."""
        return self.runs[Condition(task, held)]

    def randoms(self, task: str) -> list[Run]:
        """Return the runs with random components frozen."""
        return [r for c, r in self.runs.items() if c.task == task and c.held.startswith(RANDOM)]

    def share(self, of: float, whole: float) -> float:
        """Return a share of a harm; NaN if there is hardly any harm."""
        return of / whole if whole >= self.plan.least_harm else UNKNOWN

    def kept_by(self, held: str, task: str = DISJOINT) -> float:
        """Return the share of a task's harm that remains with a part frozen."""
        return self.share(harm(self.run(task, held)), harm(self.run(task)))

    def left_equally(self, held: str) -> float:
        """Return the share of C_disjoint's harm with a part frozen, at equal new-task accuracy."""
        return self.share(
            *equally(self.run(DISJOINT, held), self.run(DISJOINT), self.plan.learned)[:2]
        )

    def spared(self, task: str) -> float:
        """Return how much more freezing shared components reduces the harm than random ones.

        −∞ if the new task was not learned with them frozen.
        """
        shared = self.run(task, SHARED)
        if shared.visits["task"][-1] < self.plan.learned:
            return float("-inf")
        drawn = float(np.mean([harm(run) for run in self.randoms(task)]))
        return self.share(drawn - harm(shared), drawn)

    def specific(self, task: str) -> float:
        """Return a difference of harms: the lesser of random and unshared, less shared parts."""
        drawn = float(np.mean([harm(run) for run in self.randoms(task)]))
        return min(drawn, harm(self.run(task, UNSHARED))) - harm(self.run(task, SHARED))

    def among_own(self) -> float:
        """Return the share of A's final loss that vanishes among A's own numbers as answers."""
        visits = self.run(DISJOINT).visits
        return self.share(visits["within"][-1] - visits["score/A"][-1], 1 - visits["score/A"][-1])

    def regained(self, part: str) -> float:
        """Return the share of A's final loss that restoring a part to the start recovers."""
        run = self.run(DISJOINT)
        last = run.visits["score/A"][-1]
        return self.share(run.restored[part] - last, 1 - last)

    def less_by(self, others: Sequence[str], than: str) -> float:
        """Return the share by which even the most harmful of the others harms less than a task."""
        whole = harm(self.run(than))
        return self.share(whole - max(harm(self.run(other)) for other in others), whole)

    def later(self) -> float:
        """Return the ratio of A's break steps under C_disjoint and C; ∞ without the former."""
        late, soon = (broke(self.run(task), self.plan.floor) for task in (DISJOINT, SAME))
        return late / max(soon, 1.0) if np.isfinite(soon) else UNKNOWN

    def order(self, signal: str, among: Sequence[str] = ()) -> float:
        """Return the rank correlation over conditions of an early signal with the harm.

        Args:
            among: only these tasks; empty: all except `null`.
        """
        runs = [run for run in self.runs.values() if run.task in (among or {*self.plan.tasks})]
        runs = [run for run in runs if run.task != tasks.NULL]
        early = [np.mean(run.moves[f"{signal}/A"][: self.plan.early]) for run in runs]
        return float(spearmanr(EARLY[signal] * np.array(early), list(map(harm, runs))).statistic)


@dataclass(frozen=True)
class Claim:
    """An explanation, its number in each seed, and the least value for which it holds."""

    name: str
    says: str
    value: Callable[[Seed], float]
    least: float

    def verdict(self, seeds: Sequence[Seed], agree: int) -> str:
        """Return `supported` or `not supported` if enough seeds agree, else `mixed`."""
        values = np.array([self.value(seed) for seed in seeds])
        if (values >= self.least).sum() >= agree:
            return "supported"
        return "not supported" if (values < self.least).sum() >= agree else "mixed"


def claims(plan: Plan) -> list[Claim]:
    """Return every claim, in the order of the page."""
    half = plan.half
    return [
        Claim(
            "circuit: the words need not move",
            "C_disjoint: share of the harm left with embedding and head held",
            lambda s: s.kept_by(WORDS),
            half,
        ),
        Claim(
            "circuit: the blocks must move",
            "C_disjoint, at equal accuracy: share of the loss spared with the blocks held",
            lambda s: 1 - s.left_equally(BLOCKS),
            half,
        ),
        Claim(
            "circuit: the loss lies in the blocks",
            "C_disjoint: share of A's final loss regained with the blocks put back",
            lambda s: s.regained(BLOCKS),
            half,
        ),
        *_unit_claims(plan),
        Claim(
            "circuit: no word in common is needed",
            "harm of C_apart over that of C_disjoint",
            lambda s: s.share(harm(s.run(tasks.APART)), harm(s.run(DISJOINT))),
            half,
        ),
        Claim(
            "circuit: other functions harm less, same words",
            "share by which `first` and `lookup` both harm less than C",
            lambda s: s.less_by(["first", "lookup"], SAME),
            half,
        ),
        Claim(
            "circuit: other functions harm less, disjoint words",
            "share by which `first_disjoint` and `lookup_disjoint` both harm less than C_disjoint",
            lambda s: s.less_by(["first_disjoint", "lookup_disjoint"], DISJOINT),
            half,
        ),
        Claim(
            "words: the same words harm more",
            "harm of C less that of C_disjoint",
            lambda s: harm(s.run(SAME)) - harm(s.run(DISJOINT)),
            plan.worse,
        ),
        Claim(
            "words: the same words break A sooner",
            "break step under C_disjoint over that under C",
            Seed.later,
            plan.later,
        ),
        Claim(
            "head: the loss is competition of the new answers",
            "C_disjoint: share of A's final loss regained among A's own numbers",
            Seed.among_own,
            half,
        ),
        Claim(
            "head: the new words' rows alone do it",
            "C_disjoint, at equal accuracy: share of the loss when only these rows move",
            lambda s: s.left_equally(ALL_BUT_NEW),
            half,
        ),
        *_early_claims(plan),
    ]


def _unit_claims(plan: Plan) -> list[Claim]:
    unit_claims = []
    for task in (DISJOINT, SAME):
        unit_claims += [
            Claim(
                f"circuit: shared units carry the harm, {task}",
                "share by which holding them harms less than holding random ones, task learned",
                lambda s, task=task: s.spared(task),  # type: ignore[misc]
                plan.half,
            ),
            Claim(
                f"circuit: shared units more than others, {task}",
                "harm with random or unshared units held less that with shared ones held",
                lambda s, task=task: s.specific(task),  # type: ignore[misc]
                plan.worse,
            ),
        ]
    return unit_claims


def _early_claims(plan: Plan) -> list[Claim]:
    titles = {
        "predicted": "mean −⟨h_A, Δθ⟩",
        "cosine": "mean −cos(h_A, Δθ)",
        "steep": "steep alignment of the gradient",
        "moved": "steep alignment of the update",
    }
    return [
        Claim(
            f"early: {what} orders the harms",
            f"rank correlation over conditions, first {plan.early} steps",
            lambda s, signal=signal: s.order(signal),  # type: ignore[misc]
            plan.ranked,
        )
        for signal, what in titles.items()
    ]
