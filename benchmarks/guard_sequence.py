"""Compare guards at their defaults over five permuted-digits tasks in a row.

    python benchmarks/guard_sequence.py [--seeds 0 1 2 --guards GEM PCGrad]

One row for each guard and optimizer: for each seed the mean accuracy over all five tasks at the
end. Each task is trained for 220 steps of 32 rows; 60 rows of each earlier one are the probes.
A guard whose row is below that of `none` does harm.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from digits import Rows, accuracy, behavior, classifier, tasks, train

from riprap import Monitor, guards, signals
from riprap.guards import Guard

GUARDS: dict[str, Callable[[], Guard | None]] = {
    "none": lambda: None,
    "AGEM": guards.AGEM,
    "GEM": guards.GEM,
    "GEM, strength 0.5": partial(guards.GEM, strength=0.5),
    "GEM, the paper's": partial(guards.GEM, of="loss", normalize=False),
    "PCGrad": guards.PCGrad,
    "PCGrad, the paper's": partial(guards.PCGrad, of="loss", normalize=False),
    "UPGrad": guards.UPGrad,
    "UPGrad, the paper's": partial(guards.UPGrad, of="loss", normalize=False),
    "UpdateProjection": guards.UpdateProjection,
    "OGD": guards.OGD,
    "GPM": guards.GPM,
    "SafeGrad": guards.SafeGrad,
    "SafeGrad, refresh 20": partial(guards.SafeGrad, refresh=20),
}
STEPS, KEPT = 220, 60


def run(make: Callable[[], Guard | None], adam: bool, seed: int) -> float:
    """Train on the tasks in a row, and return the mean accuracy over all of them."""
    model, sequence, memory = classifier(seed), tasks(5, seed), list[Rows]()
    for index, (rows, _) in enumerate(sequence):
        optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if adam:
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        at = 100 * seed + index
        guard = make() if memory else None
        if guard is None:
            train(model, optimizer, rows, STEPS, at)
        else:
            old = [behavior(f"task {i}", kept) for i, kept in enumerate(memory)]
            monitor = Monitor(old, signals=signals.per_step(), budget=None)
            with monitor.watch(model, optimizer, guard=guard):
                train(model, optimizer, rows, STEPS, at)
        chosen = torch.randperm(len(rows[1]), generator=torch.Generator().manual_seed(at))[:KEPT]
        memory.append((rows[0][chosen], rows[1][chosen]))
    return float(np.mean([accuracy(model, test) for _, test in sequence]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--guards", nargs="+", choices=GUARDS, default=list(GUARDS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| guard | SGD | Adam |\n|---|---|---|")
    for name in args.guards:
        found = [
            ", ".join(f"{run(GUARDS[name], adam, seed):.2f}" for seed in args.seeds)
            for adam in (False, True)
        ]
        print(f"| {name} | {found[0]} | {found[1]} |", flush=True)


if __name__ == "__main__":
    main()
