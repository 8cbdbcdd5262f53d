"""Guards: opt-in interventions that preserve behaviors while the model learns a new task.

A guard changes the gradient before a step, the update after it, or restores an earlier state. Give
it to `Monitor.watch(model, optimizer, guard=...)`. Your own guard is a subclass of `Guard`.

- Projection (`riprap.guards.projection`): `AGEM`, `GEM`, `PCGrad`, `UPGrad`, `UpdateProjection`,
  `OGD`, `GPM`, `TwoSidedGPM`, `SafeAnchor`, `SafeGrad`.
- Regularization (`riprap.guards.regularization`): `L2SP`, `EWC`, `OnlineEWC`, `SI`, `MAS`, `KL`,
  `DERpp`, `LwF`, `MarginAnchor`, `ConstrainedTokens`, `FeatureAnchor`, `OLoRA`.
- `AutoGuard`, the default guard: replays, and projects steps, as the monitor's readings require.
- Replay (`riprap.guards.replay`): `Replay`, `AdaptiveReplay`, `Lisa`; `SelfDistillationBuffer` and
  `self_generated_examples` provide examples.
- Weights (`riprap.guards.weights`): `Rollback`, `Freeze`, `Clip`, `EMA`.
- Composition: `Chain`, `OnAlert`, `Scheduled`.

`run_hook`, `write_gradient` and `write_update` run a guard; the monitor calls them.
`describe_actions` says in one sentence for each guard what it did.
"""

from riprap.guards._auto_guard import AutoGuard
from riprap.guards._base import Guard, GuardView, Proposal, RestoreProposal
from riprap.guards._composition import Chain, OnAlert, Scheduled
from riprap.guards._runner import GuardOutcome, run_hook, write_gradient, write_update
from riprap.guards._summary import describe_actions
from riprap.guards.projection import (
    AGEM,
    GEM,
    GPM,
    OGD,
    PCGrad,
    SafeAnchor,
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
    DERpp,
    FeatureAnchor,
    LwF,
    MarginAnchor,
    OLoRA,
    OnlineEWC,
)
from riprap.guards.replay import (
    AdaptiveReplay,
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
    "DERpp",
    "FeatureAnchor",
    "Freeze",
    "Guard",
    "GuardOutcome",
    "GuardView",
    "Lisa",
    "LwF",
    "MarginAnchor",
    "OLoRA",
    "OnAlert",
    "OnlineEWC",
    "PCGrad",
    "Proposal",
    "Replay",
    "RestoreProposal",
    "Rollback",
    "SafeAnchor",
    "SafeGrad",
    "Scheduled",
    "SelfDistillationBuffer",
    "TwoSidedGPM",
    "UPGrad",
    "UpdateProjection",
    "describe_actions",
    "run_hook",
    "self_generated_examples",
    "write_gradient",
    "write_update",
]
