"""Passes over probes that leave no trace on training."""

from riprap.evaluation._answer_logits import answers
from riprap.evaluation._batch_loss import Loss, moved, own_loss
from riprap.evaluation._features import captured, find_layer, layer_names, rows_of, stacks
from riprap.evaluation._generation import generate
from riprap.evaluation._isolation import no_trace
from riprap.evaluation._linear_layers import LinearLayer, Moments, layer_moments, linear_layers
from riprap.evaluation._per_probe import fisher_diagonal, margin_gradients
from riprap.evaluation._probe_pass import (
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

__all__ = [
    "LinearLayer",
    "Look",
    "Loss",
    "Moments",
    "answers",
    "captured",
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
    "rows_of",
    "shared_passes",
    "stacks",
    "start",
]
