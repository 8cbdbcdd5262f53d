"""Calibration: what a null run of one's own model says of the noise that detectors must bear."""

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
from riprap.detectors._reevaluate import reevaluate, history_from_record
from riprap.errors import PolicyError
from riprap.record import Reader
from riprap.types import Level

SAFETY_FACTOR = 1.5  # a run shows a part of what may happen: so much more than it showed is tolerated
MIN_EVALUATIONS = 8


def null_histories(runs: Sequence[str | Path]) -> list[BehaviorHistory]:
    """The behaviours of recorded null runs that were healthy at the start.

    Raises:
        RecordError: no record there.
        ProtocolError: a behaviour with fewer than eight visits, or none that was healthy.
    """
    tracks = []
    for run in runs:
        with Reader(run) as reader:
            facts, readings = reader.behaviors(), reader.readings()
            for fact in facts:
                name, floor = fact["name"], fact["floor"]
                margins = reader.margins(name)
                if 0 < len(margins) < MIN_EVALUATIONS:
                    raise PolicyError(
                        f"{run}: {name!r} was visited {len(margins)} times, and {MIN_EVALUATIONS} are "
                        "the least to calibrate by: make the null run longer"
                    )
                track = history_from_record(name, floor, margins, readings, watched=len(facts))
                if track.steps and track.healthy_at_start:
                    tracks.append(track)
    if not tracks:
        raise PolicyError("nothing to calibrate by: no behaviour was over its floor at the start")
    return tracks


def largest_decline(track: BehaviorHistory) -> float:
    """Largest decline of the mean margin since the start, as a share of it; 0 or more."""
    means = np.array([margins.mean() for margins in track.margins])
    return max(float((means[0] - means).max() / means[0]), 0.0) if means[0] > 0 else 0.0


def noise_scale(track: BehaviorHistory, signal: str) -> float | None:
    """Standard deviation of a signal over the visits after the start; None where it has none."""
    values = np.array([value for _, value in track.series(signal)][1:])
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return spread or None


def calibrate(policy: AlertPolicy, tracks: Sequence[BehaviorHistory], reason: str) -> AlertPolicy:
    """The protocol with scales and tolerances from null runs; a frozen one is amended.

    Betting tolerates at least 1.5 times the largest decline that a null run showed: its tolerance
    is raised where that is more, never lowered. CUSUM and Page-Hinkley get a noise scale for each
    behaviour.

    Args:
        reason: kept with the amendment.
    """
    detectors = [_calibrate_detector(detector, tracks) for detector in policy.detectors]
    if policy.hash is not None:
        return policy.amend(reason, detectors=detectors)
    return policy.model_copy(update={"detectors": tuple(detectors)}).freeze()


def _calibrate_detector(detector: Detector, tracks: Sequence[BehaviorHistory]) -> Detector:
    if isinstance(detector, BettingTest) and detector.of == "margin":
        seen = SAFETY_FACTOR * max(largest_decline(track) for track in tracks)
        wanted = math.ceil(100 * seen) / 100
        return detector.model_copy(update={"tolerated": max(detector.tolerated, wanted)})
    if isinstance(detector, Cumulative):
        found: dict[str, float] = {}
        for track in tracks:
            scale = noise_scale(track, detector.signal)
            if scale is not None:
                found[track.behavior] = max(scale, found.get(track.behavior, 0.0))
        return detector.model_copy(update={"scale": found}) if found else detector
    return detector


def false_alarms(policy: AlertPolicy, tracks: Sequence[BehaviorHistory]) -> list[str]:
    """Every warning or critical that the protocol would have raised on the null runs."""
    found = []
    for detector in policy.detectors:
        for track in tracks:
            alerts = reevaluate(detector, track)
            loud = [alert for alert in alerts if alert.level.rank >= Level.WARNING.rank]
            found += [
                f"{a.level} on {a.behavior} at step {a.step} ({a.detector})" for a in loud[:1]
            ]
    return found
