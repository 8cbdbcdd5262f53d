"""What detectors say on resampled null runs and on planted declines."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from experiments.detectors.detector_paths import path_of
from experiments.detectors.plan import Plan
from experiments.detectors.resample import (
    SHAPES,
    Margins,
    Planted,
    at_the_edge,
    draw,
    levelled,
)
from experiments.harness.preregistration import Preregistration
from riprap.detectors import AnyDetector, BettingTest, Detector, ForecastDetector, SlopeDetector

RECORDED, LEVELLED, EDGE = NULLS = ("recorded", "levelled", "least favourable")
OWN = ("margin", "margin_low", "score")  # signals that are made of margins alone


@dataclass
class Outcome:
    """Paths of one detector over resampled runs.

    Attributes:
        maxima: highest point on each null run, any behaviour, by kind of null run: "recorded",
            "levelled" and, for detectors that tolerate a decline, "least favourable"; each of
            shape (bootstraps,).
        paths: by planted decline, of the behaviour it was planted in, shape (planted, visits).
        broke: by planted decline, step of each break; None without one.
    """

    maxima: dict[str, np.ndarray] = field(default_factory=dict)
    paths: dict[Planted, np.ndarray] = field(default_factory=dict)
    broke: dict[Planted, list[int | None]] = field(default_factory=dict)


def on_margins(preregistration: Preregistration) -> list[AnyDetector]:
    """The detectors of a study that need nothing but margins, and so can be resampled."""
    every = [*preregistration.detectors, *Plan.of(preregistration).rivals]
    return [d for d in every if _needs_margins_alone(d)]


def _needs_margins_alone(detector: Detector) -> bool:
    if isinstance(detector, ForecastDetector):
        return isinstance(detector, SlopeDetector)  # the other one reads interference as well
    return getattr(detector, "signal", "margin") in OWN


def resample(
    runs: Sequence[Margins], floor: float, preregistration: Preregistration, workers: int
) -> list[Outcome]:
    """One outcome a detector of `on_margins`, over the plan's resampled runs."""
    plan, detectors = Plan.of(preregistration), on_margins(preregistration)
    outcomes = [Outcome() for _ in detectors]
    with _pool(workers) as pool:
        kinds = [(kind, index) for kind in NULLS for index in range(len(detectors))]
        jobs = {
            key: pool.submit(_maxima, list(runs), floor, preregistration, *key) for key in kinds
        }
        cells = [Planted(shape, depth) for shape in SHAPES for depth in plan.sizes]
        planted = [
            pool.submit(_planted, list(runs), floor, preregistration, seed, cell)
            for seed, cell in enumerate(cells)
        ]
        for (kind, index), job in jobs.items():
            if len(found := job.result()):
                outcomes[index].maxima[kind] = found
        for cell, one in zip(cells, planted, strict=True):
            paths, broke = one.result()
            for outcome, own in zip(outcomes, paths, strict=True):
                outcome.paths[cell], outcome.broke[cell] = own, broke
    return outcomes


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def _maxima(
    runs: list[Margins], floor: float, preregistration: Preregistration, kind: str, index: int
) -> np.ndarray:
    """Highest points of one detector's paths; every detector sees the same resampled runs."""
    plan, detector = Plan.of(preregistration), on_margins(preregistration)[index]
    if kind == EDGE:
        if not isinstance(detector, BettingTest) or detector.of != "margin":
            return np.zeros(0)
        runs = [at_the_edge(run, detector.tolerated) for run in runs]
    elif kind == LEVELLED:
        runs = [levelled(run) for run in runs]
    rng = np.random.default_rng([7, NULLS.index(kind)])
    drawn = (draw(runs, floor, plan, rng) for _ in range(plan.bootstraps))
    return np.array(
        [max(path_of(detector, track).max() for track in one.tracks.values()) for one in drawn]
    )


def _planted(
    runs: list[Margins], floor: float, preregistration: Preregistration, seed: int, planted: Planted
) -> tuple[list[np.ndarray], list[int | None]]:
    rng = np.random.default_rng([11, seed])
    plan, level = Plan.of(preregistration), [levelled(run) for run in runs]
    drawn = [draw(level, floor, plan, rng, planted) for _ in range(plan.planted)]
    paths = [
        np.array([path_of(detector, one.tracks[one.planted]) for one in drawn])
        for detector in on_margins(preregistration)
    ]
    return paths, [one.broke for one in drawn]
