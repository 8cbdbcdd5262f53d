"""Guards: opt-in interventions that keep what a model already does while it learns on."""

from riprap.guards._base import Guard, GuardView, Proposal, Return
from riprap.guards._composition import Chain, OnAlert, Scheduled
from riprap.guards._runner import Outcome, put_gradient, put_update, run
from riprap.guards.projection import (
    AGEM,
    GEM,
    GPM,
    OGD,
    PCGrad,
    SafeGrad,
    TwoSidedGPM,
    UpdateProjection,
    UPGrad,
)
from riprap.guards.regularization import (
    EWC,
    KL,
    L2SP,
    MAS,
    SI,
    ConstrainedTokens,
    FeatureAnchor,
    OLoRA,
    OnlineEWC,
)
from riprap.guards.replay import AdaptiveReplay, Keeper, Lisa, Pools, Replay, own_answers, spare
from riprap.guards.weights import EMA, Clip, Freeze, Rollback

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
    "Outcome",
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
    "put_gradient",
    "put_update",
    "run",
    "spare",
]
