"""The real runs, made where they are missing."""

from __future__ import annotations

from pathlib import Path

from experiments.detectors.plan import Plan
from experiments.detectors.simulate import simulate
from experiments.harness.jobs import run_jobs
from experiments.harness.preregistration import Preregistration

RAW = Path("runs/detectors")  # records and margins; not committed


def folder_of(condition: str, seed: int) -> Path:
    """Where a run's record lies."""
    return RAW / f"{condition}-{seed}"


def simulate_all(preregistration: Preregistration, workers: int) -> None:
    """Make every real run of the protocol's plan; finished ones stay as they are."""
    pairs = Plan.of(preregistration).runs()
    run_jobs(simulate, [(*pair, folder_of(*pair), preregistration) for pair in pairs], workers)
