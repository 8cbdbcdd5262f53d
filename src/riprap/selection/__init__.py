"""Row selection by per-sample gradients.

`Selector` chooses the rows of each batch that the optimizer learns from. `gradient_norms`,
`gradient_products` and `score` compute per-sample gradients and scores outside of training.
`riprap.selection.strategies` has the strategies; your own strategy is a subclass of `Strategy`.
"""

from riprap.selection._batches import count_rows, forward_args
from riprap.selection._loop_hooks import LoopAttachment
from riprap.selection._protected_directions import apply_preconditioner
from riprap.selection._proxy_score import error_norms
from riprap.selection._row_losses import IGNORE_INDEX, RowLossFn, row_losses, without_labels
from riprap.selection._scores import Scores
from riprap.selection._scoring import (
    compute_grad_samples,
    gradient_norms,
    gradient_products,
    score,
)
from riprap.selection._selector import SelectionRecord, Selector
from riprap.selection.strategies import Strategy

__all__ = [
    "IGNORE_INDEX",
    "LoopAttachment",
    "RowLossFn",
    "Scores",
    "SelectionRecord",
    "Selector",
    "Strategy",
    "apply_preconditioner",
    "compute_grad_samples",
    "count_rows",
    "error_norms",
    "forward_args",
    "gradient_norms",
    "gradient_products",
    "row_losses",
    "score",
    "without_labels",
]
