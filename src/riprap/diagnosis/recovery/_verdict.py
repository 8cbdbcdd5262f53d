"""Classify a loss: the verdict, and the evidence for it.

A model answers right if it knows the answer and says what it knows. The two are measured
separately, on the lost probes. *Known*: after relearning a few examples, the accuracy among the
answer set, after subtracting each answer's mean score (calibration for answer bias). *Said*: how
often the model's first choice is one of these answers at all, and how much of what it knows it
says.
"""

from __future__ import annotations

from dataclasses import replace
from math import isnan

import numpy as np

from riprap.diagnosis._base import Verdict
from riprap.diagnosis.evidence import NOISE
from riprap.diagnosis.recovery._recovery_evidence import (
    KEPT_ABOVE,
    LOST_BELOW,
    UNSAID_SHARE,
    RecoveryEvidence,
)
from riprap.diagnosis.recovery._retained import nanmax

MIN_SCORE_DROP = 0.1  # smallest drop of the score that gets a verdict
MIN_REFERENCE_KNOWLEDGE = 0.5  # least accuracy of the reference, above chance
TOO_FEW_PROBES = "too few probes to decide"


def classify_loss(evidence: RecoveryEvidence) -> tuple[Verdict, str]:
    """Return the verdict and its reason in one sentence; a pure function of the evidence."""
    e = evidence
    if why := why_no_loss(e):
        return Verdict.INSUFFICIENT, why
    retained = (
        f"on the lost probes ({e.n_lost} of the test probes) {e.retained:.0%} "
        f"[{e.retained_low:.0%}, {e.retained_high:.0%}] of the knowledge remains"
    )
    if e.is_only_damage:
        what = f"{e.damage} explains the whole change of the weights"
        sure = "a training weaker than the noise would not be seen"
        trained = sure if NOISE in e.damage else "nothing was trained"
        return Verdict.DAMAGE, f"{what} ({trained}); {retained}"
    verdict, reason = _classify_trained(e, retained)
    also = f"; weights were changed by {e.damage} too, which may be a part of it"
    return verdict, reason + (also if e.damage else "")


def _classify_trained(e: RecoveryEvidence, retained: str) -> tuple[Verdict, str]:
    """Decide by the knowledge that remains."""
    if e.known_before - e.guess_floor <= MIN_REFERENCE_KNOWLEDGE * (1 - e.guess_floor):
        return Verdict.INSUFFICIENT, (
            f"the reference answers {e.known_before:.0%} of the lost probes correctly, and "
            f"guessing {e.guess_floor:.0%}: too small a difference to measure knowledge"
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
    if shown := e.lost_disposition:
        pieces = " and ".join(f"{name} ({share:.0%})" for name, share in shown.items())
        return Verdict.BOTH, f"{retained}, and {pieces}{swapped}"
    if not e.in_format_before >= MIN_REFERENCE_KNOWLEDGE:
        unmeasured = "this behavior does not measure the form of answers"
        return Verdict.KNOWLEDGE, f"{retained}; {unmeasured}{swapped}"
    form = "the answers keep their form"
    if e.retained >= UNSAID_SHARE:
        form += ", so what remains is weak knowledge, not a lost disposition"
    return Verdict.KNOWLEDGE, f"{retained}, and {form}{swapped}"


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
