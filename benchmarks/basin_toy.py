"""Basin of the toy world: along 100 directions, on a plane, and while a new task is learned.

    python benchmarks/basin_toy.py [--directions 100 --out results/basin]

Exploratory seed 1000. Writes the figures, prints the tables.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from basin_cost import table
from rich.progress import Progress as Bar
from torch import Tensor, nn

from riprap.diagnosis.basins import basin, basin_drift, basin_plane
from riprap.report import basin_figure, drift_figure, plane_figure, save_figure
from riprap.toy import ToyWorld

SEED = 1000
STEPS = (0, 10, 30, 100, 400)


def checkpoints(world: ToyWorld, model: nn.Module, task: str) -> dict[str, dict[str, Tensor]]:
    """Return the weights at each of `STEPS` of the new task."""
    optimizer, batches = world.optimizer(model), world.batches(task, SEED)
    found = {}
    for step in range(max(STEPS) + 1):
        if step in STEPS:
            own = model.named_parameters()
            found[f"step {step}"] = {name: part.detach().clone() for name, part in own}
        world.loss(model, next(batches)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directions", type=int, default=100)
    parser.add_argument("--drift", type=int, default=20, help="directions at each checkpoint")
    parser.add_argument("--out", type=Path, default=Path("results/basin"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    world = ToyWorld()
    behaviors = world.behaviors()
    with Bar() as bar:
        task = bar.add_task("points")

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        start = time.process_time()
        line = basin(world.start(SEED), behaviors, asked.directions, progress=show)
        spent = time.process_time() - start
        plane = basin_plane(world.start(SEED), behaviors, radius=1.0, progress=show)
        run = checkpoints(world, world.start(SEED), "C")
        drift = basin_drift(world.start(SEED), run, behaviors, asked.drift, progress=show)
    print(f"{spent:.1f} processor seconds for the sweep\n")
    print(table(line))
    for label, found in drift.items():
        print(f"\n{label} of task C, {table(found)}")
    save_figure(basin_figure(line, "Toy world, seed 1000"), asked.out / "toy.png")
    save_figure(plane_figure(plane, "Toy world on a plane"), asked.out / "toy_plane.png")
    save_figure(drift_figure(drift, "Toy world learns task C"), asked.out / "toy_drift.png")


if __name__ == "__main__":
    main()
