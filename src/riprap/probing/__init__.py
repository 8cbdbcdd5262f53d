"""Passes over probes that leave no trace on training."""

from riprap.probing.layers import find_layer
from riprap.probing.passes import (
    Look,
    checked,
    fisher_diagonal,
    gradient_of,
    look,
    look_together,
    loss_gradient,
    measure,
    shared_passes,
    start,
)
from riprap.probing.traces import no_trace

__all__ = [
    "Look",
    "checked",
    "find_layer",
    "fisher_diagonal",
    "gradient_of",
    "look",
    "look_together",
    "loss_gradient",
    "measure",
    "no_trace",
    "shared_passes",
    "start",
]
