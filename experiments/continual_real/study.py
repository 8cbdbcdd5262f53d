"""Which methods keep the refusals of SmolLM2 over four real tasks in sequence?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from experiments.continual_real import analysis, deep_tables, tables
from experiments.continual_real.deep import DeepRun, look_deep
from experiments.continual_real.measure import Look
from experiments.continual_real.methods import FRONT, MAIN
from experiments.continual_real.plan import Plan
from experiments.continual_real.simulate import Run, simulate
from experiments.harness.jobs import Job
from experiments.harness.preregistration import Preregistration
from experiments.harness.study import Session, Study
from experiments.smollm2.teaching import make, require_taught_model
from riprap.report import apply_style

NAME = "continual_real"


def rates_in_turn(session: Session[Plan]) -> Iterator[list[Job]]:
    """Yield the jobs of the search, rate by rate, up to the rate that its rule chooses.

    The jobs of a rate run before the next ones are yielded: no higher rate can be chosen then.
    """
    plan, done = session.plan, []
    for _, own in groupby(plan.search_jobs(), key=itemgetter(1)):
        jobs = [(*job, plan, session.data) for job in own]
        yield jobs
        done += session.run_jobs(simulate, jobs)
        if analysis.erodes(done, plan.eroded):
            return


def search_jobs(session: Session[Plan]) -> list[Job]:
    """Run the search, and return its jobs."""
    return list(chain.from_iterable(rates_in_turn(session)))


def _rate(session: Session[Plan]) -> float:
    """Return the rate that the search chooses; its runs come first."""
    search = session.run_jobs(simulate, search_jobs(session))
    return analysis.choose_rate(search, session.plan.eroded)


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
    for search in rates_in_turn(session):
        if not all(simulate.path(*job).exists() for job in search):
            return []
    return [job for job in jobs(session) if simulate.path(*job).exists()]


def prepare(data: Path) -> dict[str, Any]:
    """Teach the bases to refuse, and save them under ~/.cache/riprap."""
    plan = Plan.of(Preregistration.named(NAME))
    return {f"base {seed}": make(data, seed)["model"] for seed in (*plan.explored, *plan.bases)}


def check(session: Session[Plan]) -> None:
    """Check that the bases were prepared."""
    own = session.plan
    for seed in (*own.explored, *(() if session.exploratory else own.bases)):
        require_taught_model(seed, NAME)


HEIGHTS: dict[str, Callable[[Look], float]] = {
    "harmful requests not refused": lambda look: look.attack_success(),
    "mean margin of unseen refusals": lambda look: look.margins["refusal"],
}


def figure(runs: list[Run], _: Plan) -> Any:
    """Plot attack success, and margins, against what was learned: the fronts at equal learning.

    A column of panels a base. The line is plain training: the base, half of the rate, and the rate,
    means over the orders of the data; the dashed line is the base. Small points are runs, large
    ones their means.
    """
    methods = analysis.finished(runs)
    each = pd.DataFrame(
        [
            {"method": name, "base": base, "learned": analysis.learned(run)}
            | {title: height(run.looks[-1]) for title, height in HEIGHTS.items()}
            for name, own in methods.items()
            for (base, _), run in own.items()
        ],
        columns=["method", "base", "learned", *HEIGHTS],
    )
    rows = [
        [_panel(each[each["base"] == base], each, title, _start(methods, base, height), base)
         for base in sorted(set(each["base"]))]
        for title, height in HEIGHTS.items()
    ]  # fmt: skip
    return apply_style(alt.vconcat(*(alt.hconcat(*row) for row in rows)))


def _start(methods: dict[str, Any], base: int, height: Callable[[Look], float]) -> float:
    """Return the height of a base before training."""
    cells = (item for own in methods.values() for item in own.items())
    return next(height(run.looks[0]) for (b, _), run in cells if b == base)


def _panel(own: pd.DataFrame, each: pd.DataFrame, title: str, start: float, base: int) -> Any:
    """Plot the runs of one base; the axes are those of the runs of all bases."""
    own = own.assign(kind=[name if name in MAIN else "others" for name in own["method"]])
    means = own.groupby(["method", "kind"], as_index=False).mean(numeric_only=True)
    on_line = means[means["method"].isin([*FRONT, analysis.PLAIN])]
    origin = pd.DataFrame([{"learned": 0.0, title: start}])
    line_frame = pd.concat([origin, on_line[["learned", title]]])
    domain = [float(each["learned"].min()) - 0.01, float(each["learned"].max()) + 0.01]
    axis = alt.Axis(titleLimit=400)
    x = alt.X(
        "learned:Q",
        title="share of the tasks' loss that is gone",
        axis=axis,
        scale=alt.Scale(domain=domain, zero=False),
    )
    heights = [0.0, 1.0, *each[title], start]
    scale = alt.Scale(domain=[min(heights), max(heights)])
    y = alt.Y(f"{title}:Q", title=title, scale=scale, axis=axis)
    color = alt.Color("kind:N", title="method")
    line = alt.Chart(line_frame).mark_line(color="#888", clip=True).encode(x=x, y=y)
    before = alt.Chart(origin).mark_rule(color="#888", strokeDash=[4, 4]).encode(y=y)
    small = alt.Chart(own).mark_point(filled=True, size=25, opacity=0.5)
    large = alt.Chart(means).mark_point(filled=True, size=110, opacity=0.9)
    names = alt.Chart(means).mark_text(dy=-11, fontSize=10).encode(text="method:N")
    marks = [part.encode(x=x, y=y, color=color) for part in (small, large, names)]
    return alt.layer(line, before, *marks).properties(width=430, height=440, title=f"base {base}")


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
    claims=lambda runs, plan: {"rate": analysis.choose_rate(runs, plan.eroded)},
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
    figures={"deep_{kind}": deep_tables.figure},
    documents={"deep_{kind}.json": lambda runs, _: runs},
)
STUDY = replace(
    FINISHED,
    check=check,
    jobs=jobs,
    stages={"search": SEARCH, "finished": FINISHED, "deep": DEEP},
    actions={"prepare": prepare},
)
