"""Which findings on spurious forgetting replicate on made-up biographies?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import altair as alt
import pandas as pd

from experiments.harness.markdown import median_range, number
from experiments.harness.study import Study
from experiments.spurious_forgetting import analysis
from experiments.spurious_forgetting.plan import Plan
from experiments.spurious_forgetting.simulate import FROZEN, PARTS, TASKS, Recovery, Run, simulate


def verdicts(runs: Sequence[Run], plan: Plan) -> dict[str, dict[str, str]]:
    """Return by task if each claim replicates."""
    return {
        task: {claim: analysis.verdict(claim, task, runs, plan) for claim in analysis.CLAIMS}
        for task in TASKS
    }


def sections(runs: Sequence[Run], plan: Plan) -> dict[str, Any]:
    """Return the tables of the page."""
    return {
        "claims": _claims(runs, plan),
        "evaluations": _evaluations(runs, plan),
        "recoveries": _recoveries(runs, plan),
        "parts": _parts(runs, plan),
    }


def _claims(runs: Sequence[Run], plan: Plan) -> list[dict[str, str]]:
    seeds = sorted({run.seed for run in runs})
    rows = []
    for claim, words in analysis.CLAIMS.items():
        row = {"finding": words}
        for task in TASKS:
            every = [analysis.numbers(task, seed, runs, plan)[claim] for seed in seeds]
            row[task] = f"{analysis.verdict(claim, task, runs, plan)}: {median_range(every, 2)}"
        rows.append(row)
    return rows


def _evaluations(runs: Sequence[Run], plan: Plan) -> list[dict[str, str]]:
    rows = []
    for task, frozen in dict.fromkeys((run.task, run.frozen) for run in runs):
        own = [run for run in runs if (run.task, run.frozen) == (task, frozen)]
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


def _recoveries(runs: Sequence[Run], plan: Plan) -> list[dict[str, str]]:
    rows = []
    for task, step, own in _by_task_and_step(runs, plan):
        verdicts = pd.Series([one.verdict for one in own]).value_counts()
        rows.append(
            {"task": task, "step": str(step), "before": median_range([b.now for b in own], 2)}
            | {key: median_range([b.curve[key] for b in own], 2) for key in own[0].curve}
            | {
                "other half, before": median_range([b.half_before for b in own], 2),
                "and after half was learned": median_range([b.half for b in own], 2),
                "verdict": ", ".join(f"{count} {words}" for words, count in verdicts.items()),
            }
        )
    return rows


def _parts(runs: Sequence[Run], plan: Plan) -> list[dict[str, str]]:
    return [
        {"task": task, "step": str(step)}
        | {part: median_range([b.parts[part] for b in own], 2) for part in PARTS}
        for task, step, own in _by_task_and_step(runs, plan)
    ]


def _by_task_and_step(runs: Sequence[Run], plan: Plan) -> Iterator[tuple[str, int, list[Recovery]]]:
    for task in TASKS:
        for at, step in enumerate((plan.early, plan.late)):
            yield task, step, [run.back[at] for run in runs if run.task == task and run.back]


def figure(runs: Sequence[Run], plan: Plan) -> alt.TopLevelMixin:
    """Plot right answers over steps, by task and by what is frozen."""
    frame = pd.DataFrame(
        {
            "task": run.task,
            "frozen": run.frozen,
            "seed": run.seed,
            "step": max(one.step, 1),
            "share right": getattr(one, what),
            "of": words,
        }
        for run in runs
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


STUDY = Study(
    name="spurious_forgetting",
    plan=Plan,
    jobs=lambda s: [
        (task, frozen, seed, s.plan) for seed in s.seeds for task in TASKS for frozen in FROZEN
    ],
    simulate=simulate,
    claims=verdicts,
    sections=sections,
    figures={"{kind}": figure},
    documents={"{kind}.json": lambda runs, _: runs},
)
