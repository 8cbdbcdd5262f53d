"""Guards: opt-in interventions that keep what a model already does while it learns on."""

from riprap.guards.agem import AGEM
from riprap.guards.base import Guard, GuardView, Proposal, Return
from riprap.guards.composition import Chain, OnAlert, Scheduled
from riprap.guards.l2_sp import L2SP
from riprap.guards.rollback import Rollback

__all__ = [
    "AGEM",
    "L2SP",
    "Chain",
    "Guard",
    "GuardView",
    "OnAlert",
    "Proposal",
    "Return",
    "Rollback",
    "Scheduled",
]
