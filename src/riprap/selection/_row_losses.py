"""Each row's own loss, read from what a model puts out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from riprap.errors import ConfigError
from riprap.selection._batches import Call

IGNORED = -100
Losses = Callable[[Any, Mapping[str, Any]], Tensor]  # (output, arguments by name) -> (rows,)


@dataclass
class RowLosses:
    """Each row's mean loss over its own response tokens.

    Attributes:
        values: shape (rows,), attached to the graph if one was built; 0 where there are no tokens.
        tokens: response tokens of each row, shape (rows,), long.
        sure: Σ_t of the probability of the token that is to come, shape (rows,); None: not known.
    """

    values: Tensor
    tokens: Tensor
    sure: Tensor | None = None


def named_arguments(model: nn.Module, call: Call) -> dict[str, Any]:
    """The arguments of a forward pass by name."""
    args, named = call
    names = [*inspect.signature(model.forward).parameters]
    return dict(zip(names, args, strict=False)) | named


def without_labels(call: Call) -> Call:
    """The same arguments, so that a model does not work out a loss that nobody reads."""
    args, named = call
    return args, {k: v for k, v in named.items() if k not in ("labels", "num_items_in_batch")}


def part(output: Any, name: str) -> Any:
    """A field of an output object or dict; None where it has none."""
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def refuse_unshifted(model: nn.Module) -> None:
    """Refuse models whose labels stand at their own positions, where no loss of theirs tells so.

    Raises:
        ConfigError: the model predicts no next tokens.
    """
    for module in model.modules():
        kind = type(module).__name__
        if kind.endswith(("ForMaskedLM", "ForTokenClassification", "ForPreTraining")):
            raise ConfigError(
                f"the labels of a {kind} are not those of next tokens: give loss=, a function "
                "(model, batch) -> each row's loss"
            )


def kept_losses(loss: Any, given: Mapping[str, Any]) -> RowLosses | None:
    """The rows' losses out of what the model's own cross-entropy kept for its backward pass.

    Costs nothing, where working them out again costs a softmax over the vocabulary. None where the
    loss was made in another way.
    """
    labels = given.get("labels")
    if not isinstance(loss, Tensor) or not isinstance(labels, Tensor) or labels.dim() != 2:
        return None
    node = loss.grad_fn
    for _ in range(4):
        if node is None or node.name() == "NllLossBackward0":
            break
        node = node.next_functions[0][0] if node.next_functions else None
    if node is None or node.name() != "NllLossBackward0":
        return None
    targets = targets_of(labels, given.get("shift_labels")).to(loss.device)
    kept, wanted = node._saved_self, node._saved_target  # type: ignore[attr-defined]
    if not torch.equal(wanted, targets.flatten()):
        return None
    counted = targets != IGNORED
    each = -kept.gather(1, targets.clamp(min=0).view(-1, 1)).view_as(targets) * counted
    tokens = counted.sum(1)
    sure = (torch.exp(-each) * counted).sum(1)
    return RowLosses(each.sum(1) / tokens.clamp(min=1), tokens, sure)


def row_losses(output: Any, given: Mapping[str, Any], losses: Losses | None = None) -> RowLosses:
    """The losses of a pass row by row.

    Transformers' outputs with logits where `labels` were given (shifted for tokens, -100 ignored),
    those of TRL's fused head (`log_probs`), and anything by `losses`.

    Raises:
        ConfigError: the losses are not to be found, or are of a wrong shape.
    """
    if losses is not None:
        values = losses(output, given)
        if not isinstance(values, Tensor) or values.dim() != 1:
            kind = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ConfigError(f"losses= gave {kind}; a tensor of shape (rows,) is needed")
        return RowLosses(values, torch.ones_like(values, dtype=torch.long))
    log_probs, mask = part(output, "log_probs"), part(output, "label_mask")
    if isinstance(log_probs, Tensor) and isinstance(mask, Tensor):
        tokens = mask.sum(1)
        return RowLosses(-log_probs.sum(1) / tokens.clamp(min=1), tokens)  # 0 where ignored
    logits, labels = part(output, "logits"), given.get("labels")
    if not isinstance(logits, Tensor) or not isinstance(labels, Tensor):
        raise ConfigError(
            "each row's loss is not known: the model was not given `labels` along with its "
            "inputs; give losses=, a function (output, inputs) -> each row's loss"
        )
    if labels.dim() == 1 and logits.dim() == 2 and not labels.is_floating_point():
        values = functional.cross_entropy(_wide(logits), labels, reduction="none")
        return RowLosses(values, torch.ones_like(labels))
    return _of_tokens(logits, labels, given.get("shift_labels"))


def _wide(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype.itemsize < 4 else logits


def targets_of(labels: Tensor, shifted: Tensor | None = None) -> Tensor:
    """What each position is to predict, -100 where nothing."""
    if shifted is not None:
        return shifted
    return functional.pad(labels, (0, 1), value=IGNORED)[:, 1:]


def _of_tokens(logits: Tensor, labels: Tensor, shifted: Tensor | None) -> RowLosses:
    if labels.dim() != 2 or logits.dim() != 3 or logits.shape[:2] != labels.shape:
        raise ConfigError(
            f"logits of shape {tuple(logits.shape)} do not belong to labels of shape "
            f"{tuple(labels.shape)}; give losses=, a function (output, inputs) -> each row's loss"
        )
    targets = targets_of(labels, shifted).to(logits.device)
    tokens = (targets != IGNORED).sum(1)
    each = zip(logits, targets, strict=True)  # row by row: no second copy of all logits
    sums = torch.stack([_sum(own, wanted) for own, wanted in each])
    return RowLosses(sums / tokens.clamp(min=1), tokens)


def _sum(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(_wide(logits), targets, ignore_index=IGNORED, reduction="sum")
