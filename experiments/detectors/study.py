"""How often does each detector alarm falsely, and how late does it see a decline?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from experiments.detectors import tables
from experiments.detectors.bootstrap import Outcome, resample
from experiments.detectors.figures import curves_figure
from experiments.detectors.plan import NULL, Plan
from experiments.detectors.recorded_runs import Run
from experiments.detectors.simulate import simulate
from experiments.harness import markdown
from experiments.harness.preregistration import Preregistration
from experiments.harness.recorded_run import read_record
from experiments.harness.study import Session, Study

NOTE = """

{plan.bootstraps} null runs, each the recorded margins of one of the seeds {first} to {last}
on probes drawn again with replacement, visited as a calm monitor visits; {plan.planted}
runs for each of four shapes and depths {plan.sizes}. *Recorded*: as they are. *Leveled*: without
the slow gain of training that goes on. *Least favorable*: the mean decline is just what betting
tolerates, in every behavior, all the time. 95 % intervals (Clopper and Pearson) are over the
resampling, not over training seeds; for those see the real runs. *Mean delay*: from the onset, all
shapes and depths; a decline never seen counts as the rest of the run. *Tuned*: the same with the
bound at which 5 % of the null runs alarm. *Area*: under the curve of delay over false-alarm
probabilities up to 20 %, leveled nulls, as a share of the rest of the run; 0 is best."""


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


def sections(results: Results, plan: Plan) -> list[str]:
    """Return the figure and tables of the page."""
    runs, terms = results.runs, results.preregistration
    texts = {
        "What it must show": markdown.table(results.acceptance),
        "Resampled runs": tables.bootstrap_table(results.rows)
        + NOTE.format(plan=plan, first=plan.null_seeds[0], last=plan.null_seeds[-1]),
        "Delay by shape and depth": tables.delay_table(results.outcomes, terms)
        + "\n\nMedian steps from the onset at the detector's own bound, over the declines found.",
        "Real runs, all signals": tables.recorded_table(tables.recorded_rows(runs, terms)),
        "Leads of the default protocol's levels": tables.lead_table(runs, terms)
        + "\n\nMedian [least, most] in optimizer steps, over seeds that broke and were announced.",
    }
    parts = [f"## {title}\n\n{text}\n" for title, text in texts.items()]
    return ["![curves](curves.png)\n", *parts]


STUDY = Study(
    name="detectors",
    title="Detectors",
    plan=Plan,
    jobs=lambda s: [(*pair, s.preregistration) for pair in s.plan.runs()],
    seeds=Plan.reported_seeds,
    simulate=simulate,
    collect=collect,
    claims=lambda results, _: {row["criterion"]: row["met"] for row in results.acceptance},
    sections=sections,
    figures={"curves": lambda results, _: curves_figure(results.outcomes, results.preregistration)},
)
