"""One checkpoint with a known loss, constructed and diagnosed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from experiments.harness.cache import cached
from experiments.loss_classification.checkpoints import CASES, Case, Checkpoint, make
from experiments.loss_classification.plan import Plan
from riprap.diagnosis import recover
from riprap.diagnosis.evidence import linear_decodability, linear_path
from riprap.diagnosis.recovery import RecoveryEvidence

STORED_NAMES = {  # names in the stored runs, by field of RecoveryEvidence or source of a point
    "n_lost": "lost",
    "in_format_before": "kind_before",
    "in_format_now": "kind_now",
    "in_format_after_examples": "kind_own",
    "modal_off_format_rate": "habit",
    "modal_answer_before": "one_before",
    "modal_answer_now": "one_now",
    "known_after_examples": "known_own",
    "known_after_unrelated": "known_irrelevant",
    "known_paraphrased": "known_restated",
    "guess_rate": "guessed",
    "retained_low": "low",
    "retained_high": "high",
    "retained_relabeled": "exchanged",
    "recovered_by_examples": "regained_own",
    "recovered_by_unrelated": "regained_irrelevant",
    "naive_model_score": "regained_control",
    "has_answer_choices": "answers",
    "unrelated": "irrelevant",
    "naive_model": "control",
}


@dataclass(frozen=True)
class ClassifiedCheckpoint:
    """The diagnosis of one checkpoint.

    Attributes:
        truth, left: loss and retained share of knowledge by construction.
        knows: retained share as tests of the truth measure it.
        verdict: of `diagnosis.recover`, without a naive model, as most users call it.
        evidence: numbers behind it, and those of the other diagnoses.
        curve: mean score by source and count.
    """

    world: str
    case: str
    seed: int
    truth: str
    left: float
    knows: float
    verdict: str
    evidence: dict[str, float | None]
    curve: dict[str, float]


@cached("loss_classification/{plan.terms}-{name}-{seed}.json")
def simulate(name: str, seed: int, plan: Plan) -> ClassifiedCheckpoint:
    """Construct a checkpoint and diagnose it."""
    case = next(one for one in CASES if one.label == name)
    return _diagnose(case, seed, make(case, seed), plan)


def _diagnose(case: Case, seed: int, checkpoint: Checkpoint, plan: Plan) -> ClassifiedCheckpoint:
    given: dict[str, Any] = {
        "reference": checkpoint.reference,
        "unrelated_examples": checkpoint.irrelevant,
        "draws": plan.draws,
        "full": True,
    }
    recovery = recover(
        checkpoint.model, checkpoint.behavior, checkpoint.examples, shot_counts=plan.counts, **given
    )
    return ClassifiedCheckpoint(
        case.world,
        case.name,
        seed,
        case.truth,
        case.left,
        checkpoint.knows,
        str(recovery.verdict),
        {STORED_NAMES.get(name, name): value for name, value in asdict(recovery.evidence).items()}
        | {"unsaid": max(recovery.evidence.lost_disposition.values(), default=0.0)}
        | _others(checkpoint, recovery.evidence),
        {
            f"{STORED_NAMES.get(point.source, point.source)} {point.count}": point.score.mean
            for point in recovery.curve
        },
    )


def _others(checkpoint: Checkpoint, evidence: RecoveryEvidence) -> dict[str, float | None]:
    """Return the numbers of the diagnoses without training; None without a result."""
    way = linear_path(checkpoint.model, checkpoint.reference, [checkpoint.behavior])
    floor = 0.9 * evidence.score_before
    read = linear_decodability(checkpoint.model, checkpoint.decoded, reference=checkpoint.reference)
    return {
        "back at": way.first_at_floor(checkpoint.behavior.name, floor),
        "decodable": None if read.retained is None else read.retained.mean,
    }
