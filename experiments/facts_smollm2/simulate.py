"""One checkpoint of SmolLM2 with a known loss, made and diagnosed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from experiments.facts_smollm2.checkpoints import (
    CASES,
    OPEN,
    Case,
    TaughtFacts,
    damage,
    share,
    teach,
)
from experiments.facts_smollm2.plan import Plan
from experiments.harness.cache import cached
from experiments.loss_classification.checkpoints import NOTHING
from riprap.commands import load_model
from riprap.diagnosis import Verdict, recover
from riprap.diagnosis.recovery import MIN_SCORE_DROP
from riprap.integrations.smollm2 import ensure_converted

UNVERIFIED = "not verified"


@dataclass(frozen=True)
class ClassifiedFacts:
    """The diagnosis of one checkpoint.

    Attributes:
        truth: the right verdict; `NOTHING` if the score did not drop, `UNVERIFIED` if the test of
            the truth does not agree with what was done.
        known: share of the *lost* probes' facts that the test of the truth finds.
        seconds: processor seconds of making the checkpoint, and of the diagnosis.
    """

    case: str
    seed: int
    truth: str
    known: float
    verdict: str
    reason: str
    evidence: dict[str, Any]
    seconds: dict[str, float]


@cached("facts_smollm2/{plan.terms}-{name}-{seed}.json")
def simulate(name: str, seed: int, plan: Plan) -> ClassifiedFacts:
    """Make a checkpoint and diagnose it."""
    case = next(case for case in CASES if case.name == name)
    model, tokenizer = load_model(str(ensure_converted()))
    tokenizer.chat_template = None  # plain text: a chat's turns are two thirds of so short a row
    return classify(case, seed, plan, model, tokenizer)


def classify(case: Case, seed: int, plan: Plan, model: Any, tokenizer: Any) -> ClassifiedFacts:
    """Teach the facts (once a seed), do what the case says, and diagnose."""
    began = time.process_time()
    facts = TaughtFacts(tokenizer, plan, seed)
    model = teach(model, tokenizer, plan, seed)
    taught = time.process_time()
    passed_before = facts.passed(model)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    model = damage(model, facts, case)
    passed = facts.passed(model)
    lost = [a and not b for a, b in zip(passed_before, passed, strict=True)]
    known = facts.known(model, lost, case.styles)
    made = time.process_time()
    found = recover(
        model,
        facts.probes,
        facts.examples,
        reference=before,
        unrelated_examples=facts.unrelated(),
        paraphrased=facts.paraphrased,
        draws=plan.draws,
    )
    seconds = {
        "teaching": taught - began,
        "making": made - taught,
        "diagnosis": time.process_time() - made,
    }
    drop = share(passed_before) - share(passed)
    shown = asdict(found.evidence) | {"lost_disposition": found.evidence.lost_disposition}
    return ClassifiedFacts(
        case.name,
        seed,
        truth_of(case, drop, known, plan),
        known,
        str(found.verdict),
        found.reason,
        shown,
        seconds,
    )


def truth_of(case: Case, drop: float, known: float, plan: Plan) -> str:
    """Return the right verdict, as far as the test of the truth agrees.

    Args:
        drop: of the score.
        known: share of the lost facts that the test of the truth finds.
    """
    if drop < MIN_SCORE_DROP:
        return NOTHING
    if case.truth == OPEN:
        if known >= plan.known:
            return str(Verdict.ALIGNMENT)
        return str(Verdict.KNOWLEDGE) if known <= plan.unknown else UNVERIFIED
    is_known = known >= plan.known
    agrees = case.truth == Verdict.DAMAGE or is_known == (case.truth == Verdict.ALIGNMENT)
    return str(case.truth) if agrees else UNVERIFIED


def right(checkpoints: Sequence[ClassifiedFacts]) -> int:
    """Count the right verdicts."""
    return sum(one.verdict == one.truth for one in checkpoints)
