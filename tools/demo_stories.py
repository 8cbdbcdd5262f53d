"""Make the recorded stories that `riprap demo` shows: `python -m tools.demo_stories`.

Each is a run of the toy world, trained on multiplication, as a compressed record in
`src/riprap/toy/stories`. The records depend on the machine only in the last digits and in their
times.
"""

from __future__ import annotations

import argparse
import lzma
import sqlite3
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from riprap import Monitor
from riprap.guards import AutoGuard, SelfDistillationBuffer
from riprap.toy import STORIES, ToyWorld

SEED, STEPS, PROBE_EVERY = 1000, 150, 10


@dataclass(frozen=True)
class Setup:
    """How a story is trained: with a guard or not, and at which share of the usual rate."""

    is_guarded: bool = False
    rate: float = 1.0


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
    setup, world = SETUPS[name], ToyWorld()
    with tempfile.TemporaryDirectory() as folder:
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
            run_dir=Path(folder),
            metadata={"task": STORIES[name]},
            budget=None,
        )
        with monitor.watch(model, optimizer, guard, steps=steps):
            world.train(model, optimizer, "C", SEED, steps, monitor)
        print(monitor.summary())
        path = monitor.record.path
        assert path is not None
        monitor.record.close()
        return compact(path)


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
