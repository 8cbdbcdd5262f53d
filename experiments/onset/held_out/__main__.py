"""`python -m experiments.onset.held_out --out runs/onset`: record the runs of the held-out worlds.

A run that is there already is not recorded again.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from torch import nn

from experiments.onset.held_out.characters import Characters
from experiments.onset.held_out.graphs import Graphs
from experiments.onset.held_out.intents import Intents
from experiments.onset.held_out.plan import Recipe, plan
from experiments.onset.held_out.recording import record
from experiments.onset.held_out.sequences import Sequences
from experiments.onset.held_out.texts import DATA
from experiments.onset.held_out.world import Behavior, World, known, pretrained
from experiments.onset.trace import load_corpus

WORLDS = ("characters", "intents", "sequences", "graphs")


def main() -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.onset.held_out", description=(__doc__ or "").split(": ")[1]
    )
    parser.add_argument("--out", type=Path, default=Path("runs/onset"), help="folder of corpora")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of public data sets")
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    options = parser.parse_args()
    try:
        plans = [plan(make(name, options.data)) for name in WORLDS]
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    recipes = [one for turn in zip(*plans, strict=True) for one in turn]
    left = [one for one in recipes if not _path(options.out, one).exists()]
    print(f"{len(recipes)} runs, {len(recipes) - len(left)} of them recorded already", flush=True)
    for count, line in enumerate(_recorded(left, options.out, options.data, options.workers), 1):
        print(f"{count}/{len(left)} {line}", flush=True)
    print_shares(options.out)
    return 0


def make(name: str, data: Path) -> World:
    """Return a world by name."""
    if name == "characters":
        return Characters(data)
    if name == "intents":
        return Intents(data)
    return {"sequences": Sequences, "graphs": Graphs}[name]()


@cache
def ready(name: str, out: Path, data: Path) -> tuple[World, nn.Module, dict[str, Behavior]]:
    """Return a world, its pretrained model and the behaviors that this has."""
    world = make(name, data)
    model = pretrained(world, out / "pretrained")
    return world, model, known(world, model)


def print_shares(out: Path) -> None:
    """Print how many runs and behavior-runs there are, and the share that breaks; no more."""
    runs = load_corpus(out, "held_out", "confirmatory")
    for name in (*WORLDS, "all"):
        of_world = [run for run in runs if name in (run.about["world"], "all")]
        broken = [run.break_step(own) is not None for run in of_world for own in run.behaviors]
        if broken:
            share = sum(broken) / len(broken)
            print(f"{name}: {len(of_world)} runs, {len(broken)} behavior-runs, {share:.0%} break")


def _recorded(left: list[Recipe], out: Path, data: Path, workers: int) -> Iterator[str]:
    """Record runs in processes; yield a line for each."""
    for name in dict.fromkeys(one.world for one in left):
        ready(name, out, data)  # pretrained once, before the workers ask for it
    with multiprocessing.get_context("spawn").Pool(workers, torch.set_num_threads, (1,)) as pool:
        yield from pool.imap_unordered(_record, [(one, out, data) for one in left])


def _record(task: tuple[Recipe, Path, Path]) -> str:
    recipe, out, data = task
    world, model, behaviors = ready(recipe.world, out, data)
    start = time.process_time()
    record(world, model, behaviors, recipe).save(out)
    return f"{recipe.name}: {time.process_time() - start:.1f} s of a processor"


def _path(out: Path, recipe: Recipe) -> Path:
    return out / "held_out" / f"{recipe.name}.npz"


if __name__ == "__main__":
    sys.exit(main())
