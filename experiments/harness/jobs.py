"""Run the jobs of an experiment in local processes or on a Ray cluster, with a progress bar."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

import riprap
from experiments.harness.cache import CachedRun
from experiments.harness.plan import StudyPlan
from experiments.harness.preregistration import Preregistration
from riprap.errors import ConfigError, MissingExtraError, RiprapError

Work = Callable[..., Any]
Job = tuple[Any, ...]
CHECKOUT = Path(__file__).parents[2]


class JobError(RiprapError):
    """A job that failed; the text names the job and the first error."""


def run_jobs(
    work: Work, jobs: Sequence[Job], workers: int = 2, ray: str | None = None
) -> list[Any]:
    """Run `work(*job)` for each job and return the results in the order of the jobs.

    Jobs whose results are cached are read in this process. The others run in processes of one
    thread each.

    Args:
        work: an importable function.
        workers: number of local processes, or CPUs of a Ray cluster that is started here.
        ray: address of a Ray cluster; `auto`: the running one, or else one that is started here.
            None: local processes.

    Raises:
        JobError: a job failed; jobs that have not started are canceled.
        MissingExtraError: `ray` is given and not installed.
        ConfigError: no Ray cluster answers at the address.
    """
    missing = [index for index, job in enumerate(jobs) if not _is_cached(work, job)]
    results: dict[int, Any] = {}
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("runs", total=len(jobs), completed=len(jobs) - len(missing))
        if missing:
            todo = [jobs[index] for index in missing]
            done = _on_ray(work, todo, workers, ray) if ray else _locally(work, todo, workers)
            for place, result in done:
                results[missing[place]] = result
                progress.advance(bar)
    return [results[index] if index in results else work(*job) for index, job in enumerate(jobs)]


def _is_cached(work: Work, job: Job) -> bool:
    return isinstance(work, CachedRun) and work.path(*job).exists()


def job_name(work: Work, job: Job) -> str:
    """Name a job by its function and its arguments, without plans and data."""
    parts = [
        str(part)
        for part in job
        if isinstance(part, str | int | float)
        or (
            type(part).__module__.startswith("experiments.")
            and not isinstance(part, StudyPlan | Preregistration)
        )
    ]
    module = work.__module__.removeprefix("experiments.").removesuffix(".simulate")
    return f"{module}: {work.__name__}({', '.join(parts)})"


def _failed(work: Work, job: Job, problem: BaseException) -> JobError:
    return JobError(f"{job_name(work, job)} failed: {type(problem).__name__}: {problem}")


def _locally(work: Work, jobs: Sequence[Job], workers: int) -> Iterator[tuple[int, Any]]:
    """Yield (index, result) as jobs finish in local processes."""
    os.environ["OMP_NUM_THREADS"] = "1"  # before the workers import torch
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = {pool.submit(work, *job): index for index, job in enumerate(jobs)}
        for future in as_completed(futures):
            try:
                yield futures[future], future.result()
            except Exception as problem:
                pool.shutdown(cancel_futures=True)
                raise _failed(work, jobs[futures[future]], problem) from problem


def _on_ray(
    work: Work, jobs: Sequence[Job], workers: int, address: str
) -> Iterator[tuple[int, Any]]:
    """Yield (index, result) as jobs finish on a Ray cluster; cached files are copied back."""
    try:
        import ray
    except ModuleNotFoundError as problem:
        raise MissingExtraError(
            "ray is not installed; install it with `pip install 'riprap[ray]'`"
        ) from problem
    with tempfile.TemporaryDirectory() as folder:
        own = [CHECKOUT / name for name in ("experiments", "examples")]
        for source in (*own, Path(riprap.__file__).parent):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, Path(folder, source.name), ignore=ignored)
        settings: dict[str, Any] = {
            "runtime_env": {"working_dir": folder, "env_vars": {"OMP_NUM_THREADS": "1"}},
            "log_to_driver": False,
            "logging_level": "ERROR",
        }
        try:
            ray.init(address=address, **settings)
        except ConnectionError as problem:
            if address != "auto":
                raise ConfigError(f"no Ray cluster answers at {address}: {problem}") from problem
            ray.init(address="local", num_cpus=workers, include_dashboard=False, **settings)
        try:
            task = ray.remote(num_cpus=1, max_retries=0)(_run_on_worker)
            futures = {task.remote(work, job): index for index, job in enumerate(jobs)}
            waiting = list(futures)
            while waiting:
                (future,), waiting = ray.wait(waiting)
                job = jobs[futures[future]]
                try:
                    result, files = ray.get(future)
                except ray.exceptions.RayError as problem:
                    cause = getattr(problem, "cause", None) or problem
                    raise _failed(work, job, cause) from problem
                if isinstance(work, CachedRun):
                    work.unpack(files, *job)
                yield futures[future], result
        finally:
            ray.shutdown()


def _run_on_worker(work: Work, job: Job) -> tuple[Any, bytes]:
    """Run a job on a machine of the cluster; return its result and its cached files."""
    result = work(*job)
    return result, work.pack(*job) if isinstance(work, CachedRun) else b""
