"""Does a task on disjoint words do harm through a circuit that it shares with the old skill?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import altair as alt
import numpy as np

from experiments.harness import markdown
from experiments.harness.jobs import Job
from experiments.harness.markdown import median_range, number
from experiments.harness.study import Session, Study
from experiments.shared_circuits import analysis
from experiments.shared_circuits.analysis import DISJOINT, Seed, harm
from experiments.shared_circuits.frozen_parts import BLOCKS, PARTS, WORDS
from experiments.shared_circuits.plan import Condition, Plan
from experiments.shared_circuits.shared_units import importances
from experiments.shared_circuits.simulate import Run, simulate
from riprap.report import apply_style, inline_data, style

TITLES = {"steep": "steep, gradient", "moved": "steep, update"}  # of signals with another title


def verdicts(seeds: Sequence[Seed], plan: Plan) -> dict[str, str]:
    """Return the conclusion by claim."""
    return {c.name: c.verdict(seeds, plan.agree) for c in analysis.claims(plan)}


def sections(seeds: Sequence[Seed], plan: Plan) -> dict[str, Any]:
    """Return the tables and texts of the page."""
    conditions = plan.conditions()
    claims = [
        {
            "claim": claim.name,
            "number": claim.says,
            "holds from": f"{claim.least:g}",
            "by seed": median_range([claim.value(seed) for seed in seeds], 2),
            "seeds": f"{sum(claim.value(s) >= claim.least for s in seeds)} of {len(seeds)}",
            "verdict": f"**{claim.verdict(seeds, plan.agree)}**",
        }
        for claim in analysis.claims(plan)
    ]
    return {
        "n_seeds": len(seeds),
        "claims": claims,
        "conditions": [_row(seeds, condition, plan) for condition in conditions],
        "signals": [_signals(seeds, condition, plan) for condition in conditions],
        "orders": [_orders(seeds, signal) for signal in analysis.EARLY],
    }


def _row(seeds: Sequence[Seed], condition: Condition, plan: Plan) -> dict[str, str]:
    runs = [seed.runs[condition] for seed in seeds]
    plain = [seed.run(condition.task) for seed in seeds]

    def over(value: Callable[[Run], float], digits: int = 2) -> str:
        return median_range([value(run) for run in runs], digits)

    equal = [analysis.equally(*pair, plan.learned) for pair in zip(runs, plain, strict=True)]
    lost, beside, level = np.median(equal, axis=0)
    equally = f"{number(lost, 2)} / {number(beside, 2)} at {number(level, 2)}"
    return {
        "condition": str(condition),
        "harm to A": over(harm),
        "A at the end": over(lambda r: r.visits["score/A"][-1]),
        "among own": over(lambda r: r.visits["within"][-1]),
        "A's break": over(lambda r: analysis.broke(r, plan.floor), 0),
        "margin halved": over(analysis.halved, 0),
        "B at the end": over(lambda r: r.visits["score/B"][-1]),
        "B's margin halved": over(lambda r: analysis.halved(r, "B"), 0),
        "new task": over(lambda r: r.visits["task"][-1]),
        f"A lost at {plan.learned:g}": over(lambda r: analysis.lost_at(r, plan.learned)),
        "lost equally": equally if condition.held else markdown.NOTHING,
    }


def _signals(seeds: Sequence[Seed], condition: Condition, plan: Plan) -> dict[str, str]:
    runs = [seed.runs[condition] for seed in seeds]

    def early(name: str, digits: int, factor: float = 1.0) -> str:
        means = [factor * float(np.mean(run.moves[f"{name}/A"][: plan.early])) for run in runs]
        return median_range(means, digits)

    return {
        "condition": str(condition),
        "A at the end": median_range([run.visits["score/A"][-1] for run in runs], 2),
        "blocks back": median_range([run.restored[BLOCKS] for run in runs], 2),
        "words back": median_range([run.restored[WORDS] for run in runs], 2),
        "predicted": early("predicted", 3),
        "by the blocks": median_range([_by_blocks(run, plan.early) for run in runs], 2),
        "cosine": early("cosine", 3),
        "steep, gradient (%)": early("steep", 2, 100),
        "steep, update (%)": early("moved", 2, 100),
    }


def _orders(seeds: Sequence[Seed], signal: str) -> dict[str, str]:
    among = {"all": (), "A's numbers": analysis.SAME_WORDS, "other numbers": analysis.OTHER_WORDS}
    return {"signal": TITLES.get(signal, signal)} | {
        name: median_range([seed.order(signal, tasks) for seed in seeds], 2)
        for name, tasks in among.items()
    }


def _by_blocks(run: Run, early: int) -> float:
    whole = float(np.sum(run.moves["predicted/A"][:early]))
    return float(np.sum(run.moves["blocks/A"][:early])) / whole if whole else float("nan")


COURSES = {  # of C_disjoint: frozen part, its color and dash
    "": (style.INK, [1, 0]),
    "words": (style.CONE, [1, 0]),
    "blocks": (style.BLUE, [6, 3]),
    "shared": (style.UP, [1, 0]),
    "unshared": (style.DOWN, [6, 3]),
}


def figure(seeds: Sequence[Seed]) -> Any:
    """Plot the harm of each condition and seed, and the scores of A under C_disjoint."""
    title = alt.TitleParams(
        "What washes the addition away?",
        subtitle="left: dots are seeds, bars their medians; right: medians over seeds",
    )
    return apply_style(alt.hconcat(_harms(seeds), _courses(seeds), spacing=36, title=title))


def _harms(seeds: Sequence[Seed]) -> Any:
    conditions = [str(condition) for condition in seeds[0].runs]
    rows = [
        {"condition": str(condition), "harm": analysis.harm(run)}
        for seed in seeds
        for condition, run in seed.runs.items()
    ]
    x = alt.X("harm:Q", title="harm: mean share of A lost")
    axis = alt.Axis(labelLimit=220, minExtent=0, maxExtent=400, grid=True)
    y = alt.Y("condition:N", sort=conditions, title=None, axis=axis)
    base = alt.Chart(inline_data(rows)).encode(y=y)
    dots = base.mark_point(size=28, filled=True, opacity=0.6, color=style.BLUE).encode(x=x)
    middles = base.mark_tick(thickness=2, size=12, color=style.INK)
    layers = alt.layer(dots, middles.encode(x=alt.X("median(harm):Q")))
    return layers.properties(width=300, height=18 * len(conditions))


def _courses(seeds: Sequence[Seed]) -> Any:
    rows: list[dict[str, Any]] = []
    for held in COURSES:
        runs = [seed.run(DISJOINT, held) for seed in seeds]
        scores = np.median([run.visits["score/A"] for run in runs], axis=0)
        done = np.median([run.visits["task"] for run in runs], axis=0)
        for step, score, task in zip(runs[0].visits["step"], scores, done, strict=True):
            shared = {"step": step, "held": held or "nothing"}
            rows.append({**shared, "value": float(score), "what": "A"})
            rows.append({**shared, "value": float(task), "what": "C_disjoint"})
    names = [held or "nothing" for held in COURSES]
    color = alt.Scale(domain=names, range=[c for c, _ in COURSES.values()])
    dash = alt.Scale(domain=names, range=[d for _, d in COURSES.values()])
    panels = []
    for what, title in (("A", "A, unseen inputs right"), ("C_disjoint", "C_disjoint, right")):
        own = [row for row in rows if row["what"] == what]
        lines = alt.Chart(inline_data(own)).mark_line(strokeWidth=2)
        panels.append(
            lines.encode(
                x=alt.X("step:Q", title="step", axis=alt.Axis(grid=False, tickCount=6)),
                y=alt.Y("value:Q", title=title, scale=alt.Scale(domain=[0, 1])),
                color=alt.Color("held:N", title="C_disjoint, held", scale=color, sort=names),
                strokeDash=alt.StrokeDash("held:N", title="C_disjoint, held", scale=dash),
            ).properties(width=300, height=170)
        )
    return alt.vconcat(*panels, spacing=20)


def jobs(session: Session[Plan]) -> list[Job]:
    """Return every condition on every seed, after measuring the components that some need."""
    conditions = session.plan.conditions()
    tasks = dict.fromkeys(c.task for c in conditions if c.held and c.held not in PARTS)
    session.run_jobs(importances, [(t, s, session.plan) for s in session.seeds for t in tasks])
    return [(c, seed, session.preregistration) for seed in session.seeds for c in conditions]


def collect(runs: list[Run], session: Session[Plan]) -> list[Seed]:
    """Group the runs by seed."""
    return [
        Seed(seed, {run.condition: run for run in runs if run.seed == seed}, session.plan)
        for seed in session.seeds
    ]


STUDY = Study(
    name="shared_circuits",
    plan=Plan,
    jobs=jobs,
    simulate=simulate,
    collect=collect,
    claims=verdicts,
    sections=sections,
    figures={"{kind}": lambda seeds, _: figure(seeds)},
)
