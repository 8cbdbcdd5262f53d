"""Each row's own loss, read from a model's output."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from riprap.errors import ConfigError
from riprap.linalg import upcast
from riprap.selection._batches import ForwardArgs

IGNORE_INDEX = -100
RowLossFn = Callable[[Any, Mapping[str, Any]], Tensor]  # (output, inputs by name) -> (rows,)


@dataclass
class RowLosses:
    """Each row's mean loss over its own response tokens.

    Attributes:
        values: shape (rows,), attached to the graph if there is one; 0 for a row without tokens.
        n_tokens: response tokens of each row, shape (rows,), long.
        target_probs: Σ_t of the target token's probability, shape (rows,); None: not known.
    """

    values: Tensor
    n_tokens: Tensor
    target_probs: Tensor | None = None


def named_arguments(model: nn.Module, call: ForwardArgs) -> dict[str, Any]:
    """Return the arguments of a forward pass by name."""
    args, named = call
    return dict(zip(inspect.signature(model.forward).parameters, args, strict=False)) | named


def without_labels(call: ForwardArgs) -> ForwardArgs:
    """Remove the labels from the arguments, so that the model computes no loss of its own."""
    args, named = call
    return args, {k: v for k, v in named.items() if k not in ("labels", "num_items_in_batch")}


def output_field(output: Any, name: str) -> Any:
    """Return a field of an output object or dict; None if it has no such field."""
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def refuse_unshifted(model: nn.Module) -> None:
    """Refuse models that do not predict next tokens."""
    for module in model.modules():
        class_name = type(module).__name__
        if class_name.endswith(("ForMaskedLM", "ForTokenClassification", "ForPreTraining")):
            raise ConfigError(
                f"the labels of a {class_name} are not those of next tokens: give loss=, a "
                "function (model, batch) -> each row's loss"
            )


def losses_from_graph(loss: Any, inputs: Mapping[str, Any]) -> RowLosses | None:
    """Read the rows' losses from the tensors that cross-entropy saved for its backward pass.

    Computing the losses again would cost a softmax over the vocabulary. None if the loss is not
    the model's own cross-entropy over `labels`.
    """
    labels = inputs.get("labels")
    if not isinstance(loss, Tensor) or not isinstance(labels, Tensor) or labels.dim() != 2:
        return None
    node = loss.grad_fn
    for _ in range(4):
        if node is None or node.name() == "NllLossBackward0":
            break
        node = node.next_functions[0][0] if node.next_functions else None
    if node is None or node.name() != "NllLossBackward0":
        return None
    targets = next_token_targets(labels, inputs.get("shift_labels")).to(loss.device)
    log_probs, saved_targets = node._saved_self, node._saved_target  # type: ignore[attr-defined]
    if not torch.equal(saved_targets, targets.flatten()):
        return None
    counted = targets != IGNORE_INDEX
    losses = -log_probs.gather(1, targets.clamp(min=0).view(-1, 1)).view_as(targets) * counted
    n_tokens = counted.sum(1)
    target_probs = (torch.exp(-losses) * counted).sum(1)
    return RowLosses(losses.sum(1) / n_tokens.clamp(min=1), n_tokens, target_probs)


def row_losses(
    output: Any, inputs: Mapping[str, Any], losses: RowLossFn | None = None
) -> RowLosses:
    """Compute the loss of each row of a pass.

    Supported are outputs with logits where `labels` are among the inputs (shifted for tokens, -100
    ignored), TRL's fused head (`log_probs`), and any loss by `losses`.

    Raises:
        ConfigError: the losses cannot be computed, or have a wrong shape.
    """
    if losses is not None:
        values = losses(output, inputs)
        if not isinstance(values, Tensor) or values.dim() != 1:
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ConfigError(f"losses= returned {got}; return a tensor of shape (rows,)")
        return RowLosses(values, torch.ones_like(values, dtype=torch.long))
    log_probs, mask = output_field(output, "log_probs"), output_field(output, "label_mask")
    if isinstance(log_probs, Tensor) and isinstance(mask, Tensor):
        n_tokens = mask.sum(1)
        return RowLosses(-log_probs.sum(1) / n_tokens.clamp(min=1), n_tokens)  # 0 where ignored
    logits, labels = output_field(output, "logits"), inputs.get("labels")
    if not isinstance(logits, Tensor) or not isinstance(labels, Tensor):
        raise ConfigError(
            "each row's loss is not known, because the model was not given `labels` along with its "
            "inputs: give losses=, a function (output, inputs) -> each row's loss"
        )
    if labels.dim() == 1 and logits.dim() == 2 and not labels.is_floating_point():
        values = functional.cross_entropy(upcast(logits), labels, reduction="none")
        return RowLosses(values, torch.ones_like(labels))
    return _token_losses(logits, labels, inputs.get("shift_labels"))


def next_token_targets(labels: Tensor, shifted: Tensor | None = None) -> Tensor:
    """Return the target of each position, -100 for none."""
    if shifted is not None:
        return shifted
    return functional.pad(labels, (0, 1), value=IGNORE_INDEX)[:, 1:]


def _token_losses(logits: Tensor, labels: Tensor, shifted: Tensor | None) -> RowLosses:
    if labels.dim() != 2 or logits.dim() != 3 or logits.shape[:2] != labels.shape:
        raise ConfigError(
            f"logits of shape {tuple(logits.shape)} do not belong to labels of shape "
            f"{tuple(labels.shape)}: give losses=, a function (output, inputs) -> each row's loss"
        )
    targets = next_token_targets(labels, shifted).to(logits.device)
    n_tokens = (targets != IGNORE_INDEX).sum(1)
    sums = [  # row by row: no second copy of all logits
        functional.cross_entropy(upcast(row), target, ignore_index=IGNORE_INDEX, reduction="sum")
        for row, target in zip(logits, targets, strict=True)
    ]
    return RowLosses(torch.stack(sums) / n_tokens.clamp(min=1), n_tokens)
