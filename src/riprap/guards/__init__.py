"""Guards: opt-in interventions that keep what a model already does while it learns on."""

from riprap.guards.adaptive_replay import AdaptiveReplay
from riprap.guards.agem import AGEM
from riprap.guards.base import Guard, GuardView, Proposal
from riprap.guards.composition import Chain, OnAlert, Scheduled
from riprap.guards.l2_sp import L2SP
from riprap.guards.pools import Pools, spare
from riprap.guards.replay import Replay

__all__ = [
    "AGEM",
    "L2SP",
    "AdaptiveReplay",
    "Chain",
    "Guard",
    "GuardView",
    "OnAlert",
    "Pools",
    "Proposal",
    "Replay",
    "Scheduled",
    "spare",
]
