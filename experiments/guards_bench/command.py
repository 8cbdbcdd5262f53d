"""`python -m experiments guards_bench`: run the bench, and write its tables and its figure."""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from experiments.guards_bench.grounds import GROUNDS
from experiments.guards_bench.methods import METHODS
from experiments.guards_bench.page import write_page
from experiments.guards_bench.plan import EXPLORATORY, PARTS, Key, Plan
from experiments.guards_bench.simulate import simulate
from experiments.guards_bench.store import Store
from experiments.harness.preregistration import Preregistration

NAME = "guards_bench"
OPENING = f"`python -m experiments amend {NAME}` with `opened: true` and the reason"


def main(arguments: Sequence[str]) -> int:
    """Run the command line; return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    confirming = options.part != EXPLORATORY
    if options.search and confirming:
        parser.error("knobs are searched on the exploratory part only: leave out --search")
    terms = Preregistration.named(NAME)
    if confirming:
        terms.verify()
    plan = Plan.of(terms)
    store = Store(options.out / f"{options.part}.jsonl")
    jobs = plan.jobs(options.part, options.search, options.only, options.seeds)
    known = {} if options.again else store.load()
    run_missing([job for job in jobs if job not in known], store, options.jobs)
    if confirming and not plan.opened:
        print(f"recorded in {store.path}; no page is made before the terms are opened ({OPENING})")
        return 0
    command = f"python -m experiments {NAME} --part {options.part}"
    page = write_page(list(store.load().values()), plan, options.part, options.out, command)
    print(f"wrote {page}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m experiments {NAME}", description=__doc__)
    parser.add_argument("--part", choices=PARTS, default=EXPLORATORY)
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        choices=[*GROUNDS, *METHODS],
        metavar="NAME",
        help=f"grounds ({', '.join(GROUNDS)}) and methods ({', '.join(METHODS)})",
    )
    parser.add_argument("--search", action="store_true", help="all values of knobs, one seed")
    parser.add_argument("--seeds", type=int, metavar="N", help="only the first N seeds")
    parser.add_argument("--again", action="store_true", help="repeat runs that are stored already")
    parser.add_argument("--jobs", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--out", type=Path, default=Path("results", NAME))
    return parser


def run_missing(jobs: Sequence[Key], store: Store, workers: int) -> None:
    """Run jobs in processes of one thread each, and store each result as it comes."""
    if not jobs:
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # before the workers import torch
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    context = multiprocessing.get_context("spawn")
    with (
        Progress(*columns, console=Console(stderr=True)) as progress,
        ProcessPoolExecutor(workers, mp_context=context) as pool,
    ):
        bar = progress.add_task("runs", total=len(jobs))
        for done in as_completed([pool.submit(simulate, *job) for job in jobs]):
            store.add(done.result())
            progress.advance(bar)
