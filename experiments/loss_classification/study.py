"""Are verdicts right on checkpoints with a known loss?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise, product
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from scipy.stats import binomtest

from experiments.harness import markdown
from experiments.harness.markdown import median_range, number
from experiments.harness.preregistration import PreregistrationError
from experiments.harness.study import Session, Study
from experiments.loss_classification import damage
from experiments.loss_classification.checkpoints import CASES, NOTHING
from experiments.loss_classification.plan import Plan
from experiments.loss_classification.simulate import ClassifiedCheckpoint, simulate
from riprap.diagnosis import Verdict, recovery
from riprap.report import style

GIVEN = (str(Verdict.ALIGNMENT), str(Verdict.KNOWLEDGE), str(Verdict.BOTH))
NONE = str(Verdict.INSUFFICIENT)
SINGLE = {
    "known_own": "known after ten own examples",
    "known_irrelevant": "known after irrelevant examples",
    "known_now": "known without a reminder",
    "retained": "share of the knowledge left",
    "unsaid": "known and not said",
    "kind_now": "answers of the right form",
    "score_now": "the score itself",
    "regained_own": "score regained by ten own examples",
    "regained_irrelevant": "score regained by irrelevant examples",
    "back at": "share of the way back at which the score returns",
    "decodable": "decodability retained",
}


def verified(one: ClassifiedCheckpoint, tolerance: float) -> bool:
    """Tell if the measured knowledge agrees with the constructed one."""
    return abs(one.knows - one.left) <= tolerance


def accuracy(checkpoints: Sequence[ClassifiedCheckpoint]) -> tuple[int, int, float, float]:
    """Return right verdicts, verdicts given, and the exact 95 % interval of their ratio.

    `insufficient evidence` and checkpoints that lost nothing are not counted.
    """
    given = [one for one in checkpoints if one.truth in GIVEN and one.verdict in GIVEN]
    right = sum(one.verdict == one.truth for one in given)
    interval = binomtest(right, max(len(given), 1)).proportion_ci(0.95)
    return right, len(given), float(interval.low), float(interval.high)


def confusion(checkpoints: Iterable[ClassifiedCheckpoint]) -> dict[str, Counter[str]]:
    """Count the verdicts by truth."""
    table: dict[str, Counter[str]] = {truth: Counter() for truth in (*GIVEN, NOTHING)}
    for one in checkpoints:
        table[one.truth][one.verdict] += 1
    return table


Rule = tuple[float, float, tuple[str, ...]]


def fitted(checkpoints: Sequence[ClassifiedCheckpoint], number: str) -> Rule | None:
    """Fit the best rule of two thresholds on one number: a verdict below, between and above.

    None if the number was never measured.
    """
    pairs = _pairs(checkpoints, number)
    if not pairs:
        return None
    values = sorted({value for value, _ in pairs})
    cuts = [-np.inf, *((a + b) / 2 for a, b in pairwise(values)), np.inf]
    rules = (
        (low, high, verdicts)
        for low, high in combinations(cuts, 2)
        for verdicts in product(GIVEN, repeat=3)
    )
    return max(rules, key=lambda rule: sum(_apply(rule, v) == truth for v, truth in pairs))


def right_by(
    rule: Rule | None, checkpoints: Sequence[ClassifiedCheckpoint], number: str
) -> tuple[int, int]:
    """Count the checkpoints that a rule gets right, of those with its number measured."""
    pairs = _pairs(checkpoints, number)
    if rule is None:
        return 0, 0
    return sum(_apply(rule, value) == truth for value, truth in pairs), len(pairs)


def _apply(rule: Rule, value: float) -> str:
    low, high, verdicts = rule
    return verdicts[int(value > low) + int(value > high)]


def _pairs(checkpoints: Sequence[ClassifiedCheckpoint], number: str) -> list[tuple[float, str]]:
    read = [(one.evidence[number], one.truth) for one in checkpoints if one.truth in GIVEN]
    return [(v, truth) for v, truth in read if v is not None and not np.isnan(v)]


@dataclass(frozen=True)
class Results:
    """Checkpoints of the reported seeds, and of the exploratory seeds."""

    reported: list[ClassifiedCheckpoint]
    explored: list[ClassifiedCheckpoint]


def summary(results: Results, plan: Plan) -> dict[str, object]:
    """Return counts and accuracy of the verdicts."""
    verified = _verified(results, plan)
    right, given, low, high = accuracy(verified)
    lost = [one for one in verified if one.truth in GIVEN]
    return {
        "checkpoints": len(lost),
        "not verified": len(results.reported) - len(verified),
        "given": given,
        "right": right,
        "accuracy": right / given if given else float("nan"),
        "interval": [low, high],
        "insufficient": sum(one.verdict == NONE for one in lost),
        "met": bool(given) and right / given >= plan.accuracy,
    }


def _verified(results: Results, plan: Plan) -> list[ClassifiedCheckpoint]:
    return [one for one in results.reported if verified(one, plan.verified)]


def sections(results: Results, plan: Plan) -> dict[str, Any]:
    """Return the tables and texts of the page."""
    counts, verified = summary(results, plan), _verified(results, plan)
    return {
        "counts": counts,
        "met": "met" if counts["met"] else "**missed**",
        "confusion": _confusion(verified),
        "singles": _singles(verified, results.explored),
        "cases": _cases(results.reported, plan),
    }


def _confusion(checkpoints: Sequence[ClassifiedCheckpoint]) -> list[dict[str, object]]:
    return [
        {"truth": truth} | {verdict: said[verdict] for verdict in (*GIVEN, NONE)}
        for truth, said in confusion(checkpoints).items()
    ]


def _singles(
    checkpoints: Sequence[ClassifiedCheckpoint], explored: Sequence[ClassifiedCheckpoint]
) -> list[dict[str, str]]:
    rows = []
    for key, words in SINGLE.items():
        rule = fitted(explored, key)
        right, read = right_by(rule, checkpoints, key)
        says = "never measured"
        if rule is not None:
            says = f"{rule[2][0]} ≤ {rule[0]:.2f} < {rule[2][1]} ≤ {rule[1]:.2f} < {rule[2][2]}"
        rows.append({"number": words, "rule": says, "right": markdown.count_of_total(right, read)})
    right, given, *_ = accuracy(checkpoints)
    whole = {"number": "**the verdict**", "rule": "all of it"}
    whole["right"] = markdown.count_of_total(right, given)
    return [whole, *sorted(rows, key=lambda row: -int(row["right"].split()[0]))]


def _cases(checkpoints: Sequence[ClassifiedCheckpoint], plan: Plan) -> list[dict[str, str]]:
    rows, most = [], max(plan.counts)
    for case in CASES:
        own = [one for one in checkpoints if (one.world, one.case) == (case.world, case.name)]
        if not own:
            continue
        said = pd.Series([one.verdict for one in own]).value_counts()
        evidence = {k: median_range([one.evidence[k] for one in own], 2) for k in SINGLE}
        curve = {k: median_range([one.curve[k] for one in own], 2) for k in own[0].curve}
        rows.append(
            {
                "world": case.world,
                "checkpoint": case.name,
                "truth": case.truth,
                "verdicts": ", ".join(f"{count} {verdict}" for verdict, count in said.items()),
                "left": number(case.left, 2),
                "found": median_range([one.knows for one in own], 2),
                "score": evidence["score_now"],
                "right form, lost probes": evidence["kind_now"],
                f"score, {most} own": curve[f"own {most}"],
                f"score, {most} irrelevant": curve[f"irrelevant {most}"],
                "known, lost probes": evidence["retained"],
                "unsaid, lost probes": evidence["unsaid"],
            }
        )
    return rows


def figure(checkpoints: Sequence[ClassifiedCheckpoint], plan: Plan) -> alt.TopLevelMixin:
    """Plot checkpoints by retained and unsaid knowledge, over the regions of the verdicts."""
    frame = pd.DataFrame(
        {
            "knowledge left": one.evidence["retained"],
            "not said": one.evidence["unsaid"],
            "truth": one.truth,
            "checkpoint": f"{one.world}: {one.case}",
        }
        for one in checkpoints
        if one.truth != NOTHING
    )
    lines = [
        alt.Chart(pd.DataFrame({"at": [at]}))
        .mark_rule(strokeDash=[4, 3], color=style.MUTED)
        .encode(**{axis: alt.datum(at)})
        for axis, at in (("x", plan.gone), ("x", plan.kept), ("y", plan.unsaid))
    ]
    whole, truths = alt.Scale(domain=[0, 1]), list(GIVEN)
    left = "share of the knowledge left, lost probes"
    points = alt.Chart(frame).mark_point(filled=True, size=70, opacity=0.75)
    points = points.encode(
        x=alt.X("knowledge left:Q", title=left, scale=whole),
        y=alt.Y("not said:Q", title="known and not said, or of no right form", scale=whole),
        color=alt.Color("truth:N", scale=alt.Scale(domain=truths, scheme="tableau10")),
        shape=alt.Shape("truth:N", scale=alt.Scale(domain=truths)),
        tooltip=["checkpoint", "knowledge left", "not said"],
    )
    title = "What was done to a checkpoint, and where it is found"
    return alt.layer(*lines, points).properties(width=420, height=320, title=title)


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
    plan=Plan,
    check=lambda s: check_thresholds(s.plan),
    jobs=lambda s: [
        (case, seed, s.plan)
        for seed in dict.fromkeys((*s.plan.exploratory, *s.seeds))
        for case in s.plan.cases
    ],
    simulate=simulate,
    collect=collect,
    claims=summary,
    sections=sections,
    figures={"{kind}": lambda results, plan: figure(results.reported, plan)},
    documents={"{kind}.json": lambda results, _: results.reported},
    stages={"damage": damage.STAGE},
)
