"""The runs of a study side by side, under a progress bar."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn


def run_jobs(work: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], workers: int) -> list[Any]:
    """`work(*job)` for each job, in processes of one thread each.

    Returns:
        what came of them, in the order of the jobs.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # before the workers import torch
    context = multiprocessing.get_context("spawn")
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with (
        Progress(*columns, console=Console(stderr=True)) as progress,
        ProcessPoolExecutor(workers, mp_context=context) as pool,
    ):
        bar = progress.add_task("runs", total=len(jobs))
        futures = [pool.submit(work, *job) for job in jobs]
        for future in as_completed(futures):
            future.result()
            progress.advance(bar)
        return [future.result() for future in futures]
