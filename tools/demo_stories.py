"""Make the recorded stories that `riprap demo` shows: `python -m tools.demo_stories`.

Each is a run of the toy world, trained on multiplication, as a compressed record in
`src/riprap/toy/stories`. The base is pretrained on the machine, so that margins differ by a few
percent between processors.
"""

from __future__ import annotations

import argparse
import lzma
import sqlite3
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_model

from riprap import Monitor
from riprap.guards import AutoGuard, SelfDistillationBuffer
from riprap.toy import STORIES, ToyWorld

SEED, STEPS, PROBE_EVERY = 1000, 150, 10


@dataclass(frozen=True)
class Setup:
    """How a run is trained: with a guard or not, at which share of the usual rate, on what.

    Attributes:
        stop_on: level of an alert at which training stops; None: it does not.
        task: name of the new task in the toy world.
        checkpoint_every: steps between two recorded checkpoints; 0: there are none.
    """

    is_guarded: bool = False
    rate: float = 1.0
    stop_on: str | None = None
    task: str = "C"
    checkpoint_every: int = 0


SETUPS = {
    "caught-early": Setup(is_guarded=True),
    "the-loss-fell": Setup(),
    "nothing-trained": Setup(rate=0.0),
}


def main() -> None:
    """Make all stories, and print their sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    folder = Path(__file__).parents[1] / "src" / "riprap" / "toy" / "stories"
    parser.add_argument("--out", type=Path, default=folder, help="folder of the stories")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    for name in STORIES:
        data = make(name)
        (out / f"{name}.sqlite.xz").write_bytes(data)
        print(f"{name}: {len(data):,} bytes")


def make(name: str, steps: int = STEPS) -> bytes:
    """Train a story and return its compressed record."""
    with tempfile.TemporaryDirectory() as folder:
        return compact(train(SETUPS[name], STORIES[name], Path(folder), steps))


def train(setup: Setup, title: str, folder: Path, steps: int = STEPS) -> Path:
    """Train the toy model, and return the record of the run."""
    world = ToyWorld()
    model = world.start(SEED)
    guard = None
    if setup.is_guarded:  # it replays other inputs than the probes
        guard = AutoGuard(replay=SelfDistillationBuffer(world.displayed(world.pools())))
    optimizer = world.optimizer(model)
    for group in optimizer.param_groups:
        group["lr"] *= setup.rate
    monitor = Monitor(
        world.displayed(world.behaviors()),
        probe_every=PROBE_EVERY,
        run_dir=folder,
        metadata={"task": title},
        budget=None,
        stop_on=setup.stop_on,
    )

    def save_checkpoint(step: int) -> None:
        if setup.checkpoint_every and step % setup.checkpoint_every == 0:
            file = folder / "checkpoints" / f"checkpoint-{step}" / "model.safetensors"
            file.parent.mkdir(parents=True)
            save_model(model, str(file))
            monitor.log_checkpoint(file.parent)

    with monitor.watch(model, optimizer, guard, steps=steps):
        world.train(model, optimizer, setup.task, SEED, steps, monitor, save_checkpoint)
    print(monitor.summary())
    path = monitor.record.path
    assert path is not None
    monitor.record.close()
    return path


def compact(path: Path) -> bytes:
    """Return a record as one small file without a log beside it, compressed."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "record.sqlite"
        connection = sqlite3.connect(path)
        connection.execute("VACUUM INTO ?", (str(copy),))
        connection.close()
        return lzma.compress(copy.read_bytes(), preset=9 | lzma.PRESET_EXTREME)


if __name__ == "__main__":
    main()
