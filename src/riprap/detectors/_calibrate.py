"""Calibration: thresholds from null runs, which show the noise without an effect."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from riprap.detectors._base import Detector
from riprap.detectors._betting_test import BettingTest
from riprap.detectors._cumulative import Cumulative
from riprap.detectors._history import BehaviorHistory
from riprap.detectors._policy import AlertPolicy
from riprap.detectors._probe_trend import ProbeTrend
from riprap.detectors._reevaluate import history_from_record, plans_from_record, reevaluate
from riprap.errors import PolicyError
from riprap.record import Reader
from riprap.types import Level

SAFETY_FACTOR = 1.5  # times the largest decline of a null run: other runs may decline more
MIN_EVALUATIONS = 8
LINES = (3, 4, 6, 8)  # numbers of evaluations that a line of `ProbeTrend` may go through


def null_histories(runs: Sequence[str | Path]) -> list[BehaviorHistory]:
    """Return the histories of all behaviors of null runs that were over their floor at the start.

    Raises:
        RecordError: there is no record.
        PolicyError: a behavior has fewer than eight probe evaluations, or no behavior was over its
            floor.
    """
    histories = []
    for run in runs:
        with Reader(run) as reader:
            behaviors, readings = reader.behaviors(), reader.readings()
            plans = plans_from_record(reader.events())
            for behavior in behaviors:
                name, floor = behavior["name"], behavior["floor"]
                margins = reader.margins(name)
                if 0 < len(margins) < MIN_EVALUATIONS:
                    raise PolicyError(
                        f"{run}: {name!r} has {len(margins)} probe evaluations, and calibration "
                        f"needs at least {MIN_EVALUATIONS}: make the null run longer"
                    )
                history = history_from_record(name, floor, margins, readings, len(behaviors), plans)
                if history.steps and history.healthy_at_start:
                    histories.append(history)
    if not histories:
        raise PolicyError(
            "cannot calibrate: no behavior was over its floor at the start of a null run"
        )
    return histories


def largest_decline(history: BehaviorHistory) -> float:
    """Compute the largest decline of the mean margin since the start, as a fraction of it; ≥ 0."""
    means = np.array([margins.mean() for margins in history.margins])
    return max(float((means[0] - means).max() / means[0]), 0.0) if means[0] > 0 else 0.0


def noise_scale(history: BehaviorHistory, signal: str) -> float | None:
    """Compute the standard deviation of a signal after the start; None where it has none."""
    values = np.array([value for _, value in history.series(signal)][1:])
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return spread or None


def calibrate(
    policy: AlertPolicy, histories: Sequence[BehaviorHistory], reason: str
) -> AlertPolicy:
    """Return the policy with scales and tolerances from null runs; a frozen policy is amended.

    `ProbeTrend` gets the shortest line, and of these the largest weight of a probe's own trend,
    with which no warning is left on the null runs, or else the fewest. The betting test then
    tolerates at least 1.5 times the largest decline of a null run: its tolerance is raised if
    necessary, never lowered. CUSUM and Page-Hinkley get a noise scale for each behavior.

    Args:
        reason: reason of the amendment.
    """
    detectors = [_calibrate_detector(detector, histories) for detector in policy.detectors]
    if policy.hash is not None:
        return policy.amend(reason, detectors=detectors)
    return policy.model_copy(update={"detectors": tuple(detectors)}).freeze()


def _calibrate_detector(detector: Detector, histories: Sequence[BehaviorHistory]) -> Detector:
    if isinstance(detector, BettingTest) and detector.of == "margin":
        decline = SAFETY_FACTOR * max(largest_decline(history) for history in histories)
        rounded = math.ceil(100 * decline) / 100
        return detector.model_copy(update={"tolerated": max(detector.tolerated, rounded)})
    if isinstance(detector, ProbeTrend):
        return min(_calmer(detector), key=lambda own: len(_false_alarms(own, histories)))
    if isinstance(detector, Cumulative):
        scales: dict[str, float] = {}
        for history in histories:
            scale = noise_scale(history, detector.signal)
            if scale is not None:
                scales[history.behavior] = max(scale, scales.get(history.behavior, 0.0))
        return detector.model_copy(update={"scale": scales}) if scales else detector
    return detector


def _calmer(detector: ProbeTrend) -> list[ProbeTrend]:
    """Return the detector, and variants with longer lines and less of each probe's own trend."""
    lengths = [detector.evaluations, *(n for n in LINES if n > detector.evaluations)]
    weights = [detector.own * part for part in (1.0, 0.5, 0.0)]
    return [
        detector.model_copy(update={"evaluations": length, "own": weight})
        for length in lengths
        for weight in weights
    ]


def false_alarms(policy: AlertPolicy, histories: Sequence[BehaviorHistory]) -> list[str]:
    """Describe the first warning or critical alert of each detector on each null history."""
    return [text for detector in policy.detectors for text in _false_alarms(detector, histories)]


def _false_alarms(detector: Detector, histories: Sequence[BehaviorHistory]) -> list[str]:
    texts = []
    for history in histories:
        alerts = reevaluate(detector, history)
        severe = [a for a in alerts if a.level.rank >= Level.WARNING.rank][:1]
        texts += [f"{a.level} on {a.behavior} at step {a.step} ({a.detector})" for a in severe]
    return texts
