"""The real runs, made where they are missing."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from riprap.detectors import Protocol
from riprap.studies.detectors.plan import Plan
from riprap.studies.detectors.simulate import simulate

RAW = Path("runs/detectors")  # records and margins; not committed


def folder_of(condition: str, seed: int) -> Path:
    """Where a run's record lies."""
    return RAW / f"{condition}-{seed}"


def simulate_all(protocol: Protocol, workers: int) -> None:
    """Make every real run of the protocol's plan; finished ones stay as they are."""
    pairs = Plan.of(protocol).runs()
    os.environ["OMP_NUM_THREADS"] = "1"  # before the workers import torch
    context = multiprocessing.get_context("spawn")
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with (
        Progress(*columns, console=Console(stderr=True)) as progress,
        ProcessPoolExecutor(workers, mp_context=context) as pool,
    ):
        bar = progress.add_task("runs", total=len(pairs))
        jobs = [pool.submit(simulate, *pair, folder_of(*pair), protocol) for pair in pairs]
        for job in as_completed(jobs):
            job.result()
            progress.advance(bar)
