"""Tables and figure of the study of spurious forgetting."""

from __future__ import annotations

import json
from collections.abc import Sequence

import altair as alt
import pandas as pd

from experiments.harness import markdown
from experiments.harness.markdown import number, spread
from experiments.harness.preregistration import Preregistration
from experiments.spurious_forgetting import analysis as judging
from experiments.spurious_forgetting.plan import Plan
from experiments.spurious_forgetting.simulate import PARTS, TASKS, Run
from riprap.monitor import versions


def verdicts(found: Sequence[Run], plan: Plan) -> dict[str, dict[str, str]]:
    """By task, whether each claim replicates."""
    return {
        task: {claim: judging.verdict(claim, task, found, plan) for claim in judging.CLAIMS}
        for task in TASKS
    }


def page(found: Sequence[Run], plan: Plan, preregistration: Preregistration, kind: str) -> str:
    """README of the results."""
    command = "riprap study spurious" + (" --exploratory" if kind == "exploratory" else "")
    seeds = sorted({run.seed for run in found})
    return "\n".join(
        [
            f"# Spurious forgetting on the biographies world, {kind} seeds\n",
            f"Made by `{command}`, protocol `{preregistration.hash}`, commit {markdown.commit()}, seeds "
            f"{', '.join(map(str, seeds))}; {json.dumps(versions())}. Medians [least, most] over "
            "seeds. Asked: share of the questions about known people that are answered right; "
            "stated: share of the statements about them, which nothing trains.\n",
            f"![{kind}]({kind}.png)\n",
            "## Which findings replicate\n",
            markdown.table(_claims(found, plan)) + "\n",
            "## The way\n",
            markdown.table(_way(found, plan)) + "\n",
            f"## Brought back, at steps {plan.early} and {plan.late}\n",
            "Scores on probes that chose nothing; the verdict is that of `diagnosis.recover`.\n",
            markdown.table(_back(found, plan)) + "\n",
            "## The start's weights put back in one part\n",
            "Share of all questions that are right then.\n",
            markdown.table(_parts(found, plan)) + "\n",
        ]
    )


def _claims(found: Sequence[Run], plan: Plan) -> list[dict[str, str]]:
    seeds = sorted({run.seed for run in found})
    rows = []
    for claim, words in judging.CLAIMS.items():
        row = {"finding": words}
        for task in TASKS:
            every = [judging.numbers(task, seed, found, plan)[claim] for seed in seeds]
            row[task] = f"{judging.verdict(claim, task, found, plan)}: {spread(every, 2)}"
        rows.append(row)
    return rows


def _way(found: Sequence[Run], plan: Plan) -> list[dict[str, str]]:
    rows = []
    for task, frozen in dict.fromkeys((run.task, run.frozen) for run in found):
        own = [run for run in found if (run.task, run.frozen) == (task, frozen)]
        for what in ("asked", "stated", "new"):
            rows.append(
                {"task": task, "frozen": frozen, "share right": what}
                | {
                    str(step): number(
                        pd.Series([getattr(run.along[at], what) for run in own]).median(), 2
                    )
                    for at, step in enumerate(plan.at)
                }
            )
    return rows


def _back(found: Sequence[Run], plan: Plan) -> list[dict[str, str]]:
    rows = []
    for task in TASKS:
        for at, step in enumerate((plan.early, plan.late)):
            own = [run.back[at] for run in found if run.task == task and run.back]
            said = pd.Series([one.verdict for one in own]).value_counts()
            rows.append(
                {"task": task, "step": str(step), "before": spread([b.now for b in own], 2)}
                | {key: spread([b.curve[key] for b in own], 2) for key in own[0].curve}
                | {
                    "other half, before": spread([b.half_before for b in own], 2),
                    "and after half was learned": spread([b.half for b in own], 2),
                    "verdict": ", ".join(f"{count} {words}" for words, count in said.items()),
                }
            )
    return rows


def _parts(found: Sequence[Run], plan: Plan) -> list[dict[str, str]]:
    rows = []
    for task in TASKS:
        for at, step in enumerate((plan.early, plan.late)):
            own = [run.back[at] for run in found if run.task == task and run.back]
            rows.append(
                {"task": task, "step": str(step)}
                | {part: spread([b.parts[part] for b in own], 2) for part in PARTS}
            )
    return rows


def figure(found: Sequence[Run], plan: Plan) -> alt.TopLevelMixin:
    """Asked, stated and new along the way, by task and by what is frozen."""
    frame = pd.DataFrame(
        {
            "task": run.task,
            "frozen": run.frozen,
            "seed": run.seed,
            "step": max(one.step, 1),
            "share right": getattr(one, what),
            "of": words,
        }
        for run in found
        for one in run.along
        for what, words in (
            ("asked", "old questions"),
            ("stated", "old statements"),
            ("new", "new questions"),
        )
    )
    return (
        alt.Chart(frame)
        .mark_line(strokeWidth=1.6, opacity=0.8)
        .encode(
            x=alt.X("step:Q", title="step of the new task (log scale; 1 is 0)").scale(type="log"),
            y=alt.Y("share right:Q"),
            color=alt.Color("of:N", title=None, scale=alt.Scale(scheme="tableau10")),
            detail="seed:N",
            column=alt.Column("frozen:N", sort=["nothing", "low", "high"], title="frozen layers"),
            row=alt.Row("task:N", title=None),
        )
        .properties(width=210, height=150)
    )
