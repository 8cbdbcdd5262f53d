"""The continual world in small, for tests: it is pretrained and aligned in seconds."""

from __future__ import annotations

from functools import cache

from experiments.worlds.continual import ContinualConfig, ContinualWorld
from experiments.worlds.continual_rows import Words

SEED = 3
COUNTS = {
    "frames": 3,
    "verbs": 3,
    "harmful": 6,
    "harmless": 6,
    "numbers": 4,
    "letters": 6,
    "relations": 2,
    "subjects": 6,
    "disputed": 6,
    "values": 8,
    "kinds": 3,
}
CONFIG = ContinualConfig(
    words=Words(COUNTS),
    hidden=48,
    feed_forward=96,
    pretraining_steps=450,
    alignment_steps=150,
    start_batch=64,
    pretraining_rate=6e-3,
    alignment_rate=3e-3,
    steps=80,
    batch=24,
    probes=12,
    held_out=24,
)


@cache
def small() -> ContinualWorld:
    """The same world for all tests."""
    return ContinualWorld(CONFIG)
