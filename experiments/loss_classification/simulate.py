"""One checkpoint of known truth, made and diagnosed; kept under `runs/`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from experiments.loss_classification.checkpoints import CASES, Case, Made, make
from experiments.loss_classification.plan import Plan
from riprap.diagnosis import recover
from riprap.diagnosis.evidence import linear_decodability, linear_path
from riprap.diagnosis.recovery import RecoveryEvidence

RUNS = Path("runs/verdicts")
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
class Found:
    """What was found of one checkpoint.

    Attributes:
        truth, left: what is known of it by construction; `knows`: what tests of the truth find.
        verdict: of `diagnosis.recover`, without a control, as most users will ask.
        evidence: numbers behind it, and those of the other examinations.
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


def simulate(name: str, seed: int, plan: Plan) -> Found:
    """Make a checkpoint and diagnose it, or take up what was found before."""
    file = RUNS / f"{plan.config_hash()}-{name.replace(' ', '_').replace(',', '')}-{seed}.json"
    if file.exists():
        return Found(**json.loads(file.read_text()))
    torch.set_num_threads(1)
    case = next(one for one in CASES if one.label == name)
    found = _diagnosed(case, seed, make(case, seed), plan)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(asdict(found)))
    partial.rename(file)
    return found


def _diagnosed(case: Case, seed: int, made: Made, plan: Plan) -> Found:
    given: dict[str, Any] = {
        "reference": made.reference,
        "unrelated_examples": made.irrelevant,
        "draws": plan.draws,
    }
    seen = recover(made.model, made.behavior, made.examples, shot_counts=plan.counts, **given)
    return Found(
        case.world,
        case.name,
        seed,
        case.truth,
        case.left,
        made.knows,
        str(seen.verdict),
        {STORED_NAMES.get(name, name): value for name, value in asdict(seen.evidence).items()}
        | {"unsaid": seen.evidence.known_but_unsaid}
        | _others(made, seen.evidence),
        {
            f"{STORED_NAMES.get(point.source, point.source)} {point.count}": point.score.mean
            for point in seen.curve
        },
    )


def _others(made: Made, evidence: RecoveryEvidence) -> dict[str, float | None]:
    """Examinations that learn nothing, as numbers; None where one says nothing."""
    way = linear_path(made.model, made.reference, [made.behavior])
    floor = 0.9 * evidence.score_before
    read = linear_decodability(made.model, made.decoded, reference=made.reference)
    return {
        "back at": way.first_at_floor(made.behavior.name, floor),
        "decodable": None if read.retained is None else read.retained.mean,
    }
