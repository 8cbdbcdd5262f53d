"""Processor time of a selected step and of a plain step by parts: forward, backward, optimizer.

    python benchmarks/selection_parts.py [--case smollm2|full] [--strategy moderate] [--rounds 4]

Two models take turns on the same batches. One thread; 16 x 96 tokens; the first step, which checks
the rows, is left out.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import statistics
from typing import Any

import selection_cost as cost
import torch

from riprap.selection import Selector

PARTS = ("forward", "backward", "optimizer", "all")


def seconds() -> tuple[float, float]:
    """Return this process's seconds so far: of the program, and of the system."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime, used.ru_stime


def parts_of_step(model: Any, optimizer: Any, batch: Any) -> list[tuple[float, float]]:
    """Train on a batch; return the seconds of each part, and of all."""
    times = [seconds()]
    loss = model(**batch).loss
    times.append(seconds())
    loss.backward()
    times.append(seconds())
    optimizer.step()
    optimizer.zero_grad()
    times.append(seconds())
    ends = [*itertools.pairwise(times), (times[0], times[-1])]
    return [(end[0] - begin[0], end[1] - begin[1]) for begin, end in ends]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=["smollm2", "full"], default="smollm2")
    parser.add_argument("--strategy", default="moderate")
    parser.add_argument("--rounds", type=int, default=4)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    given = cost.batches(cost.DATA, 16, 96)
    pair = [cost.smollm2(asked.case != "full") for _ in range(2)]
    optimizers = [cost.optimizer_of(model) for model in pair]
    found: list[list[Any]] = [[], []]
    with Selector(asked.strategy, 0.2).attach(pair[1], optimizers[1]):
        for turn in range(asked.rounds + 1):
            for which in (0, 1) if turn % 2 else (1, 0):
                step = parts_of_step(pair[which], optimizers[which], given[turn])
                if turn:
                    found[which].append(step)
    print("| part | plain, s | selected, s |", "|---|---|---|", sep="\n")
    for index, part in enumerate(PARTS):
        cells = [f"{statistics.median(step[index][0] for step in own):.2f}" for own in found]
        print(f"| {part} | {' | '.join(cells)} |")
    for name, columns in (("program", (0,)), ("with system", (0, 1))):
        totals = [[sum(step[-1][i] for i in columns) for step in own] for own in found]
        ratios = [b / a for a, b in zip(*totals, strict=True)]
        middle = statistics.median(ratios)
        print(f"{name}: {middle:.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
