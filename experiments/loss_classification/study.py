"""Are verdicts right on checkpoints with a known loss?"""

from __future__ import annotations

from dataclasses import asdict

from experiments.harness.preregistration import PreregistrationError
from experiments.harness.study import Session, Study
from experiments.loss_classification import tables
from experiments.loss_classification.plan import Plan
from experiments.loss_classification.simulate import ClassifiedCheckpoint, simulate
from experiments.loss_classification.tables import Results
from riprap.diagnosis import recovery

THRESHOLDS = {  # of the verdict, by field of the plan
    "lost": recovery.MIN_SCORE_DROP,
    "shown": recovery.MIN_REFERENCE_KNOWLEDGE,
    "gone": recovery.LOST_BELOW,
    "kept": recovery.KEPT_ABOVE,
    "unsaid": recovery.UNSAID_SHARE,
    "all": recovery.ONE_ANSWER_SHARE,
    "habit": recovery.FORMAT_SHARE,
}


def check_thresholds(plan: Plan) -> None:
    """Check that the verdict has the preregistered thresholds.

    Raises:
        PreregistrationError: a threshold of the code differs.
    """
    frozen = {name: getattr(plan, name) for name in THRESHOLDS}
    if frozen != THRESHOLDS:
        raise PreregistrationError(
            f"the preregistration has thresholds {frozen}, and the code has {THRESHOLDS}"
        )


def collect(checkpoints: list[ClassifiedCheckpoint], session: Session[Plan]) -> Results:
    """Separate the checkpoints of exploratory and reported seeds."""
    return Results(
        [one for one in checkpoints if one.seed in session.seeds],
        [one for one in checkpoints if one.seed in session.plan.exploratory],
    )


STUDY = Study(
    name="loss_classification",
    title="Verdicts on checkpoints of known truth, {kind} seeds",
    plan=Plan,
    check=lambda s: check_thresholds(s.plan),
    jobs=lambda s: [
        (case, seed, s.plan)
        for seed in dict.fromkeys((*s.plan.exploratory, *s.seeds))
        for case in s.plan.cases
    ],
    simulate=simulate,
    collect=collect,
    claims=tables.summary,
    sections=tables.sections,
    figures={"{kind}": lambda results, plan: tables.figure(results.reported, plan)},
    documents={"{kind}.json": lambda results, _: [asdict(one) for one in results.reported]},
)
