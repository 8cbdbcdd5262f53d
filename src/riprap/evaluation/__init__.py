"""Evaluation: passes over probes that leave training untouched.

- `evaluate`, `evaluate_batch`: margins, gradients, activations and logits, as a `ProbeResult`.
- `compute_margins`, `loss_gradient`, `margin_gradients`, `probe_gradients`, `fisher_diagonal`,
  `layer_moments`, `answer_logits`: single quantities for signals, guards and diagnoses.
- `ProtectedGradients`: gradients of all behaviors, shared by monitor, signals and guard.
- `preserve_training_state`: the context in which all of them run; `set_evaluation_mode`,
  `is_in_pass`, `preserve_rng`, `refuse_writes`, `refuse_packed`, `TrainingAutocast`: parts of it.
- `find_layer`, `layer_names`, `capture_outputs`: layers and their outputs.
- `model_loss`, `loss_and_gradient`, `generate`: losses and answers on other inputs than probes.
"""

from riprap.evaluation._answer_logits import answer_logits
from riprap.evaluation._batch_loss import Loss, model_loss, to_device
from riprap.evaluation._features import (
    capture_outputs,
    find_layer,
    last_rows,
    layer_names,
    layer_stacks,
)
from riprap.evaluation._generation import generate
from riprap.evaluation._gradients import gradient_of
from riprap.evaluation._isolation import (
    preserve_rng,
    preserve_training_state,
    refuse_packed,
    set_evaluation_mode,
)
from riprap.evaluation._linear_layers import LayerMoments, LinearLayer, layer_moments, linear_layers
from riprap.evaluation._module_state import refuse_writes
from riprap.evaluation._per_probe import fisher_diagonal, margin_gradients, probe_gradients
from riprap.evaluation._precision import Autocast, TrainingAutocast, is_in_pass
from riprap.evaluation._probe_pass import (
    ProbeResult,
    calibrate,
    compute_margins,
    evaluate,
    evaluate_batch,
    group_by_forward_pass,
    loss_and_gradient,
    loss_gradient,
    validate_margins,
)
from riprap.evaluation._protected_gradients import ProtectedGradients

__all__ = [
    "Autocast",
    "LayerMoments",
    "LinearLayer",
    "Loss",
    "ProbeResult",
    "ProtectedGradients",
    "TrainingAutocast",
    "answer_logits",
    "calibrate",
    "capture_outputs",
    "compute_margins",
    "evaluate",
    "evaluate_batch",
    "find_layer",
    "fisher_diagonal",
    "generate",
    "gradient_of",
    "group_by_forward_pass",
    "is_in_pass",
    "last_rows",
    "layer_moments",
    "layer_names",
    "layer_stacks",
    "linear_layers",
    "loss_and_gradient",
    "loss_gradient",
    "margin_gradients",
    "model_loss",
    "preserve_rng",
    "preserve_training_state",
    "probe_gradients",
    "refuse_packed",
    "refuse_writes",
    "set_evaluation_mode",
    "to_device",
    "validate_margins",
]
