"""Are verdicts right on SmolLM2 that was taught made-up facts and then lost them in known ways?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from scipy.stats import binomtest

from experiments.facts_smollm2.checkpoints import CASES
from experiments.facts_smollm2.plan import Plan
from experiments.facts_smollm2.simulate import ClassifiedFacts, right, simulate
from experiments.harness.markdown import median_range, number
from experiments.harness.preregistration import PreregistrationError
from experiments.harness.study import Session, Study
from riprap.diagnosis import Verdict

GIVEN = tuple(str(verdict) for verdict in Verdict if verdict is not Verdict.INSUFFICIENT)
OPPOSITES = {str(Verdict.ALIGNMENT), str(Verdict.KNOWLEDGE)}


def summary(checkpoints: Sequence[ClassifiedFacts], plan: Plan) -> dict[str, Any]:
    """Return counts and accuracy; insufficient evidence and open truths are counted apart."""
    lost = [one for one in checkpoints if one.truth in GIVEN]
    given = [one for one in lost if one.verdict in GIVEN]
    interval = binomtest(right(given), max(len(given), 1)).proportion_ci(0.95)
    opposite = sum({one.truth, one.verdict} == OPPOSITES for one in given)
    accuracy = right(given) / len(given) if given else float("nan")
    return {
        "checkpoints": len(checkpoints),
        "lost": len(lost),
        "given": len(given),
        "right": right(given),
        "accuracy": accuracy,
        "interval": [float(interval.low), float(interval.high)],
        "insufficient": len(lost) - len(given),
        "opposite": opposite,
        "met": bool(given) and accuracy >= plan.accuracy and not opposite,
    }


def sections(checkpoints: Sequence[ClassifiedFacts], plan: Plan) -> dict[str, Any]:
    """Return the counts and the tables."""
    counts = summary(checkpoints, plan)
    return {
        "counts": counts,
        "met": "met" if counts["met"] else "**missed**",
        "cases": [_row(case.name, checkpoints) for case in CASES],
        "confusion": _confusion(checkpoints),
    }


def _row(name: str, checkpoints: Sequence[ClassifiedFacts]) -> dict[str, str]:
    own = [one for one in checkpoints if one.case == name]
    said, truths = (Counter(getattr(one, of) for one in own) for of in ("verdict", "truth"))
    numbers = {
        "score": [one.evidence["score_now"] for one in own],
        "known by the test, lost probes": [one.known for one in own],
        "known, lost probes": [one.evidence["retained"] for one in own],
        "seconds": [one.seconds["making"] + one.seconds["diagnosis"] for one in own],
    }
    return {
        "checkpoint": name,
        "truth": ", ".join(f"{n} {truth}" for truth, n in truths.items()),
        "verdicts": ", ".join(f"{n} {verdict}" for verdict, n in said.items()),
        **{key: median_range(values, 2) for key, values in numbers.items()},
    }


def _confusion(checkpoints: Sequence[ClassifiedFacts]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for truth in dict.fromkeys([*GIVEN, *(one.truth for one in checkpoints)]):
        said = Counter(one.verdict for one in checkpoints if one.truth == truth)
        verdicts = (*GIVEN, str(Verdict.INSUFFICIENT))
        rows.append({"truth": truth, **{verdict: number(said[verdict]) for verdict in verdicts}})
    return rows


def check(session: Session[Plan]) -> None:
    """Check that the plan has the cases of the code.

    Raises:
        PreregistrationError: the names differ.
    """
    if session.plan.cases != tuple(case.name for case in CASES):
        raise PreregistrationError(
            f"the preregistration has cases {list(session.plan.cases)}, and the code has others: "
            "amend it and give a reason"
        )


STUDY = Study(
    name="facts_smollm2",
    plan=Plan,
    check=check,
    jobs=lambda s: [(case, seed, s.plan) for seed in s.seeds for case in s.plan.cases],
    simulate=simulate,
    sections=sections,
    claims=summary,
    documents={"{kind}.json": lambda results, _: results},
)
