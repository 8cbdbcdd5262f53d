"""Replay guards: learn from old examples along with the new task.

- `Replay`: a fixed share of each step; `AdaptiveReplay`: a share that follows the lost margin;
  `Lisa`: alternating phases.
- Sources of examples: your own batches, a `SelfDistillationBuffer`, or
  `self_generated_examples`. `BatchCycler`, `BatchGuard` and `CyclingGuard` read protected batches,
  and `split_labels` takes one apart.
"""

from riprap.guards.replay._adaptive_replay import AdaptiveReplay
from riprap.guards.replay._batches import BatchCycler, BatchGuard, CyclingGuard, split_labels
from riprap.guards.replay._lisa import Lisa
from riprap.guards.replay._replay import Replay
from riprap.guards.replay._self_distillation_buffer import SelfDistillationBuffer
from riprap.guards.replay._self_generated import self_generated_examples

__all__ = [
    "AdaptiveReplay",
    "BatchCycler",
    "BatchGuard",
    "CyclingGuard",
    "Lisa",
    "Replay",
    "SelfDistillationBuffer",
    "self_generated_examples",
    "split_labels",
]
