"""Recovery: relearn a few examples on a copy, and classify the loss by what returns.

- `recover` returns a `Recovery`: a verdict with its reason, its `RecoveryEvidence`, and a curve of
  `RecoveryPoint` objects.
- `classify_loss`: the verdict and its reason, from the evidence alone.
- `Examples`: examples in any form. `trainable_copy`, `train_steps`, `learning_rates`,
  `trains_adapters`: the relearning itself, which repairs use too.
- `MIN_PROBES`, `MIN_SCORE_DROP`: fewest probes, and smallest drop, for a verdict; the other
  constants are the verdict's thresholds.
"""

from riprap.diagnosis.recovery._examples import Examples
from riprap.diagnosis.recovery._recover import SHOT_COUNTS, Recovery, RecoveryPoint, recover
from riprap.diagnosis.recovery._recovery_evidence import (
    FORMAT_SHARE,
    KEPT_ABOVE,
    LOST_BELOW,
    ONE_ANSWER_SHARE,
    UNSAID_SHARE,
    RecoveryEvidence,
)
from riprap.diagnosis.recovery._relearn import (
    STEPS,
    learning_rates,
    train_steps,
    trainable_copy,
    trains_adapters,
)
from riprap.diagnosis.recovery._relearning_runs import MIN_PROBES
from riprap.diagnosis.recovery._verdict import (
    MIN_REFERENCE_KNOWLEDGE,
    MIN_SCORE_DROP,
    TOO_FEW_PROBES,
    classify_loss,
)

__all__ = [
    "FORMAT_SHARE",
    "KEPT_ABOVE",
    "LOST_BELOW",
    "MIN_PROBES",
    "MIN_REFERENCE_KNOWLEDGE",
    "MIN_SCORE_DROP",
    "ONE_ANSWER_SHARE",
    "SHOT_COUNTS",
    "STEPS",
    "TOO_FEW_PROBES",
    "UNSAID_SHARE",
    "Examples",
    "Recovery",
    "RecoveryEvidence",
    "RecoveryPoint",
    "classify_loss",
    "learning_rates",
    "recover",
    "train_steps",
    "trainable_copy",
    "trains_adapters",
]
