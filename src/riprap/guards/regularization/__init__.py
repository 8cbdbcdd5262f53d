from riprap.guards.regularization._constrained_tokens import ConstrainedTokens
from riprap.guards.regularization._ewc import EWC, OnlineEWC
from riprap.guards.regularization._feature_anchor import DirectionDictionary, FeatureAnchor
from riprap.guards.regularization._kl import KL, counted_positions
from riprap.guards.regularization._l2_sp import L2SP
from riprap.guards.regularization._mas import MAS
from riprap.guards.regularization._o_lora import OLoRA
from riprap.guards.regularization._si import SI

__all__ = [
    "EWC",
    "KL",
    "L2SP",
    "MAS",
    "SI",
    "ConstrainedTokens",
    "DirectionDictionary",
    "FeatureAnchor",
    "OLoRA",
    "OnlineEWC",
    "counted_positions",
]
