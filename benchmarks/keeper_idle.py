"""How often the Keeper acts where nothing is being washed away.

    python benchmarks/keeper_idle.py [--seeds 310 311 312 --steps 1000]

The toy world with facts goes on with its old mix (`null`). One row a seed: share of the steps that
the Keeper changed, and the scores at the end, on inputs that no guard has seen.
"""

from __future__ import annotations

import argparse

import torch
from rich.progress import track

from riprap import Monitor, guards
from riprap.detectors.track import score
from riprap.probing import look
from riprap.studies.worlds import FactsWorld


def row(seed: int, steps: int) -> str:
    """One run, as a row of a table."""
    world = FactsWorld()
    model = world.start(seed).train()
    optimizer, batches = world.optimizer(model), world.batches("null", seed=seed)
    monitor = Monitor(world.behaviors())
    keeper = guards.Keeper(replay=guards.Pools(world.pools()))
    with monitor.watch(model, optimizer, guard=keeper):
        for _ in track(range(steps), description=f"seed {seed}", transient=True):
            world.loss(model, next(batches)).backward()
            optimizer.step()
            optimizer.zero_grad()
    acted = {action.step for action in monitor.actions if action.applied}
    scores = [f"{b.name} {score(look(b, model).margins):.2f}" for b in world.unseen()]
    return f"| {seed} | {len(acted) / steps:.1%} | {', '.join(scores)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[310, 311, 312])
    parser.add_argument("--steps", type=int, default=1000)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print("| seed | steps it changed | scores at the end |", "|---|---|---|", sep="\n")
    for seed in asked.seeds:
        print(row(seed, asked.steps), flush=True)


if __name__ == "__main__":
    main()
