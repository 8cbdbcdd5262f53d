"""Readings of weights that were exchanged after the last step, apart from those of the steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from riprap.detectors import score
from riprap.evaluation import ProbeResult
from riprap.types import Reading, ReadingStatus


def final_readings(step: int, results: Mapping[str, ProbeResult], text: str) -> list[Reading]:
    """Return `final_margin` and `final_score` of each behavior, with the reason in `detail`."""
    readings = []
    for name, result in results.items():
        if result.insufficient or not np.isfinite(result.margins).all():
            reason = result.insufficient or "margins are not finite"
            status = ReadingStatus.INSUFFICIENT if result.insufficient else ReadingStatus.ERROR
            readings.append(Reading(step, name, "final_margin", state=status, detail=reason))
            continue
        margin = Reading.of(step, name, "final_margin", float(result.margins.mean()))
        share = Reading.of(step, name, "final_score", score(result.margins), "share")
        readings += [replace(reading, detail=text) for reading in (margin, share)]
    return readings
