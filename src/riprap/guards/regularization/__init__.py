"""Regularization guards: add the gradient of a penalty to the task gradient.

- On the weights: `L2SP`, `EWC`, `OnlineEWC`, `SI`, `MAS`, `MarginAnchor`, and `OLoRA` for adapters.
- On the outputs: `KL`, `DERpp`, `LwF`, `ConstrainedTokens`.
- On activations: `FeatureAnchor`, with `DirectionDictionary` if there is no sparse autoencoder.
"""

from riprap.guards.regularization._constrained_tokens import ConstrainedTokens
from riprap.guards.regularization._der import DERpp
from riprap.guards.regularization._ewc import EWC, OnlineEWC
from riprap.guards.regularization._feature_anchor import DirectionDictionary, FeatureAnchor
from riprap.guards.regularization._kl import KL
from riprap.guards.regularization._l2_sp import L2SP
from riprap.guards.regularization._lwf import LwF
from riprap.guards.regularization._margin_anchor import MarginAnchor
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
    "DERpp",
    "DirectionDictionary",
    "FeatureAnchor",
    "LwF",
    "MarginAnchor",
    "OLoRA",
    "OnlineEWC",
]
