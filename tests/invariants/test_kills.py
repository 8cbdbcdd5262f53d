"""A run that is killed at random points and resumed ends with the record of an unbroken run."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
import warnings
from pathlib import Path

import pytest
import torch

import resuming

pytestmark = pytest.mark.slow

KILLS = 100
STEPS = 20


def child(folder: Path, pipe: int) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    resuming.train(folder, STEPS, committed=lambda count: os.write(pipe, f"{count} ".encode()))


def attempt(folder: Path, limit: float) -> tuple[bool, int]:
    """Run to the end, or `limit` seconds: whether it was killed, how many rows it vouched for."""
    reading, writing = os.pipe()
    process = multiprocessing.get_context("fork").Process(target=child, args=(folder, writing))
    process.start()
    os.close(writing)
    process.join(limit)
    killed = process.is_alive()
    if killed:
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
    with os.fdopen(reading) as said:
        vouched = [int(count) for count in said.read().split()]
    assert killed or process.exitcode == 0
    return killed, vouched[-1] if vouched else 0


def test_a_hundred_kills_lose_no_reading(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    began = time.monotonic()
    assert not attempt(whole, 120)[0]
    lasts = time.monotonic() - began
    expected = resuming.content(whole)
    assert len(expected["readings"]) > 10 * STEPS
    chance, kills, runs, resumed = random.Random(0), 0, 0, 0
    while kills < KILLS:
        folder, runs = tmp_path / f"run-{runs}", runs + 1
        folder.mkdir()
        killed = True
        while killed:
            before = resuming.every_row(folder)
            resumed += bool(resuming.checkpoints(folder))
            killed, vouched = attempt(folder, chance.uniform(0, 0.7 * lasts))
            kills += killed
            after = resuming.every_row(folder)
            assert after[: len(before)] == before, "a committed reading was lost or changed"
            assert len(after) >= vouched, "a reading that was said to be committed is not there"
        assert resuming.content(folder) == expected
    assert resumed > KILLS / 4  # most attempts continued from a checkpoint, not from the start
