"""Which findings on spurious forgetting replicate on made-up biographies?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import altair as alt
import pandas as pd

from experiments.harness.markdown import median_range, number
from experiments.harness.study import Study
from experiments.spurious_forgetting.plan import Plan
from experiments.spurious_forgetting.simulate import FROZEN, PARTS, TASKS, Recovery, Run, simulate

CLAIMS = {
    "collapse": "within the first steps the answers go, and the statements stay",
    "few": "few examples bring the answers back",
    "irrelevant": "so do as few examples of an irrelevant task",
    "half": "learning half of the old questions again brings the other half back",
    "low": "the damage lies in embeddings and the lowest block, not in the highest and the head",
    "freezing": "freezing embeddings and the lowest block is a remedy",
}


def numbers(task: str, seed: int, runs: Sequence[Run], plan: Plan) -> dict[str, float]:
    """Return the numbers that decide each claim, for one task and seed."""
    by_frozen = {run.frozen: run for run in runs if (run.task, run.seed) == (task, seed)}
    plain = by_frozen["nothing"]
    start, early = (next(p for p in plain.along if p.step == step) for step in (0, plan.early))
    back = next(recovery for recovery in plain.back if recovery.step == plan.early)
    most = max(plan.counts)
    lost = start.asked - early.asked
    ends = {frozen: run.along[-1] for frozen, run in by_frozen.items()}
    return {
        "collapse": lost,
        "stated": early.stated,
        "few": regained(back, f"own {most}"),
        "irrelevant": regained(back, f"irrelevant {most}"),
        "half": (back.half - back.half_before) / max(start.asked - back.half_before, 1e-9),
        "low": (back.parts["low"] - back.parts["high"]) / max(lost, 1e-9),
        "freezing": ends["low"].asked - max(ends["nothing"].asked, ends["high"].asked),
        "learned": min(end.new for end in ends.values()),
    }


def regained(back: Recovery, source: str) -> float:
    """Return the share of the lost score that a source recovers; the reference: all of it."""
    now, most = back.now, max(value for key, value in back.curve.items() if "reference" in key)
    return (back.curve[source] - now) / max(most - now, 1e-9)


def holds(claim: str, n: dict[str, float], plan: Plan) -> bool:
    """Tell if a claim holds for one task and seed."""
    if claim == "collapse":
        return n["collapse"] >= plan.collapsed and n["stated"] >= plan.kept
    if claim in ("few", "irrelevant", "low") and n["collapse"] < plan.collapsed:
        return False  # there is hardly any loss to recover
    if claim == "freezing":
        return n["freezing"] >= plan.held and n["learned"] >= plan.learned
    return n[claim] >= (plan.lower if claim == "low" else plan.regained)


def verdict(claim: str, task: str, runs: Sequence[Run], plan: Plan) -> str:
    """Conclude `replicates` if a claim holds for every seed, `does not replicate` if for none."""
    seeds = sorted({run.seed for run in runs})
    outcomes = [holds(claim, numbers(task, seed, runs, plan), plan) for seed in seeds]
    if all(outcomes):
        return "replicates"
    mixed = f"mixed ({sum(outcomes)} of {len(outcomes)} seeds)"
    return mixed if any(outcomes) else "does not replicate"


def verdicts(runs: Sequence[Run], plan: Plan) -> dict[str, dict[str, str]]:
    """Return by task if each claim replicates."""
    return {task: {claim: verdict(claim, task, runs, plan) for claim in CLAIMS} for task in TASKS}


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
    for claim, words in CLAIMS.items():
        row = {"finding": words}
        for task in TASKS:
            every = [numbers(task, seed, runs, plan)[claim] for seed in seeds]
            row[task] = f"{verdict(claim, task, runs, plan)}: {median_range(every, 2)}"
        rows.append(row)
    return rows


def _evaluations(runs: Sequence[Run], plan: Plan) -> list[dict[str, str]]:
    rows = []
    for task, frozen in dict.fromkeys((run.task, run.frozen) for run in runs):
        own = [run for run in runs if (run.task, run.frozen) == (task, frozen)]
        for what in ("asked", "stated", "new"):
            row = {"task": task, "frozen": frozen, "share right": what}
            for at, step in enumerate(plan.at):
                shares = pd.Series([getattr(run.along[at], what) for run in own])
                row[str(step)] = number(shares.median(), 2)
            rows.append(row)
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
    lines = {"asked": "old questions", "stated": "old statements", "new": "new questions"}
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
        for what, words in lines.items()
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
