"""`python -m experiments.onset.real`: record the runs of the plan, or write the corpus's page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from experiments.onset.real.page import write_page
from experiments.onset.real.plan import PLAN
from experiments.onset.real.run import path_of, record_run


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.onset.real", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the corpora")
    parser.add_argument("--half", choices=("exploratory", "confirmatory"), help="only this half")
    parser.add_argument("--limit", type=int, help="record at most so many runs now")
    parser.add_argument("--page", action="store_true", help="write the README, and record nothing")
    options = parser.parse_args(arguments)
    if options.page:
        write_page(options.out)
        return
    torch.set_num_threads(1)  # a result does not depend on the machine's load
    missing = [c for c in PLAN if options.half in (None, c.half)]
    missing = [c for c in missing if not path_of(c, options.out).exists()][: options.limit]
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("recording", total=len(missing))
        for number, condition in enumerate(missing, 1):
            bar.update(task, description=condition.name)
            record_run(condition, options.out)
            bar.update(task, completed=number)
            bar.console.print(f"{number}/{len(missing)} {condition.name}")


if __name__ == "__main__":
    main()
