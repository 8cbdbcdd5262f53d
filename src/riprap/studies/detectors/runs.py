"""The real runs, made where they are missing."""

from __future__ import annotations

from pathlib import Path

from riprap.detectors import Protocol
from riprap.studies.detectors.plan import Plan
from riprap.studies.detectors.simulate import simulate
from riprap.studies.parallel import in_parallel

RAW = Path("runs/detectors")  # records and margins; not committed


def folder_of(condition: str, seed: int) -> Path:
    """Where a run's record lies."""
    return RAW / f"{condition}-{seed}"


def simulate_all(protocol: Protocol, workers: int) -> None:
    """Make every real run of the protocol's plan; finished ones stay as they are."""
    pairs = Plan.of(protocol).runs()
    in_parallel(simulate, [(*pair, folder_of(*pair), protocol) for pair in pairs], workers)
