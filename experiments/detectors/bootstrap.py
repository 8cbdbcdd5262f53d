"""Paths of detectors on resampled null runs and on planted declines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from experiments.detectors.detector_paths import path_of
from experiments.detectors.plan import Plan
from experiments.detectors.resample import (
    SHAPES,
    Margins,
    PlantedDecline,
    at_the_edge,
    draw,
    leveled,
)
from experiments.harness.preregistration import Preregistration
from experiments.harness.study import Session
from riprap.detectors import AnyDetector, BettingTest, Detector, ForecastDetector, SlopeDetector

RECORDED, LEVELED, EDGE = NULLS = ("recorded", "leveled", "least favorable")
OWN = ("margin", "margin_low", "score")  # signals that are computed from margins alone


@dataclass
class Outcome:
    """Paths of one detector over resampled runs.

    Attributes:
        maxima: highest point on each null run, of any behavior, by kind of null run: "recorded",
            "leveled" and, for detectors that tolerate a decline, "least favorable"; each of
            shape (bootstraps,).
        paths: by planted decline, of the behavior it was planted in, shape (planted, visits).
        broke: by planted decline, step of each break; None without a break.
    """

    maxima: dict[str, np.ndarray] = field(default_factory=dict)
    paths: dict[PlantedDecline, np.ndarray] = field(default_factory=dict)
    broke: dict[PlantedDecline, list[int | None]] = field(default_factory=dict)


def on_margins(preregistration: Preregistration) -> list[AnyDetector]:
    """Return the detectors that need only margins, and so can be resampled."""
    every = [*preregistration.detectors, *Plan.of(preregistration).rivals]
    return [d for d in every if _needs_margins_alone(d)]


def _needs_margins_alone(detector: Detector) -> bool:
    if isinstance(detector, ForecastDetector):
        return isinstance(detector, SlopeDetector)  # the forecast also reads interference
    return getattr(detector, "signal", "margin") in OWN


def resample(runs: Sequence[Margins], floor: float, session: Session[Plan]) -> list[Outcome]:
    """Return one outcome a detector of `on_margins`, over the plan's resampled runs."""
    terms, plan = session.preregistration, session.plan
    detectors = on_margins(terms)
    outcomes = [Outcome() for _ in detectors]
    shared = (list(runs), floor, terms)
    kinds = [(kind, index) for kind in NULLS for index in range(len(detectors))]
    maxima = session.run_jobs(null_maxima, [(*shared, *kind) for kind in kinds])
    for (kind, index), highest in zip(kinds, maxima, strict=True):
        if len(highest):
            outcomes[index].maxima[kind] = highest
    cells = [PlantedDecline(shape, depth) for shape in SHAPES for depth in plan.sizes]
    planted = session.run_jobs(decline_paths, [(*shared, *cell) for cell in enumerate(cells)])
    for cell, (paths, broke) in zip(cells, planted, strict=True):
        for outcome, own in zip(outcomes, paths, strict=True):
            outcome.paths[cell], outcome.broke[cell] = own, broke
    return outcomes


def null_maxima(
    runs: list[Margins], floor: float, preregistration: Preregistration, kind: str, index: int
) -> np.ndarray:
    """Return the highest points of one detector's paths; all detectors get the same runs."""
    plan, detector = Plan.of(preregistration), on_margins(preregistration)[index]
    if kind == EDGE:
        if not isinstance(detector, BettingTest) or detector.of != "margin":
            return np.zeros(0)
        runs = [at_the_edge(run, detector.tolerated) for run in runs]
    elif kind == LEVELED:
        runs = [leveled(run) for run in runs]
    rng = np.random.default_rng([7, NULLS.index(kind)])
    drawn = (draw(runs, floor, plan, rng) for _ in range(plan.bootstraps))
    every = (one.histories.values() for one in drawn)
    return np.array([max(path_of(detector, one).max() for one in own) for own in every])


def decline_paths(
    runs: list[Margins],
    floor: float,
    preregistration: Preregistration,
    seed: int,
    planted: PlantedDecline,
) -> tuple[list[np.ndarray], list[int | None]]:
    """Return the paths of all detectors on runs with a planted decline, and the breaks."""
    rng = np.random.default_rng([11, seed])
    plan, level = Plan.of(preregistration), [leveled(run) for run in runs]
    drawn = [draw(level, floor, plan, rng, planted) for _ in range(plan.planted)]
    paths = [
        np.array([path_of(detector, one.histories[one.planted]) for one in drawn])
        for detector in on_margins(preregistration)
    ]
    return paths, [one.broke for one in drawn]
