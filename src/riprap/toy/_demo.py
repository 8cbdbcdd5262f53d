"""The main job in a minute: a small model learns a new task; its monitor says what that costs."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from experiments.worlds import ToyWorld
from riprap.commands.watch import live_table, outcome, rows
from riprap.monitor import Monitor

STEPS = 200


def run(seed: int, runs: Path, quiet: bool = False) -> dict[str, Any]:
    """Train the toy world's start if it is not cached, then watch it learn task C.

    Args:
        seed: of the start and of the order of the data.
        runs: folder under which the run gets one of its own.
        quiet: write nothing to standard output.

    Returns:
        what the run ended with; see `launch.show.outcome`.
    """
    torch.set_num_threads(1)  # the world is too small for two cores to help each other
    console = Console(stderr=True) if quiet else Console()
    world = ToyWorld()
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("teaching a small model A, B and over_refusal", total=None)
        model = world.start(
            seed, progress=lambda done, total: progress.update(bar, completed=done, total=total)
        )
    console.print("The model adds modulo 23 (A), refuses (B) and complies (over_refusal).")
    console.print("Now it is trained on C, multiplication of the same numbers.\n")
    folder = runs / f"demo-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    monitor = Monitor(
        world.behaviors(), run_dir=folder, metadata={"task": "Toy world: learning C", "seed": seed}
    )
    optimizer, batches = world.optimizer(model), world.batches("C", seed=seed)
    with live_table(monitor, STEPS, quiet) as table, monitor.watch(model, optimizer):
        for step in range(1, STEPS + 1):
            world.loss(model, next(batches)).backward()
            optimizer.step()
            optimizer.zero_grad()
            table.update(step, rows(monitor))
    return outcome(monitor, folder) | {"new task": world.evaluate(model, "C")}
