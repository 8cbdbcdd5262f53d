"""Measure how often AutoGuard acts when no behavior is in danger.

    python benchmarks/autoguard_idle.py [--tasks null C_context C --seeds 310 311 312 --steps 1000]

The toy world with facts continues with its old mix (`null`), or learns a new task from a quarter of
each batch while the rest is of the old mix, so that no behavior is lost. One row for each task and
seed: the share of steps that AutoGuard changed, the scores at the end of the run with it and
without any guard, on inputs that no guard has seen, and the accuracy on the new task.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from rich.progress import track

from experiments.worlds import FactsWorld
from riprap import Monitor, guards, signals
from riprap.detectors import score
from riprap.evaluation import evaluate
from riprap.toy import Examples
from riprap.toy import batches as mixed

NULL = "null"


def batches(world: FactsWorld, task: str, seed: int) -> Iterator[Examples]:
    """Return batches of the old mix, or of three quarters of it and a quarter of a new task."""
    if task == NULL:
        return world.batches(task, seed=seed)
    new = world.config.batch // 4
    sizes = [*world.mix(world.config.batch - new), new]
    return mixed([world.tasks[name] for name in (*world.old, task)], sizes, seed)


def train(task: str, seed: int, steps: int, guarded: bool) -> tuple[float, str, float]:
    """Return the share of changed steps, scores on unseen inputs, and new-task accuracy."""
    world = FactsWorld()
    model = world.start(seed).train()
    optimizer, data = world.optimizer(model), batches(world, task, seed)
    monitor = Monitor(world.behaviors(), signals=signals.per_step(), budget=None)
    if guarded:
        guard = guards.AutoGuard(replay=guards.SelfDistillationBuffer(world.pools()))
        monitor.begin(model, optimizer, guard)
    for _ in track(range(steps), description=f"{task}, seed {seed}", transient=True):
        world.loss(model, next(data)).backward()
        optimizer.step()
        optimizer.zero_grad()
    monitor.end()
    acted = {action.step for action in monitor.actions if action.applied}
    scores = [f"{score(evaluate(b, model).margins):.2f}" for b in world.unseen()]
    learned = float("nan") if task == NULL else world.evaluate(model, task)
    return len(acted) / steps, ", ".join(scores), learned


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[310, 311, 312])
    parser.add_argument("--tasks", nargs="+", default=[NULL, "C_context", "C"])
    parser.add_argument("--steps", type=int, default=1000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    names = ", ".join(FactsWorld().old)
    print(f"| task | seed | steps changed | with it: {names} | without | new task |")
    print("|---|---|---|---|---|---|")
    for task in args.tasks:
        for seed in args.seeds:
            acted, kept, learned = train(task, seed, args.steps, guarded=True)
            _, plain, _ = train(task, seed, args.steps, guarded=False)
            print(
                f"| {task} | {seed} | {acted:.1%} | {kept} | {plain} | {learned:.2f} |", flush=True
            )


if __name__ == "__main__":
    main()
