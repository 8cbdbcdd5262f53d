"""How early does a monitor warn on the toy world, and how often without cause?"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from experiments.harness.preregistration import Preregistration
from experiments.harness.study import Session, Study
from experiments.toy import figures, quality, tables
from experiments.toy.analysis import Run, detector_rows
from experiments.toy.plan import Plan
from experiments.toy.signal_panels import signals_figure
from experiments.toy.simulate import simulate
from experiments.toy.tables import acceptance


@dataclass(frozen=True)
class Results:
    """All runs, and `detector_rows` of all runs."""

    runs: list[Run]
    frame: pd.DataFrame
    preregistration: Preregistration


def collect(arrays: list[dict[str, np.ndarray]], session: Session[Plan]) -> Results:
    """Evaluate all detectors on all runs."""
    terms = session.preregistration
    pairs = session.plan.runs(session.exploratory)
    runs = [
        Run.load(*pair, simulate.path(*pair, terms).parent, own)
        for pair, own in zip(pairs, arrays, strict=True)
    ]
    frame = pd.concat([detector_rows(run, terms) for run in runs], ignore_index=True)
    return Results(runs, frame, terms)


def sections(results: Results, _plan: Plan) -> dict[str, Any]:
    """Return the tables of the page."""
    runs, frame = results.runs, results.frame
    return {
        "acceptance": tables.acceptance(frame),
        "detectors": tables.by_detector(frame),
        **quality.interference_gain(frame, runs),
        "comparison": tables.claim_rows(runs),
        "residuals": tables.residual_rows(runs),
        "staleness": tables.staleness_rows(runs),
        **quality.forecast_quality(runs, results.preregistration),
        "overlap": tables.overlap_rows(runs),
        "runs": tables.per_run(frame),
    }


def rows(results: Results, _plan: Plan) -> list[dict[str, Any]]:
    """Return the rows of all detectors as plain data."""
    plain: list[dict[str, Any]] = json.loads(results.frame.to_json(orient="records"))
    return plain


STUDY = Study(
    name="toy",
    plan=Plan,
    jobs=lambda s: [(*pair, s.preregistration) for pair in s.plan.runs(s.exploratory)],
    seeds=Plan.reported_seeds,
    simulate=simulate,
    collect=collect,
    claims=lambda results, _: {row["criterion"]: row["met"] for row in acceptance(results.frame)},
    sections=sections,
    figures={
        "behavior": lambda results, _: figures.behavior_figure(results.runs),
        "signals": lambda results, _: signals_figure(results.runs),
        "claim": lambda results, _: figures.claim_figure(results.runs),
        "staleness": lambda results, _: figures.staleness_figure(results.runs),
    },
    documents={"rows.json": rows},
)
