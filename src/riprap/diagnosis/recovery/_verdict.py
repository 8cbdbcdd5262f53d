"""Classify a loss: the verdict, and the evidence for it.

A model answers right if it knows the answer and says what it knows. The two are measured
separately, on the lost probes. *Known*: after relearning a few examples, the accuracy among the
answer set, after subtracting each answer's mean score (calibration for answer bias). *Said*: how
often the model's first choice is one of these answers at all, and how much of what it knows it
says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan, nan

import numpy as np

from riprap.diagnosis._base import Verdict
from riprap.diagnosis.recovery._answer_choices import (
    AnswerTable,
    chance_accuracy,
    chooses_correctly,
    relabeled_accuracy,
)
from riprap.diagnosis.recovery._retained import LostProbeWeights, RetainedKnowledge, nanmax

MIN_SCORE_DROP = 0.1  # smallest drop of the score that gets a verdict
MIN_REFERENCE_KNOWLEDGE = 0.5  # least accuracy of the reference, above chance
LOST_BELOW, KEPT_ABOVE = 0.65, 0.75  # retained share: knowledge is lost below, kept above
UNSAID_SHARE = 0.2  # share of the lost probes on which knowledge, or the answer form, is not said
ONE_ANSWER_SHARE = 0.9  # share of the probes with the same answer that counts as a collapse
TOO_FEW_PROBES = "too few probes to decide"
FORMAT_SHARE = 0.5  # of the format loss: restored by examples, or one token


@dataclass(frozen=True)
class RecoveryEvidence:
    """Numbers behind a verdict, on the test probes; NaN where one was not measured.

    Knowledge and answer form are measured on the *lost* probes (passed by the reference, failed by
    the model), or on all test probes if none was lost. With a contrast, a side without losses is
    included as a whole.

    Attributes:
        score_before, score_now: score of the reference and of the model, on all test probes.
        n_lost: number of lost probes.
        in_format_before, in_format_now, in_format_after_examples: share of first choices that are
            answers: of the reference, of the model, and of the model after its own examples.
        modal_off_format_rate: how often off-format first choices are one and the same token; see
            `AnswerTable.modal_off_format_rate`.
        modal_answer_before, modal_answer_now: share of all test probes with the most frequent
            answer.
        known_before: accuracy of the reference, after the same examples (if nothing was relearned:
            without).
        known_now: accuracy of the model without examples.
        known_after_examples, known_after_unrelated: accuracy of the model after its own examples,
            and after unrelated ones.
        known_paraphrased: share of the paraphrased probes that the model passes, without examples.
        guess_rate: accuracy without knowledge: that of the naive model after the examples, but at
            least the chance level; NaN if neither is known.
        retained, retained_low, retained_high: retained share of the knowledge with its 95 %
            interval (Jeffreys; Brown, Cai and DasGupta, Statistical Science 16, 2001).
        retained_relabeled: retained share if answers may have been swapped by a rule; see
            `relabeled_accuracy`.
        recovered_by_examples, recovered_by_unrelated: share of the lost score that returned.
        naive_model_score: score of the naive model after the examples, as a share of the
            reference's score.
        has_answer_choices: whether the probes have a set of answers, so that knowledge and answer
            form can be separated.
        probes_needed: how many times as many probes decide whether knowledge was kept or lost, if
            the shares stay; NaN if no number does.
        insufficient: why the margins do not measure the behavior; empty if they do.
    """

    score_before: float
    score_now: float
    n_lost: int
    in_format_before: float
    in_format_now: float
    in_format_after_examples: float
    modal_off_format_rate: float
    modal_answer_before: float
    modal_answer_now: float
    known_before: float
    known_now: float
    known_after_examples: float
    known_after_unrelated: float
    known_paraphrased: float
    guess_rate: float
    retained: float
    retained_low: float
    retained_high: float
    retained_relabeled: float
    recovered_by_examples: float
    recovered_by_unrelated: float
    naive_model_score: float
    has_answer_choices: bool
    insufficient: str = ""
    probes_needed: float = nan

    @classmethod
    def from_tables(
        cls,
        now: AnswerTable,
        before: AnswerTable,
        tables: Mapping[str, Sequence[AnswerTable]],
        seed: int,
        paraphrased: tuple[AnswerTable, AnswerTable] | None = None,
    ) -> RecoveryEvidence:
        """Compute the evidence from tables of the test probes, of the model and of the reference.

        Args:
            tables: after the largest count of examples, by source: `reference`, `own`,
                `unrelated` and `naive_model`, as far as they were run.
        """
        lost = (before.margins > 0) & ~(now.margins > 0)
        probes = LostProbeWeights(now, lost)
        known_before = probes.share(chooses_correctly(tables.get("reference", [before])))
        naive = tables.get("naive_model")
        naive_accuracy = nan if naive is None else probes.share(chooses_correctly(naive))

        def retained(
            known: float, before: float, after: Sequence[AnswerTable]
        ) -> RetainedKnowledge:
            guess_rate = nanmax(probes.share(chance_accuracy(after)), naive_accuracy)
            return RetainedKnowledge(known, before, guess_rate, probes.n_effective)

        by_source = {
            source: retained(probes.share(chooses_correctly(after)), known_before, after)
            for source, after in {**tables, "now": [now]}.items()
        }
        candidates = [by_source[s] for s in ("own", "unrelated", "now") if s in by_source]
        known_paraphrased = nan
        if paraphrased is not None:
            known_paraphrased, base = (probes.share(table.margins > 0) for table in paraphrased)
            candidates.append(retained(known_paraphrased, base, [paraphrased[0]]))
        best = max(candidates, key=lambda candidate: candidate.fraction)
        low, high = best.interval(seed)
        relabeled_now, relabeled_before = (
            probes.share(relabeled_accuracy(table)) for table in (now, before)
        )
        drop = before.score - now.score

        def known(source: str) -> float:
            return by_source[source].known if source in tables else nan

        def mean_score(after: Sequence[AnswerTable]) -> float:
            return _mean([table.score for table in after])

        def recovered(source: str) -> float:
            if source not in tables or drop <= 0:
                return nan
            return (mean_score(tables[source]) - now.score) / drop

        lost_now = now.select(probes.rows)
        own = [table.select(probes.rows) for table in tables.get("own", ())]
        return cls(
            score_before=before.score,
            score_now=now.score,
            n_lost=int(lost.sum()),
            in_format_before=before.select(probes.rows).in_format_rate,
            in_format_now=lost_now.in_format_rate,
            in_format_after_examples=_mean([table.in_format_rate for table in own]),
            modal_off_format_rate=lost_now.modal_off_format_rate,
            modal_answer_before=before.modal_answer_rate,
            modal_answer_now=now.modal_answer_rate,
            known_before=known_before,
            known_now=by_source["now"].known,
            known_after_examples=known("own"),
            known_after_unrelated=known("unrelated"),
            known_paraphrased=known_paraphrased,
            guess_rate=best.guess_rate,
            retained=best.fraction,
            retained_low=low,
            retained_high=high,
            retained_relabeled=retained(relabeled_now, relabeled_before, [now]).fraction,
            recovered_by_examples=recovered("own"),
            recovered_by_unrelated=recovered("unrelated"),
            naive_model_score=nan if naive is None else mean_score(naive) / max(before.score, 1e-9),
            has_answer_choices=now.answer_scores is not None,
            insufficient=now.insufficient or before.insufficient or _not_finite(now, before),
            probes_needed=best.times_needed(KEPT_ABOVE, LOST_BELOW, seed),
        )

    @property
    def format_loss(self) -> float:
        """Drop of the share of in-format first choices on the lost probes; 0 if unknown."""
        return float(np.nan_to_num(self.in_format_before - self.in_format_now))

    @property
    def is_format_change(self) -> bool:
        """True if off-format first choices are another form, and not other answers.

        Answers that are right for no probe are diverse, and examples do not remove them. Another
        form usually begins with one token, or disappears after the examples.
        """
        restored = self.in_format_after_examples - self.in_format_now
        has_recovered = restored >= FORMAT_SHARE * self.format_loss
        return has_recovered or self.modal_off_format_rate >= FORMAT_SHARE

    @property
    def collapsed_to_one_answer(self) -> bool:
        """True if almost all probes get the same answer, and did not before."""
        increase = self.modal_answer_now - self.modal_answer_before
        return self.modal_answer_now >= ONE_ANSWER_SHARE and increase >= UNSAID_SHARE

    @property
    def guess_floor(self) -> float:
        """Guess rate; 0 if unknown."""
        return 0.0 if isnan(self.guess_rate) else self.guess_rate

    @property
    def still_known(self) -> float:
        """Share of the lost probes whose answer is known, not guessed."""
        above_guessing = max(self.known_before - self.guess_floor, 0.0)
        return self.retained * above_guessing / max(1 - self.guess_floor, 1e-9)

    @property
    def known_but_unsaid(self) -> float:
        """Share of the lost probes whose answer is known but not said, or that get no answer.

        The same answer for all probes counts as no answer.
        """
        off_format = self.format_loss if self.is_format_change else 0.0
        collapsed = self.modal_answer_now if self.collapsed_to_one_answer else 0.0
        return max(self.still_known, off_format, collapsed)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else nan


def _not_finite(now: AnswerTable, before: AnswerTable) -> str:
    """Reason if margins are not finite; empty if all are."""
    for whose, table in (("model", now), ("reference", before)):
        if count := int((~np.isfinite(table.margins)).sum()):
            return f"the {whose} has non-finite margins on {count} of the test probes"
    return ""


def classify_loss(evidence: RecoveryEvidence) -> tuple[Verdict, str]:
    """Return the verdict and its reason in one sentence; a pure function of the evidence."""
    e = evidence
    if why := _why_insufficient(e):
        return Verdict.INSUFFICIENT, why
    retained = (
        f"on the lost probes ({e.n_lost} of the test probes) {e.retained:.0%} "
        f"[{e.retained_low:.0%}, {e.retained_high:.0%}] of the knowledge remains"
    )
    if e.retained >= KEPT_ABOVE and e.retained_low > LOST_BELOW:
        without_teaching = nanmax(0.0, e.known_after_unrelated, e.known_paraphrased)
        if isnan(e.guess_rate) and not without_teaching >= KEPT_ABOVE * e.known_before:
            also = ", or examples of another task" if isnan(e.known_after_unrelated) else ""
            return Verdict.INSUFFICIENT, (
                "the examples restore the behavior, but they may have taught it anew; compare with "
                f"a naive model (one that never had it), the opposite behavior{also}"
            )
        after_examples = max(e.known_after_examples, np.nan_to_num(e.known_after_unrelated))
        how = "; it does if asked in another form" if e.known_paraphrased > after_examples else ""
        return Verdict.ALIGNMENT, f"{retained}, and the model does not say it{how}"
    if e.retained <= LOST_BELOW and e.retained_high < KEPT_ABOVE:
        return _classify_knowledge_loss(e, retained)
    if isnan(e.probes_needed):
        return Verdict.INSUFFICIENT, (
            f"{retained}: between kept (from {KEPT_ABOVE:.0%}) and lost (up to {LOST_BELOW:.0%}), "
            "where more probes would not decide"
        )
    return Verdict.INSUFFICIENT, (
        f"{retained}: {TOO_FEW_PROBES}; about {e.probes_needed:.1f} times as many would do"
    )


def _classify_knowledge_loss(e: RecoveryEvidence, retained: str) -> tuple[Verdict, str]:
    """Little returned: decide between knowledge loss, both, and insufficient evidence."""
    if not e.has_answer_choices:
        return Verdict.INSUFFICIENT, (
            f"{retained}, but without a set of answers this may be the knowledge or only the form: "
            "use probes with a set of answers (next token, multiple choice), or the opposite "
            "behavior as a contrast"
        )
    if e.format_loss >= UNSAID_SHARE and not e.is_format_change:
        return Verdict.INSUFFICIENT, (
            f"{retained}, and {e.format_loss:.0%} of the first choices are no answer of any probe "
            "or example: another form, or other answers? Use more probes, so that all answers are "
            "among theirs"
        )
    swapped = (
        f"; but the right answer follows from the given one on {e.retained_relabeled:.0%}, so "
        "labels may have been swapped, and not facts"
        if e.retained_relabeled >= KEPT_ABOVE
        else ""
    )
    if e.known_but_unsaid >= UNSAID_SHARE:
        unsaid = f"known answers, or answers at all, are not said on {e.known_but_unsaid:.0%}"
        return Verdict.BOTH, f"{retained}, and {unsaid}{swapped}"
    if not e.in_format_before >= MIN_REFERENCE_KNOWLEDGE:
        unmeasured = "this behavior does not measure the form of answers"
        return Verdict.KNOWLEDGE, f"{retained}; {unmeasured}{swapped}"
    return Verdict.KNOWLEDGE, f"{retained}, and the model says what it knows{swapped}"


def settled_verdict(evidence: RecoveryEvidence) -> Verdict | None:
    """Return the verdict if it is the same everywhere in the interval of `retained`; else None.

    Another draw then changes it only if it moves the retained share out of the 95 % interval. The
    verdict changes at three shares at most, so both ends and the middle tell.
    """
    e = evidence
    shares = (e.retained_low, e.retained, e.retained_high)
    verdicts = {
        classify_loss(replace(e, retained=s, retained_low=s, retained_high=s))[0] for s in shares
    }
    return classify_loss(e)[0] if len(verdicts) == 1 else None


def why_no_loss(e: RecoveryEvidence) -> str:
    """Return why there is no loss to explain, which needs no relearning; empty if there is one."""
    if e.insufficient:
        return e.insufficient
    if e.score_before < MIN_SCORE_DROP:
        return (
            f"the reference itself scores {e.score_before:.2f} and has nothing to lose: is it the "
            "model before training?"
        )
    if e.score_before - e.score_now < MIN_SCORE_DROP:
        return f"no loss to explain: the score is {e.score_now:.2f} and was {e.score_before:.2f}"
    return ""


def _why_insufficient(e: RecoveryEvidence) -> str:
    """Reason why no other verdict is possible; empty if one is."""
    if why := why_no_loss(e):
        return why
    if e.known_before - e.guess_floor <= MIN_REFERENCE_KNOWLEDGE * (1 - e.guess_floor):
        return (
            f"the reference answers {e.known_before:.0%} of the lost probes correctly, and "
            f"guessing {e.guess_floor:.0%}: too small a difference to measure knowledge"
        )
    return ""
