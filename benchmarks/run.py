"""Measure what Riprap costs, and print one table.

    python benchmarks/run.py [--only monitor memory] [--quick]

One thread, processor seconds. Figures are ratios to the same training without Riprap in the same
process, or in a fresh process beside it; medians, with the range of all repetitions. A floor is
what the passes themselves must cost. Without `--quick` the suite takes more than an hour.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import guard_cost
import import_cost
import monitor_cost
import other_costs
import torch
from rich.console import Console
from suite import DATA, Asked, Row, machine, print_table

GROUPS: dict[str, Callable[[Asked], Iterator[Row]]] = {
    "monitor": monitor_cost.rows,
    "memory": monitor_cost.memory_rows,
    "selection": other_costs.selection_rows,
    "guards": guard_cost.rows,
    "diagnose": other_costs.diagnose_rows,
    "import": import_cost.rows,
}


def main() -> None:
    """Parse the arguments, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--cases", nargs="+", default=[], help="some cases of a group only")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: some minutes")
    parser.add_argument("--data", type=Path, default=DATA, help="texts to train SmolLM2 on")
    given = parser.parse_args()
    torch.set_num_threads(1)
    console, begun = Console(stderr=True), time.monotonic()

    def progress(text: str) -> None:
        console.print(f"[{(time.monotonic() - begun) / 60:5.1f} min] {text}", highlight=False)

    print(machine(), end="\n\n", flush=True)
    asked = Asked(given.quick, given.cases, given.data, progress)
    print_table(row for group in given.only for row in GROUPS[group](asked))


if __name__ == "__main__":
    main()
