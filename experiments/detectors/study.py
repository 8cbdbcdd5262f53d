"""How often does each detector alarm falsely, and how late does it see a decline?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np

from experiments.detectors import tables
from experiments.detectors.bootstrap import LEVELED, Outcome, on_margins, resample
from experiments.detectors.detector_paths import RATES, delays, name_of, tuned_bound
from experiments.detectors.plan import NULL, Plan
from experiments.detectors.resample import SHAPES, calm_schedule
from experiments.detectors.simulate import Run, simulate
from experiments.harness.preregistration import Preregistration
from experiments.harness.recorded_run import read_record
from experiments.harness.study import Session, Study
from riprap.report import apply_style, inline_data, style

WIDTH, HEIGHT = 230, 170
DEPTHS = (0.2, 0.8)  # drawn, of the plan's


def curves_figure(
    outcomes: Sequence[Outcome], preregistration: Preregistration
) -> alt.VConcatChart:
    """Plot one panel a shape and depth, with one line a detector."""
    plan = Plan.of(preregistration)
    strips = []
    for depth in [depth for depth in DEPTHS if depth in plan.sizes]:
        panels = [_panel(outcomes, preregistration, shape, depth) for shape in SHAPES]
        strips.append(alt.hconcat(*panels, spacing=24))
    header = alt.TitleParams(
        "How late a decline is seen, at each rate of false alarms",
        subtitle=[
            "mean delay after the onset of a planted decline, its bound tuned on leveled null "
            "runs; a decline that is never seen counts as the rest of the run",
        ],
        fontSize=16,
    )
    return apply_style(alt.vconcat(*strips, spacing=20, title=header))


def _panel(
    outcomes: Sequence[Outcome], preregistration: Preregistration, shape: str, depth: float
) -> alt.Chart:
    plan = Plan.of(preregistration)
    steps, rows = calm_schedule(plan), []
    for detector, outcome in zip(on_margins(preregistration), outcomes, strict=True):
        paths = next(p for c, p in outcome.paths.items() if (c.shape, c.depth) == (shape, depth))
        for rate in RATES:
            bound = tuned_bound(outcome.maxima[LEVELED], rate)
            delay = float(np.mean(delays(list(paths), steps, bound, plan.onset)))
            rows.append({"rate": rate, "delay": delay, "detector": name_of(detector)})
    x = alt.X("rate:Q", title="ever alarms falsely in a run", axis=alt.Axis(format="%"))
    y = alt.Y("delay:Q", title="mean delay, steps", scale=alt.Scale(type="symlog", constant=10))
    color = alt.Color("detector:N", title=None, legend=alt.Legend(orient="bottom", columns=7))
    chart = alt.Chart(inline_data(rows)).mark_line(strokeWidth=1.6)
    words = f"{shape}, depth {depth:g} of the start's margin"
    title = alt.TitleParams(words, fontSize=11, color=style.INK)
    return chart.encode(x=x, y=y, color=color).properties(width=WIDTH, height=HEIGHT, title=title)


@dataclass(frozen=True)
class Results:
    """Recorded runs, and paths of detectors over resampled runs."""

    runs: list[Run]
    outcomes: list[Outcome]
    rows: list[tables.Row]
    acceptance: list[tables.Row]
    preregistration: Preregistration


def collect(margins: list[dict[str, np.ndarray]], session: Session[Plan]) -> Results:
    """Read the recorded runs and resample their null runs."""
    terms, runs = session.preregistration, []
    for pair, arrays in zip(session.plan.runs(), margins, strict=True):
        histories, alerts, _ = read_record(simulate.path(*pair, terms).parent)
        runs.append(Run(*pair, histories, alerts, arrays))
    nulls = [run.margins for run in runs if run.condition == NULL]
    floor = next(iter(runs[0].histories.values())).floor
    outcomes = resample(nulls, floor, session)
    rows = tables.bootstrap_rows(outcomes, terms)
    return Results(runs, outcomes, rows, tables.acceptance(rows, runs, terms), terms)


def sections(results: Results, plan: Plan) -> dict[str, Any]:
    """Return the tables of the page."""
    runs, terms = results.runs, results.preregistration
    return {
        "first": plan.null_seeds[0],
        "last": plan.null_seeds[-1],
        "acceptance": results.acceptance,
        "resampled": tables.bootstrap_table(results.rows),
        "delays": tables.delay_table(results.outcomes, terms),
        "recorded": tables.recorded_table(tables.recorded_rows(runs, terms)),
        "leads": tables.lead_table(runs, terms),
    }


STUDY = Study(
    name="detectors",
    plan=Plan,
    jobs=lambda s: [(*pair, s.preregistration) for pair in s.plan.runs()],
    seeds=Plan.reported_seeds,
    simulate=simulate,
    collect=collect,
    claims=lambda results, _: {row["criterion"]: row["met"] for row in results.acceptance},
    sections=sections,
    figures={"curves": lambda results, _: curves_figure(results.outcomes, results.preregistration)},
)
