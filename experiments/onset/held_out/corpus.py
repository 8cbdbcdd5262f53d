"""Corpus: worlds made ready once, their runs recorded by processes, and how many there are."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path

import torch
from torch import nn

from experiments.onset.held_out.characters import Characters
from experiments.onset.held_out.graphs import Graphs
from experiments.onset.held_out.intents import Intents
from experiments.onset.held_out.plan import Recipe
from experiments.onset.held_out.recording import record
from experiments.onset.held_out.sequences import Sequences
from experiments.onset.held_out.world import Behavior, World, known, pretrained
from experiments.onset.trace import load_corpus

WORLDS = ("characters", "intents", "sequences", "graphs")


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


def recorded(left: list[Recipe], out: Path, data: Path, workers: int) -> Iterator[str]:
    """Record runs in processes of one thread each; yield a line for each run."""
    for name in dict.fromkeys(one.world for one in left):
        ready(name, out, data)  # pretrained once, before the workers ask for it
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
        for done in as_completed([pool.submit(_record, one, out, data) for one in left]):
            yield done.result()


def _record(recipe: Recipe, out: Path, data: Path) -> str:
    world, model, behaviors = ready(recipe.world, out, data)
    start = time.process_time()
    record(world, model, behaviors, recipe).save(out)
    return f"{recipe.name}: {time.process_time() - start:.1f} s of a processor"


def path(out: Path, recipe: Recipe) -> Path:
    """Return where a run is stored."""
    return out / "held_out" / f"{recipe.name}.npz"
