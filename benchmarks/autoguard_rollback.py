"""Measure what AutoGuard's rollback costs the new task where replay cannot hold the old ones.

    python benchmarks/autoguard_rollback.py [--seeds 0 1 --grounds digits toy]

One row for each ground and kind of old examples: accuracy on the new task / on the (worst) old one,
the mean over seeds, without any guard, with AutoGuard's defaults (no rollback), with its rollback,
and with one at any price (`keep_learning=False`).
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable

import numpy as np
import torch
from digits import Rows, accuracy, behavior, classifier, loss, tasks, train

from riprap import Behavior, Monitor, guards, signals
from riprap.guards import Guard, Replay, Rollback, SelfDistillationBuffer
from riprap.toy import ToyWorld

KINDS = ("enough", "few", "of another task", "high rate", "contradicting task")
WAYS: dict[str, Callable[[], Rollback | bool] | None] = {
    "no guard": None,
    "default": lambda: False,
    "rollback": lambda: True,
    "at any price": lambda: Rollback(every=100, keep_learning=False),
}
Source = Replay | SelfDistillationBuffer


def guard_of(way: str, source: Source) -> Guard | None:
    """Return the AutoGuard of a way, or None."""
    rollback = WAYS[way]
    return None if rollback is None else guards.AutoGuard(replay=source, rollback=rollback())


def digits(kind: str, way: str, seed: int) -> tuple[float, float]:
    """Train on the second task of permuted digits; return the accuracy on new and old task."""
    (old, old_test), (new, new_test) = tasks(2, 0)
    model = classifier(seed)
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), old, 400, 1 + seed)
    generator = torch.Generator().manual_seed(9)
    noise = (
        torch.rand(60, 64, generator=generator),
        torch.randint(0, 10, (60,), generator=generator),
    )
    examples: dict[str, Rows] = {"few": _rows(old, 100, 103), "of another task": noise}
    if kind == "contradicting task":
        new, new_test = (old[0], (old[1] + 1) % 10), (old_test[0], (old_test[1] + 1) % 10)
    rate = 2e-2 if kind == "high rate" else 1e-3
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    batches = [examples.get(kind, _rows(old, 100, 400))]
    old_behavior = behavior("old", _rows(old, 0, 60))
    monitor = Monitor([old_behavior], signals=signals.per_step(), budget=None)
    guard = guard_of(way, Replay(batches, loss=loss, fraction=0.5, every=2))
    with monitor.watch(model, optimizer, guard=guard):
        train(model, optimizer, new, 600, 50 + seed)
    return accuracy(model, new_test), accuracy(model, old_test)


def _rows(rows: Rows, first: int, last: int) -> Rows:
    return rows[0][first:last], rows[1][first:last]


def toy(kind: str, way: str, seed: int) -> tuple[float, float]:
    """Train the toy world on multiplication; return its accuracy and that of the worst old task."""
    world = ToyWorld()
    model = world.start(seed).train()
    optimizer = world.optimizer(model)
    for group in optimizer.param_groups:
        group["lr"] *= 6 if kind == "high rate" else 1
    pools, task = world.pools(6 if kind == "few" else 512), "C"
    if kind == "of another task":
        other = world.tasks["C_disjoint"]
        rows = [other[torch.arange(60 * i, 60 * i + 60)] for i in range(len(world.old))]
        named = zip(world.old, rows, strict=True)
        pools = [Behavior.next_token(name, part.input_ids, part.targets) for name, part in named]
    if kind == "contradicting task":  # every sum is now one more
        added, task = world.tasks["A"], "contradicting"
        values = added.targets.unique()
        wrong = values[(torch.searchsorted(values, added.targets) + 1) % len(values)]
        world.tasks[task] = type(added)(added.input_ids, wrong)
    guard, data = guard_of(way, SelfDistillationBuffer(pools)), world.batches(task, seed)
    monitor = Monitor(world.behaviors(), signals=signals.per_step(), budget=None)
    with monitor.watch(model, optimizer, guard=guard):
        for _ in range(500):
            world.loss(model, next(data)).backward()
            optimizer.step()
            optimizer.zero_grad()
    model.eval()
    return world.evaluate(model, task), min(world.evaluate(model, old) for old in world.old)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--grounds", nargs="+", default=["digits", "toy"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="riprap")
    print(f"| ground | old examples | {' | '.join(WAYS)} |\n|---|---|{'---|' * len(WAYS)}")
    for ground in args.grounds:
        for kind in KINDS:
            cells = []
            for way in WAYS:
                runs = [{"digits": digits, "toy": toy}[ground](kind, way, s) for s in args.seeds]
                new, old = np.mean(runs, 0)
                cells.append(f"{new:.2f} / {old:.2f}")
            print(f"| {ground} | {kind} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
