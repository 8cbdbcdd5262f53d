"""Evidence of recovery: the numbers behind a verdict, and what shows a lost disposition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan

import numpy as np
from scipy import stats

from riprap.diagnosis.evidence import WeightDamage
from riprap.diagnosis.recovery._answer_choices import (
    AnswerTable,
    chance_accuracy,
    chooses_correctly,
    relabeled_accuracy,
)
from riprap.diagnosis.recovery._retained import LostProbeWeights, RetainedKnowledge, nanmax

LOST_BELOW, KEPT_ABOVE = 0.65, 0.75  # retained share: knowledge is lost below, kept above
UNSAID_SHARE = 0.2  # share of the lost probes on which a disposition is shown to be lost
ONE_ANSWER_SHARE = 0.9  # share of the probes with the same answer that counts as a collapse
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
        damage: kinds of weight damage (`diagnosis.evidence.weight_damage`); empty if there is none.
        is_only_damage: whether the damage is all that changed the weights.
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
    damage: str = ""
    is_only_damage: bool = False

    @classmethod
    def from_tables(
        cls,
        now: AnswerTable,
        before: AnswerTable,
        tables: Mapping[str, Sequence[AnswerTable]],
        seed: int,
        paraphrased: tuple[AnswerTable, AnswerTable] | None = None,
        damage: WeightDamage | None = None,
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
            damage="" if damage is None else damage.text,
            is_only_damage=damage is not None and damage.is_whole,
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
    def lost_disposition(self) -> dict[str, float]:
        """Evidence that a disposition was lost: share of the lost probes, by what shows it.

        Each piece is independent of how much knowledge is left:

        - the first choices have another form;
        - almost all probes get the same answer;
        - the answer is given to a paraphrase, without any examples.

        Answers that return after unrelated examples are none: any training undoes a part of a light
        overwriting.
        """
        pieces = {
            "the answers have another form": self.format_loss if self.is_format_change else 0.0,
            "all get the same answer": self.modal_answer_now * self.collapsed_to_one_answer,
            "the answer is given to a paraphrase": self._above_guessing(self.known_paraphrased),
        }
        return {name: share for name, share in pieces.items() if share >= UNSAID_SHARE}

    def _above_guessing(self, share: float) -> float:
        """Return a share of the lost probes; 0 if guesses may explain it, by its 95 % interval."""
        if not share > 0:
            return 0.0
        right = min(share, 1.0) * self.n_lost
        low = stats.beta.ppf(0.025, right + 0.5, self.n_lost - right + 0.5)
        return share if low > self.guess_floor else 0.0


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else nan


def _not_finite(now: AnswerTable, before: AnswerTable) -> str:
    """Reason if margins are not finite; empty if all are."""
    for whose, table in (("model", now), ("reference", before)):
        if count := int((~np.isfinite(table.margins)).sum()):
            return f"the {whose} has non-finite margins on {count} of the test probes"
    return ""
