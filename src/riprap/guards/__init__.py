"""Guards: opt-in interventions that keep what a model already does while it learns on."""

from riprap.guards.agem import AGEM
from riprap.guards.base import Guard, GuardView, Proposal
from riprap.guards.clip import Clip
from riprap.guards.composition import Chain, OnAlert, Scheduled
from riprap.guards.constrained_tokens import ConstrainedTokens
from riprap.guards.ema import EMA
from riprap.guards.ewc import EWC, OnlineEWC
from riprap.guards.feature_anchor import FeatureAnchor
from riprap.guards.freeze import Freeze
from riprap.guards.kl import KL
from riprap.guards.l2_sp import L2SP
from riprap.guards.lisa import Lisa
from riprap.guards.mas import MAS
from riprap.guards.o_lora import OLoRA
from riprap.guards.si import SI

__all__ = [
    "AGEM",
    "EMA",
    "EWC",
    "KL",
    "L2SP",
    "MAS",
    "SI",
    "Chain",
    "Clip",
    "ConstrainedTokens",
    "FeatureAnchor",
    "Freeze",
    "Guard",
    "GuardView",
    "Lisa",
    "OLoRA",
    "OnAlert",
    "OnlineEWC",
    "Proposal",
    "Scheduled",
]
