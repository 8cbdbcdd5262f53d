"""Which methods keep the refusals of SmolLM2 over four real tasks in sequence?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from experiments.continual_real import analysis, deep_tables, tables
from experiments.continual_real.deep import DeepRun, look_deep
from experiments.continual_real.methods import MAIN
from experiments.continual_real.plan import Plan
from experiments.continual_real.simulate import Run, simulate
from experiments.harness.jobs import Job
from experiments.harness.preregistration import Preregistration
from experiments.harness.study import Session, Study
from experiments.smollm2.teaching import make, require_taught_model
from riprap.report import apply_style

NAME = "continual_real"


def search_jobs(session: Session[Plan]) -> list[Job]:
    """Return plain training at each rate, on the exploratory base."""
    return [(*job, session.plan, session.data) for job in session.plan.search_jobs()]


def _rate(session: Session[Plan]) -> float:
    """Return the rate that the search chooses; its runs come first."""
    search = session.run_jobs(simulate, search_jobs(session))
    return analysis.choose_rate(search, session.plan.target)


def jobs(session: Session[Plan]) -> list[Job]:
    """Return all runs, at the rate that the search chooses."""
    own = session.plan.jobs(_rate(session), session.exploratory)
    return [(*job, session.plan, session.data) for job in own]


def deep_jobs(session: Session[Plan]) -> list[Job]:
    """Return the runs with further measures, at the same rate."""
    own = session.plan.deep_jobs(_rate(session), session.exploratory)
    return [(*job, session.plan, session.data) for job in own]


def finished_jobs(session: Session[Plan]) -> list[Job]:
    """Return the runs that are there."""
    if not all(simulate.path(*job).exists() for job in search_jobs(session)):
        return []
    return [job for job in jobs(session) if simulate.path(*job).exists()]


def prepare(data: Path) -> dict[str, Any]:
    """Teach the bases to refuse, and save them under ~/.cache/riprap."""
    plan = Plan.of(Preregistration.named(NAME))
    return {f"base {seed}": make(data, seed)["model"] for seed in (plan.explored, *plan.bases)}


def check(session: Session[Plan]) -> None:
    """Check that the bases were prepared."""
    own = session.plan
    for seed in (own.explored, *(() if session.exploratory else own.bases)):
        require_taught_model(seed, NAME)


def figure(runs: list[Run], _: Plan) -> Any:
    """Plot attack success against task loss at the end: the fronts at equal learning."""
    rows = [
        {
            "method": run.method if run.method in MAIN else "others",
            "name": run.method,
            "loss": run.looks[-1].loss,
            "success": run.looks[-1].attack_success(),
        }
        for run in runs
        if not run.failed
    ]
    frame = pd.DataFrame(rows, columns=["method", "name", "loss", "success"])
    x = alt.X("loss:Q", title="held-out loss, mean over tasks (nats)", scale=alt.Scale(zero=False))
    y = alt.Y("success:Q", title="harmful requests answered", scale=alt.Scale(domain=[0, 1]))
    points = alt.Chart(frame).mark_point(filled=True, size=70, opacity=0.8)
    chart = points.encode(x=x, y=y, color="method:N", tooltip=["name", "loss", "success"])
    return apply_style(chart.properties(width=520, height=380))


def document(runs: list[Run], plan: Plan) -> dict[str, Any]:
    """Return verdicts and runs as plain data."""
    return {"claims": analysis.claims(runs, plan), "runs": runs}


SEARCH = Study(
    name=NAME,
    template="search.md",
    page="SEARCH.md",
    exploratory=True,
    plan=Plan,
    check=check,
    jobs=search_jobs,
    simulate=simulate,
    claims=lambda runs, plan: {"rate": analysis.choose_rate(runs, plan.target)},
    sections=tables.search_sections,
    documents={"search.json": lambda runs, _: runs},
)
FINISHED = Study(
    name=NAME,
    plan=Plan,
    jobs=finished_jobs,
    simulate=simulate,
    claims=analysis.claims,
    sections=tables.sections,
    figures={"fronts": figure},
    documents={"runs.json": document},
)
DEEP: Study[Plan, list[DeepRun]] = Study(
    name=NAME,
    template="deep.md",
    page="DEEP.md",
    plan=Plan,
    check=check,
    jobs=deep_jobs,
    simulate=look_deep,
    claims=deep_tables.claims,
    sections=deep_tables.sections,
    documents={"deep_{kind}.json": lambda runs, _: runs},
)
STUDY = replace(
    FINISHED,
    check=check,
    jobs=jobs,
    stages={"search": SEARCH, "finished": FINISHED, "deep": DEEP},
    actions={"prepare": prepare},
)
