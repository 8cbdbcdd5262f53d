"""Guards: opt-in interventions that keep what a model already does while it learns on."""

from riprap.guards._base import Guard, GuardView, Proposal, RestoreProposal
from riprap.guards._composition import Chain, OnAlert, Scheduled
from riprap.guards._runner import GuardOutcome, run_hook, write_gradient, write_update
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
from riprap.guards.replay import (
    AdaptiveReplay,
    AutoGuard,
    Lisa,
    Replay,
    SelfDistillationBuffer,
    self_generated_examples,
)
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
    "AutoGuard",
    "Chain",
    "Clip",
    "ConstrainedTokens",
    "FeatureAnchor",
    "Freeze",
    "Guard",
    "GuardOutcome",
    "GuardView",
    "Lisa",
    "OLoRA",
    "OnAlert",
    "OnlineEWC",
    "PCGrad",
    "Proposal",
    "Replay",
    "RestoreProposal",
    "Rollback",
    "SafeGrad",
    "Scheduled",
    "SelfDistillationBuffer",
    "TwoSidedGPM",
    "UPGrad",
    "UpdateProjection",
    "run_hook",
    "self_generated_examples",
    "write_gradient",
    "write_update",
]
