"""Selection: which samples of a batch are learned from, by gradients taken sample by sample."""

from riprap.selection.offline import gradient_norms, gradient_products, score
from riprap.selection.scores import Scores
from riprap.selection.selector import Selector, Taken
from riprap.selection.strategies import Strategy

__all__ = [
    "Scores",
    "Selector",
    "Strategy",
    "Taken",
    "gradient_norms",
    "gradient_products",
    "score",
]
