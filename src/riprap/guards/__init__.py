"""Guards: opt-in interventions that keep what a model already does while it learns on."""

from riprap.guards.agem import AGEM
from riprap.guards.base import Guard, GuardView, Proposal
from riprap.guards.composition import Chain, OnAlert, Scheduled
from riprap.guards.gem import GEM
from riprap.guards.gpm import GPM, TwoSidedGPM
from riprap.guards.jd import PCGrad, UPGrad
from riprap.guards.l2_sp import L2SP
from riprap.guards.ogd import OGD
from riprap.guards.safegrad import SafeGrad
from riprap.guards.update_projection import UpdateProjection

__all__ = [
    "AGEM",
    "GEM",
    "GPM",
    "L2SP",
    "OGD",
    "Chain",
    "Guard",
    "GuardView",
    "OnAlert",
    "PCGrad",
    "Proposal",
    "SafeGrad",
    "Scheduled",
    "TwoSidedGPM",
    "UPGrad",
    "UpdateProjection",
]
