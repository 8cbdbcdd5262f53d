"""Selection: which samples of a batch are learned from, by gradients taken sample by sample."""

from riprap.selection._batches import call_of
from riprap.selection._loop_hooks import Attachment
from riprap.selection._proxy_score import error_norms
from riprap.selection._row_losses import IGNORED, Losses, row_losses, without_labels
from riprap.selection._scores import Scores
from riprap.selection._scoring import caught, gradient_norms, gradient_products, score
from riprap.selection._selector import Selector, Taken
from riprap.selection.strategies import Strategy

__all__ = [
    "IGNORED",
    "Attachment",
    "Losses",
    "Scores",
    "Selector",
    "Strategy",
    "Taken",
    "call_of",
    "caught",
    "error_norms",
    "gradient_norms",
    "gradient_products",
    "row_losses",
    "score",
    "without_labels",
]
