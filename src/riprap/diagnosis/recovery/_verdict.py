"""Cannot, or will not: the verdict on a lost behaviour, and the numbers that it rests on.

What a model does = what it knows + whether it says so. The two are measured apart, on the probes
that were lost. *Known*: after a reminder of a few examples, how often would it choose the right
answer among those that are at home there, its liking for single answers taken off? *Said*: how
often does it choose one of these answers at all, and how much of what is known is said?
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from riprap.diagnosis._base import Verdict
from riprap.diagnosis.recovery._answer_choices import Answers, chance, exchanged, known
from riprap.diagnosis.recovery._retained import Left, Share, most

LOST = 0.1  # least fall of the score that is worth a verdict
SHOWN = 0.5  # least that the reference must know above chance
GONE, KEPT = 0.65, 0.75  # share of the knowledge that is left: lost below, kept above
UNSAID = 0.2  # share of the lost probes on which what is known, or the form of answers, is not said
ALL = 0.9  # share of the probes with one answer that is one answer for all
HABIT = 0.5  # of the lost form of answers, brought back by a reminder, or given to one token


@dataclass(frozen=True)
class Evidence:
    """Numbers behind a verdict, on the probes that measure; NaN where one was not run.

    What is known and in which form is answered is told of the *lost* probes, which the reference
    passed and the model does not: on the others there is nothing to explain.

    Attributes:
        score_before, score_now: of the reference and of the model as it is, on all probes.
        lost: how many probes were lost; where none was, what follows is told of all. With a
            contrast, the whole of a side that lost none is there too, to be told apart from.
        kind_before, kind_now, kind_own: share of first choices that are answers; `kind_own` after
            a reminder of own examples.
        habit: share of the first choices that are no answers which is one and the same token.
        one_before, one_now: the largest share of all probes that get one and the same answer.
        known_before: what the reference knows, after the same reminder.
        known_now: what the model knows without a reminder.
        known_own, known_irrelevant: after a reminder of own or of irrelevant examples.
        known_restated: without a reminder, where the same is asked in another form.
        guessed: what is chosen right without knowledge: by the control after its examples, and at
            least by whoever chooses the same answers as often, but blindly; NaN where neither is
            known.
        retained, low, high: share of the knowledge that is left, with its 95 % interval (Jeffreys;
            Brown, Cai and DasGupta, Statistical Science 16, 2001).
        exchanged: share of the knowledge that is left if answers may have been exchanged for one
            another by a rule; see `answers.exchanged`.
        regained_own, regained_irrelevant: share of the lost score that came back.
        regained_control: score of the control after its examples, as a share of the reference's.
        answers: whether probes offer answers to choose among, so that knowledge can be told from
            the form of answers at all.
        insufficient: why the margins do not measure the behaviour; empty where they do.
    """

    score_before: float
    score_now: float
    lost: int
    kind_before: float
    kind_now: float
    kind_own: float
    habit: float
    one_before: float
    one_now: float
    known_before: float
    known_now: float
    known_own: float
    known_irrelevant: float
    known_restated: float
    guessed: float
    retained: float
    low: float
    high: float
    exchanged: float
    regained_own: float
    regained_irrelevant: float
    regained_control: float
    answers: bool
    insufficient: str = ""

    @classmethod
    def of(
        cls,
        now: Answers,
        before: Answers,
        looks: Mapping[str, Sequence[Answers]],
        seed: int,
        restated: tuple[Answers, Answers] | None = None,
    ) -> Evidence:
        """From looks at the probes that measure.

        Args:
            looks: after the largest count of examples, by source: reference and own, and
                irrelevant and control where they were run.
            restated: of the model as it is and of the reference, the same asked in another form.
        """
        lost = (before.margins > 0) & ~(now.margins > 0)
        there = Share(now, lost)
        control, its = looks.get("control"), there.of(known(looks["reference"]))
        taught = math.nan if control is None else there.of(known(control))

        def left(own: Sequence[Answers]) -> Left:
            return Left(there.of(known(own)), its, most(there.of(chance(own)), taught), there.count)

        sources = {name: left(found) for name, found in {**looks, "now": [now]}.items()}
        asked = math.nan
        candidates = [sources[one] for one in ("own", "irrelevant", "now") if one in sources]
        if restated is not None:
            asked, then = (there.of(one.margins > 0) for one in restated)
            least = most(there.of(chance([restated[0]])), taught)
            candidates.append(Left(asked, then, least, there.count))
        best = max(candidates, key=lambda one: one.share)
        low, high = best.interval(seed)
        renamed = Left(
            there.of(exchanged(now)),
            there.of(exchanged(before)),
            sources["now"].guessed,
            there.count,
        )
        fallen = before.score - now.score

        def regained(name: str) -> float:
            if name not in looks or fallen <= 0:
                return math.nan
            return (float(np.mean([one.score for one in looks[name]])) - now.score) / fallen

        return cls(
            score_before=before.score,
            score_now=now.score,
            lost=int(lost.sum()),
            kind_before=before.part(there.rows).kind,
            kind_now=now.part(there.rows).kind,
            kind_own=float(np.mean([one.part(there.rows).kind for one in looks["own"]])),
            habit=now.part(there.rows).habit,
            one_before=before.commonest,
            one_now=now.commonest,
            known_before=its,
            known_now=sources["now"].known,
            known_own=sources["own"].known,
            known_irrelevant=sources["irrelevant"].known if "irrelevant" in looks else math.nan,
            known_restated=asked,
            guessed=best.guessed,
            retained=best.share,
            low=low,
            high=high,
            exchanged=renamed.share,
            regained_own=regained("own"),
            regained_irrelevant=regained("irrelevant"),
            regained_control=math.nan
            if control is None
            else float(np.mean([one.score for one in control])) / max(before.score, 1e-9),
            answers=now.fit is not None,
            insufficient=now.insufficient or before.insufficient or _not_finite(now, before),
        )

    @property
    def silent(self) -> float:
        """Share of the lost probes that lost the form of their answers, if it is the form."""
        return float(np.nan_to_num(self.kind_before - self.kind_now))

    @property
    def form(self) -> bool:
        """Whether first choices that are no answers are another form, and not other answers.

        Answers that happen to be right for no probe are many, and a reminder does not take them
        away; another form mostly begins with one token, or goes with the reminder.
        """
        back = self.kind_own - self.kind_now >= HABIT * self.silent
        return back or self.habit >= HABIT

    @property
    def one_for_all(self) -> bool:
        """Whether all probes get one and the same answer, and did not before."""
        return self.one_now >= ALL and self.one_now - self.one_before >= UNSAID

    @property
    def least(self) -> float:
        """What is chosen right without knowledge, at least: 0 where that is not known."""
        return 0.0 if math.isnan(self.guessed) else self.guessed

    @property
    def remains(self) -> float:
        """Share of the lost probes on which the answer is known, and no lucky guess."""
        above = max(self.known_before - self.least, 0.0)
        return self.retained * above / max(1 - self.least, 1e-9)

    @property
    def unsaid(self) -> float:
        """Share of the lost probes whose answer is known and not said, or that get no answer.

        One answer for all probes is none.
        """
        silent = self.silent if self.form else 0.0
        return max(self.remains, silent, self.one_now if self.one_for_all else 0.0)


def _not_finite(now: Answers, before: Answers) -> str:
    """Why there is no verdict where margins are no numbers; empty where they are."""
    for whose, one in (("model", now), ("reference", before)):
        if strange := int((~np.isfinite(one.margins)).sum()):
            return f"the {whose} gives no finite margin on {strange} of the probes that measure"
    return ""


def judge(e: Evidence) -> tuple[Verdict, str]:
    """The verdict, and its reason in a sentence; a pure function of the evidence."""
    if why := _too_little(e):
        return Verdict.INSUFFICIENT, why
    left = (
        f"on the lost probes ({e.lost} of those that measure) {e.retained:.0%} "
        f"[{e.low:.0%}, {e.high:.0%}] of the knowledge is left"
    )
    if e.retained >= KEPT and e.low > GONE:
        shown = max(np.nan_to_num(e.known_irrelevant), np.nan_to_num(e.known_restated))
        if math.isnan(e.guessed) and not shown >= KEPT * e.known_before:
            more = ", or irrelevant examples" if math.isnan(e.known_irrelevant) else ""
            return Verdict.INSUFFICIENT, (
                "the examples bring the behaviour back, and may have taught it anew: give a model "
                f"that never had it as control=, or its other side as contrast={more}"
            )
        elsewhere = e.known_restated > max(e.known_own, np.nan_to_num(e.known_irrelevant))
        how = "; asked in another form it does" if elsewhere else ""
        return Verdict.ALIGNMENT, f"{left}, and the model does not say it{how}"
    if e.retained <= GONE and e.high < KEPT:
        return _lost(e, left)
    return Verdict.INSUFFICIENT, f"{left}: too near to both, or too few probes to tell"


def _lost(e: Evidence, left: str) -> tuple[Verdict, str]:
    """Little came back: is it the knowledge alone, and is that certain?"""
    if not e.answers:
        return Verdict.INSUFFICIENT, (
            f"{left}, and without answers to choose among it cannot be told whether that is the "
            "knowledge or only the form: probe it by next_token or choice, or give contrast="
        )
    if e.silent >= UNSAID and not e.form:
        return Verdict.INSUFFICIENT, (
            f"{left}, and {e.silent:.0%} of the first choices are no answer of any probe or "
            "example: another form, or other answers? Give more probes, so that all answers are "
            "among theirs"
        )
    names = (
        f"; but the right answer follows from the one that is given on {e.exchanged:.0%}, so that "
        "it may be names that were exchanged, and no facts"
        if e.exchanged >= KEPT
        else ""
    )
    if e.unsaid >= UNSAID:
        said = f"what is known, or any answer at all, is not said on {e.unsaid:.0%}"
        return Verdict.BOTH, f"{left}, and {said}{names}"
    if not e.kind_before >= SHOWN:
        said = "the form of answers is not measured by this behaviour"
        return Verdict.KNOWLEDGE, f"{left}; {said}{names}"
    return Verdict.KNOWLEDGE, f"{left}, and the model says what it knows{names}"


def _too_little(e: Evidence) -> str:
    """Why no verdict can be given; empty where one can."""
    if e.insufficient:
        return e.insufficient
    if e.score_before < LOST:
        return (
            f"the reference itself scores {e.score_before:.2f}, and has nothing of this to lose: "
            "is it the model from which the other was made?"
        )
    if e.score_before - e.score_now < LOST:
        return f"nothing to explain: the score is {e.score_now:.2f}, and was {e.score_before:.2f}"
    if e.known_before - e.least <= SHOWN * (1 - e.least):
        return (
            f"the reference chooses right on {e.known_before:.0%} of the lost probes, guessing on "
            f"{e.least:.0%}: too little to tell knowledge by"
        )
    return ""
