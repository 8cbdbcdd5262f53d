from riprap.guards.replay._adaptive_replay import AdaptiveReplay
from riprap.guards.replay._auto_guard import Keeper
from riprap.guards.replay._batches import Cycling, OfBatches, Protected
from riprap.guards.replay._self_distillation_buffer import Pools, spare
from riprap.guards.replay._lisa import Lisa
from riprap.guards.replay._replay import Replay
from riprap.guards.replay._self_generated import own_answers

__all__ = [
    "AdaptiveReplay",
    "Cycling",
    "Keeper",
    "Lisa",
    "OfBatches",
    "Pools",
    "Protected",
    "Replay",
    "own_answers",
    "spare",
]
