"""Tables and figure of the study of verdicts."""

from __future__ import annotations

import json
from collections.abc import Sequence

import altair as alt
import pandas as pd

from experiments.harness import markdown
from experiments.harness.charts import style
from experiments.harness.markdown import median_range, number
from experiments.harness.preregistration import Preregistration
from experiments.loss_classification import analysis as judging
from experiments.loss_classification.analysis import GIVEN, NONE, SINGLE
from experiments.loss_classification.checkpoints import CASES, NOTHING
from experiments.loss_classification.plan import Plan
from experiments.loss_classification.simulate import Found
from riprap.monitor import versions


def summary(found: Sequence[Found], plan: Plan) -> dict[str, object]:
    """The numbers that the issue asks for."""
    sound = [one for one in found if judging.verified(one, plan.verified)]
    right, given, low, high = judging.accuracy(sound)
    lost = [one for one in sound if one.truth in GIVEN]
    return {
        "checkpoints": len(lost),
        "not verified": len(found) - len(sound),
        "given": given,
        "right": right,
        "accuracy": right / given if given else float("nan"),
        "interval": [low, high],
        "insufficient": sum(one.verdict == NONE for one in lost),
        "met": bool(given) and right / given >= plan.accuracy,
    }


def page(
    found: Sequence[Found],
    explored: Sequence[Found],
    plan: Plan,
    preregistration: Preregistration,
    kind: str,
) -> str:
    """README of the results."""
    made = summary(found, plan)
    sound = [one for one in found if judging.verified(one, plan.verified)]
    command = "riprap study verdicts" + (" --exploratory" if kind == "exploratory" else "")
    _, _, low, high = judging.accuracy(sound)
    met = "met" if made["met"] else "**missed**"
    parts = [
        f"# Verdicts on checkpoints of known truth, {kind} seeds\n",
        f"Made by `{command}`, protocol `{preregistration.hash}`, commit {markdown.commit()}, seeds "
        f"{', '.join(map(str, sorted({one.seed for one in found})))}; {json.dumps(versions())}.\n",
        f"Of {made['checkpoints']} checkpoints that lost something, {made['insufficient']} got "
        f"`insufficient evidence`; of the other {made['given']} verdicts {made['right']} are "
        f"right: **{made['accuracy']:.2f}** [{low:.2f}, {high:.2f}] (exact 95 % interval; aim "
        f"{plan.accuracy}: {met}). {made['not verified']} checkpoints are left out, since the "
        "tests of the truth did not agree with what had been done to them.\n",
        f"![{kind}]({kind}.png)\n",
        "## Confusion\n",
        markdown.table(_confusion(sound)) + "\n",
        "## What a single number would have done\n",
        "Two thresholds and what they say, the best on the exploratory seeds; right on these:\n",
        markdown.table(_singles(sound, explored)) + "\n",
        "## Checkpoints\n",
        "Median [least, most] over seeds. Left: knowledge by construction; found: by statements, "
        "or sums in either set of digits, which no diagnosis sees.\n",
        markdown.table(_cases(found, plan)) + "\n",
    ]
    return "\n".join(parts)


def _confusion(found: Sequence[Found]) -> list[dict[str, object]]:
    return [
        {"truth": truth} | {verdict: said[verdict] for verdict in (*GIVEN, NONE)}
        for truth, said in judging.confusion(found).items()
    ]


def _singles(found: Sequence[Found], explored: Sequence[Found]) -> list[dict[str, str]]:
    rows = []
    for key, words in SINGLE.items():
        rule = judging.fitted(explored, key)
        right, read = judging.right_by(rule, found, key)
        says = (
            "never measured"
            if rule is None
            else f"{rule[2][0]} ≤ {rule[0]:.2f} < {rule[2][1]} ≤ {rule[1]:.2f} < {rule[2][2]}"
        )
        rows.append({"number": words, "rule": says, "right": markdown.count_of_total(right, read)})
    right, given, *_ = judging.accuracy(found)
    whole = {
        "number": "**the verdict**",
        "rule": "all of it",
        "right": markdown.count_of_total(right, given),
    }
    return [whole, *sorted(rows, key=lambda row: -int(row["right"].split()[0]))]


def _cases(found: Sequence[Found], plan: Plan) -> list[dict[str, str]]:
    rows = []
    for case in CASES:
        own = [one for one in found if (one.world, one.case) == (case.world, case.name)]
        if not own:
            continue
        most = max(plan.counts)
        said = pd.Series([one.verdict for one in own]).value_counts()
        rows.append(
            {
                "world": case.world,
                "checkpoint": case.name,
                "truth": case.truth,
                "verdicts": ", ".join(f"{count} {verdict}" for verdict, count in said.items()),
                "left": number(case.left, 2),
                "found": median_range([one.knows for one in own], 2),
                "score": median_range([one.evidence["score_now"] for one in own], 2),  # type: ignore[misc]
                "right form, lost probes": median_range(
                    [one.evidence["kind_now"] for one in own], 2
                ),  # type: ignore[misc]
                f"score, {most} own": median_range([one.curve[f"own {most}"] for one in own], 2),
                f"score, {most} irrelevant": median_range(
                    [one.curve[f"irrelevant {most}"] for one in own], 2
                ),
                "known, lost probes": median_range([one.evidence["retained"] for one in own], 2),  # type: ignore[misc]
                "unsaid, lost probes": median_range([one.evidence["unsaid"] for one in own], 2),  # type: ignore[misc]
            }
        )
    return rows


def figure(found: Sequence[Found], plan: Plan) -> alt.TopLevelMixin:
    """Each checkpoint by what it knows and what it does not say, over the regions of verdicts."""
    frame = pd.DataFrame(
        {
            "knowledge left": one.evidence["retained"],
            "not said": one.evidence["unsaid"],
            "truth": one.truth,
            "checkpoint": f"{one.world}: {one.case}",
        }
        for one in found
        if one.truth != NOTHING
    )
    lines = [
        alt.Chart(pd.DataFrame({"at": [at]}))
        .mark_rule(strokeDash=[4, 3], color=style.MUTED)
        .encode(**{axis: alt.datum(at)})
        for axis, at in (("x", plan.gone), ("x", plan.kept), ("y", plan.unsaid))
    ]
    points = (
        alt.Chart(frame)
        .mark_point(filled=True, size=70, opacity=0.75)
        .encode(
            x=alt.X("knowledge left:Q", title="share of the knowledge left, lost probes").scale(
                domain=[0, 1]
            ),
            y=alt.Y("not said:Q", title="known and not said, or of no right form").scale(
                domain=[0, 1]
            ),
            color=alt.Color("truth:N", scale=alt.Scale(domain=list(GIVEN), scheme="tableau10")),
            shape=alt.Shape("truth:N", scale=alt.Scale(domain=list(GIVEN))),
            tooltip=["checkpoint", "knowledge left", "not said"],
        )
    )
    title = "What was done to a checkpoint, and where it is found"
    return alt.layer(*lines, points).properties(width=420, height=320, title=title)
