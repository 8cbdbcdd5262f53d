"""`python -m experiments.onset.unlike`: record the exploratory runs on unlike worlds."""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.harness.jobs import run_jobs
from experiments.onset.trace import Trace
from experiments.onset.unlike.page import page
from experiments.onset.unlike.plan import MODELS, WORLDS, runs
from experiments.onset.unlike.record import pretrain_once, record_once


def main() -> None:
    """Pretrain the models, record the runs that are not stored yet, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m experiments.onset.unlike", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/onset"), help="folder of the runs")
    parser.add_argument("--page", type=Path, default=Path("results/onset/unlike.md"))
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    options = parser.parse_args()
    models = [(world, number, options.out) for world in WORLDS for number in range(MODELS)]
    run_jobs(pretrain_once, models, options.workers)
    jobs = [(run, options.out) for run in runs()]
    paths = run_jobs(record_once, jobs, options.workers)
    command = f"python -m experiments.onset.unlike --out {options.out}"
    options.page.parent.mkdir(parents=True, exist_ok=True)
    options.page.write_text(page([Trace.load(path) for path in paths], command), encoding="utf-8")


if __name__ == "__main__":
    main()
