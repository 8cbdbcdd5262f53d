"""Guards: opt-in interventions that keep what a model already does while it learns on."""

from riprap.guards.adaptive_replay import AdaptiveReplay
from riprap.guards.agem import AGEM
from riprap.guards.base import Guard, GuardView, Proposal, Return
from riprap.guards.clip import Clip
from riprap.guards.composition import Chain, OnAlert, Scheduled
from riprap.guards.constrained_tokens import ConstrainedTokens
from riprap.guards.ema import EMA
from riprap.guards.ewc import EWC, OnlineEWC
from riprap.guards.feature_anchor import FeatureAnchor
from riprap.guards.freeze import Freeze
from riprap.guards.gem import GEM
from riprap.guards.gpm import GPM, TwoSidedGPM
from riprap.guards.jd import PCGrad, UPGrad
from riprap.guards.keeper import Keeper
from riprap.guards.kl import KL
from riprap.guards.l2_sp import L2SP
from riprap.guards.lisa import Lisa
from riprap.guards.mas import MAS
from riprap.guards.o_lora import OLoRA
from riprap.guards.ogd import OGD
from riprap.guards.own_answers import own_answers
from riprap.guards.pools import Pools, spare
from riprap.guards.replay import Replay
from riprap.guards.rollback import Rollback
from riprap.guards.safegrad import SafeGrad
from riprap.guards.si import SI
from riprap.guards.update_projection import UpdateProjection

__all__ = [
    "AGEM",
    "EMA",
    "EWC",
    "GEM",
    "GPM",
    "KL",
    "L2SP",
    "MAS",
    "OGD",
    "SI",
    "AdaptiveReplay",
    "Chain",
    "Clip",
    "ConstrainedTokens",
    "FeatureAnchor",
    "Freeze",
    "Guard",
    "GuardView",
    "Keeper",
    "Lisa",
    "OLoRA",
    "OnAlert",
    "OnlineEWC",
    "PCGrad",
    "Pools",
    "Proposal",
    "Replay",
    "Return",
    "Rollback",
    "SafeGrad",
    "Scheduled",
    "TwoSidedGPM",
    "UPGrad",
    "UpdateProjection",
    "own_answers",
    "spare",
]
