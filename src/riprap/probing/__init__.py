"""Passes over probes that leave no trace on training."""

from riprap.probing.answers import answers
from riprap.probing.generation import generate
from riprap.probing.layers import find_layer, layer_names
from riprap.probing.linears import LinearLayer, Moments, layer_moments, linear_layers
from riprap.probing.losses import Loss, moved, own_loss
from riprap.probing.passes import (
    Look,
    checked,
    gradient_at,
    gradient_of,
    look,
    look_together,
    loss_gradient,
    measure,
    shared_passes,
    start,
)
from riprap.probing.singles import fisher_diagonal, margin_gradients
from riprap.probing.traces import no_trace

__all__ = [
    "LinearLayer",
    "Look",
    "Loss",
    "Moments",
    "answers",
    "checked",
    "find_layer",
    "fisher_diagonal",
    "generate",
    "gradient_at",
    "gradient_of",
    "layer_moments",
    "layer_names",
    "linear_layers",
    "look",
    "look_together",
    "loss_gradient",
    "margin_gradients",
    "measure",
    "moved",
    "no_trace",
    "own_loss",
    "shared_passes",
    "start",
]
