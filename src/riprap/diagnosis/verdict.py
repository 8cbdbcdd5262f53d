"""Cannot, or will not: the verdict on a lost behaviour, and the numbers that it rests on.

What a model does = what it knows + whether it says so. The two are measured apart. *Known*: after a
reminder of a few examples, how often would it choose the right answer among those that are at home
on the probes, its liking for single answers taken off? *Said*: how often does it choose one of
these answers at all, and how much of what is known is scored?
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from riprap.diagnosis.answers import Answers, Array, chance, known, share
from riprap.diagnosis.base import Verdict

LOST = 0.1  # least fall of the score that is worth a verdict
SHOWN = 0.5  # least that the reference must know above chance
GONE, KEPT = 0.65, 0.75  # share of the knowledge that is left: lost below, kept above
UNSAID = 0.2  # share of the probes on which what is known, or the form of answers, is not said
HABIT = 0.5  # of the lost form of answers, brought back by a reminder, or given to one token
RESAMPLES = 2000


@dataclass(frozen=True)
class Evidence:
    """Numbers behind a verdict, each on the probes that measure; NaN where one was not run.

    Attributes:
        score_before, score_now: of the reference and of the model as it is.
        kind_before, kind_now, kind_own: share of first choices that are among the probes' answers;
            `kind_own` after a reminder of own examples.
        habit: share of the first choices that are no such answers which is one and the same token.
        known_before: what the reference knows, after the same reminder.
        known_now: what the model knows without a reminder.
        known_own, known_irrelevant: after a reminder of own or of irrelevant examples.
        guessed: what examples give to a model without the knowledge: that of the control, and at
            least chance; NaN where neither is known.
        retained, low, high: share of the knowledge that is left, with its 95 % interval
            (bootstrap over probes).
        regained_own, regained_irrelevant: share of the lost score that came back.
        regained_control: score of the control after its examples, as a share of the reference's.
        answers: whether probes offer answers to choose among, so that knowledge can be told from
            the form of answers at all.
        insufficient: why the margins do not measure the behaviour; empty where they do.
    """

    score_before: float
    score_now: float
    kind_before: float
    kind_now: float
    kind_own: float
    habit: float
    known_before: float
    known_now: float
    known_own: float
    known_irrelevant: float
    guessed: float
    retained: float
    low: float
    high: float
    regained_own: float
    regained_irrelevant: float
    regained_control: float
    answers: bool
    insufficient: str = ""

    @classmethod
    def of(
        cls, now: Answers, before: Answers, looks: Mapping[str, Sequence[Answers]], seed: int
    ) -> Evidence:
        """From looks at the probes that measure.

        Args:
            looks: after the largest count of examples, by source: reference and own, and
                irrelevant and control where they were run.
        """
        sources = {name: known(found) for name, found in looks.items()}
        weights = now.weights
        means = {name: share(found, weights) for name, found in sources.items()}
        floors = [value for value in (chance(now), means.get("control")) if value is not None]
        guessed = max((value for value in floors if not math.isnan(value)), default=math.nan)
        best = max(("own", "irrelevant"), key=lambda name: means.get(name, -1.0))
        interval = _interval(sources[best], sources["reference"], weights, guessed, seed)
        lost = before.score - now.score

        def regained(name: str) -> float:
            if name not in looks or lost <= 0:
                return math.nan
            return (float(np.mean([one.score for one in looks[name]])) - now.score) / lost

        control = looks.get("control")
        return cls(
            score_before=before.score,
            score_now=now.score,
            kind_before=before.kind,
            kind_now=now.kind,
            kind_own=float(np.mean([one.kind for one in looks["own"]])),
            habit=now.habit,
            known_before=means["reference"],
            known_now=share(known([now]), weights),
            known_own=means["own"],
            known_irrelevant=means.get("irrelevant", math.nan),
            guessed=float(guessed),
            retained=interval[0],
            low=interval[1],
            high=interval[2],
            regained_own=regained("own"),
            regained_irrelevant=regained("irrelevant"),
            regained_control=math.nan
            if control is None
            else float(np.mean([one.score for one in control])) / max(before.score, 1e-9),
            answers=now.fit is not None,
            insufficient=now.insufficient or before.insufficient,
        )

    @property
    def silent(self) -> float:
        """Share of the probes that lost the form of their answers, if it is the form."""
        return float(np.nan_to_num(self.kind_before - self.kind_now))

    @property
    def form(self) -> bool:
        """Whether first choices outside of the probes' answers are another form, and no answers.

        Answers that happen to be right for no probe are many, and a reminder does not take them
        away; another form mostly begins with one token, or goes with the reminder.
        """
        back = self.kind_own - self.kind_now >= HABIT * self.silent
        return back or self.habit >= HABIT

    @property
    def remains(self) -> float:
        """Share of the probes on which the answer is known, and no lucky guess."""
        least = float(np.nan_to_num(self.guessed))
        return self.retained * max(self.known_before - least, 0.0) / max(1 - least, 1e-9)

    @property
    def unsaid(self) -> float:
        """Share of the probes on which the answer is known and not said, or no answer at all is."""
        return max(self.remains - self.score_now, self.silent if self.form else 0.0)


def _interval(
    found: Array, reference: Array, weights: Array, guessed: float, seed: int
) -> tuple[float, float, float]:
    """(known − guessed) ÷ (known of the reference − guessed), with its 95 % interval.

    Where it is not known what guessing gives, as if it gave nothing: never too little.
    """

    least = 0.0 if math.isnan(guessed) else guessed

    def left(mine: Array, its: Array) -> Array:
        return np.clip((mine - least) / np.maximum(its - least, 1e-9), 0.0, 1.0)

    rng = np.random.default_rng(seed)
    drawn = rng.choice(len(found), (RESAMPLES, len(found)), p=weights)
    resampled = left(found[drawn].mean(1), reference[drawn].mean(1))
    low, high = np.quantile(resampled, [0.025, 0.975])
    whole = left(np.array([found @ weights]), np.array([reference @ weights]))
    return float(whole[0]), float(low), float(high)


def judge(e: Evidence) -> tuple[Verdict, str]:
    """The verdict, and its reason in a sentence; a pure function of the evidence."""
    if why := _too_little(e):
        return Verdict.INSUFFICIENT, why
    left = f"{e.retained:.0%} [{e.low:.0%}, {e.high:.0%}] of the knowledge is left"
    if e.retained >= KEPT and e.low > GONE:
        if math.isnan(e.guessed) and not e.known_irrelevant >= KEPT * e.known_before:
            return Verdict.INSUFFICIENT, (
                "the examples bring the behaviour back, and may have taught it anew: give a model "
                "that never had it as control=, its other side as contrast=, or irrelevant examples"
            )
        return Verdict.ALIGNMENT, f"{left}, and the model does not say it"
    if e.retained <= GONE and e.high < KEPT:
        return _lost(e, left)
    return Verdict.INSUFFICIENT, f"{left}: too near to both, or too few probes to tell"


def _lost(e: Evidence, left: str) -> tuple[Verdict, str]:
    """Little came back: is it the knowledge alone, and is that certain?"""
    if not e.answers:
        return Verdict.INSUFFICIENT, (
            "little comes back, and without answers to choose among it cannot be told whether that "
            "is the knowledge or only the form: probe it by next_token or choice, or give contrast="
        )
    if e.silent >= UNSAID and not e.form:
        return Verdict.INSUFFICIENT, (
            f"{left}, and {e.silent:.0%} of the first choices are no answer of any probe: another "
            "form, or other answers? Give more probes, so that all answers are among theirs"
        )
    if e.unsaid >= UNSAID:
        return Verdict.BOTH, f"{left}, and {e.unsaid:.0%} of the probes get no such answer"
    if math.isnan(e.kind_now):
        return Verdict.KNOWLEDGE, f"{left}; the form of answers is not measured by this behaviour"
    return Verdict.KNOWLEDGE, f"{left}, and the model says what it knows"


def _too_little(e: Evidence) -> str:
    """Why no verdict can be given; empty where one can."""
    if e.insufficient:
        return e.insufficient
    if e.score_before - e.score_now < LOST:
        return f"nothing to explain: the score is {e.score_now:.2f}, and was {e.score_before:.2f}"
    least = 0.0 if math.isnan(e.guessed) else e.guessed
    if e.known_before - least <= SHOWN * (1 - least):
        return (
            f"the reference chooses right on {e.known_before:.0%} of the probes and guessing on "
            f"{least:.0%}: too little to tell knowledge by"
        )
    return ""
