"""Per-sample gradients and scores of one batch, outside of training."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from riprap._checks import checked
from riprap._distributed import unwrap_model
from riprap.behaviors import Behavior
from riprap.errors import ConfigError
from riprap.evaluation import evaluate, preserve_training_state
from riprap.linalg import Vector
from riprap.selection._batches import (
    ForwardArgs,
    count_rows,
    forward_args,
    layer_dims,
    refuse_wrapped,
    select_rows,
)
from riprap.selection._grad_hooks import GradSampleAccumulator, PerSampleGradHooks
from riprap.selection._proxy_score import error_norms
from riprap.selection._row_check import CheckedCalls, RowChecker
from riprap.selection._row_losses import (
    named_arguments,
    refuse_unshifted,
    row_losses,
    without_labels,
)
from riprap.selection._scores import Scores

BatchLossFn = Callable[[nn.Module, Any], Tensor]  # (model, batch) -> (rows,)
_checked_calls: MutableMapping[nn.Module, CheckedCalls] = WeakKeyDictionary()


@checked
def gradient_norms(model: nn.Module, batch: Any, loss: BatchLossFn | None = None) -> Tensor:
    """Compute the exact L2 norm of each sample's gradient over the trainable parameters.

    The gradient is that of the sample's own mean loss. One forward and one backward pass run in
    evaluation mode, without a loop over samples. The model is unchanged afterwards. Per-sample
    gradients are never all in memory.

    Args:
        batch: input of the model: a mapping, a tuple, or a tensor.
        loss: loss(model, batch) -> each sample's loss, shape (batch,). None: the model's own, over
            each sample's response tokens; the batch must have `labels` then.

    Returns:
        shape (batch,), in at least float32; 0 for a sample without response tokens.

    Raises:
        ConfigError: a trainable parameter, which is named, lies in an unsupported layer, the batch
            is packed, or the losses cannot be computed.
    """
    _, result = compute_grad_samples(model, batch, loss)
    return torch.as_tensor(result.squared_norms).clamp(min=0).sqrt()


def gradient_products(
    model: nn.Module, batch: Any, directions: Sequence[Vector], loss: BatchLossFn | None = None
) -> Tensor:
    """Compute ⟨∇L_i, direction⟩ for each sample and direction; see `gradient_norms`.

    Args:
        directions: vectors over the trainable parameters, in the order of `model.parameters()`.

    Returns:
        shape (len(directions), batch).
    """
    _, result = compute_grad_samples(model, batch, loss, directions=list(directions))
    return torch.as_tensor(result.dot_products)


def compute_grad_samples(
    model: nn.Module,
    batch: Any,
    loss: BatchLossFn | None = None,
    keep: bool = False,
    directions: list[Vector] | None = None,
) -> tuple[Tensor, GradSampleAccumulator]:
    """Compute each sample's loss and the results of its gradient; see `gradient_norms`."""
    model = unwrap_model(model)
    refuse_wrapped(model)
    call = forward_args(batch)
    rows = count_rows(call)
    isolation = preserve_training_state(model, float32_logits=False)  # the gradients of training
    with torch.inference_mode(False), torch.enable_grad(), isolation:
        hooks = PerSampleGradHooks(model)
        try:
            accumulator = hooks.start_pass(rows, keep, directions)
            values = _model_row_losses(model, batch) if loss is None else loss(model, batch)
            if values.shape != (rows,):
                raise ConfigError(
                    f"the losses have shape {tuple(values.shape)}; the batch has {rows} rows, so "
                    f"shape ({rows},) is needed"
                )
            accumulator.in_forward = False
            values.sum().backward()  # type: ignore[no-untyped-call]
            accumulator.finish()
            checker = RowChecker(model, hooks, _checked_calls.setdefault(model, CheckedCalls()))
            if checker.is_due(accumulator, layer_dims(call)):
                run = partial(_losses_of_rows, model, batch, loss, rows)
                checker.check(accumulator, [0, rows - 1], run)
        finally:
            hooks.remove()
    return values.detach(), accumulator


def _losses_of_rows(
    model: nn.Module, batch: Any, loss: BatchLossFn | None, n_rows: int, rows: list[int]
) -> Tensor:
    """Compute the losses of some rows of a batch, shape (rows,)."""
    whole: ForwardArgs = ((), dict(batch)) if isinstance(batch, Mapping) else ((batch,), {})
    args, named = select_rows(whole, rows, n_rows)
    part = args[0] if args else named
    return _model_row_losses(model, part) if loss is None else loss(model, part)


def _model_row_losses(model: nn.Module, batch: Any) -> Tensor:
    """Compute each sample's mean loss over its own response tokens, shape (rows,)."""
    refuse_unshifted(model)
    call = forward_args(batch)
    _require_callable(model, call)
    args, named = without_labels(call)
    return row_losses(model(*args, **named), named_arguments(model, call)).values


def _require_callable(model: nn.Module, call: ForwardArgs) -> None:
    args, named = without_labels(call)
    try:
        inspect.signature(model.forward).bind(*args, **named)
    except TypeError as error:
        given = f"{len(args)} tensors" if args else ", ".join(named)
        raise ConfigError(
            f"the batch ({given}) does not fit {type(model).__name__}.forward ({error}): give a "
            "mapping of the model's arguments with `labels`, or loss=, a function (model, batch) "
            "-> each row's loss"
        ) from error


def score(
    model: nn.Module,
    batch: Any,
    needs: Collection[str] = ("norm",),
    directions: Mapping[str, Vector] | None = None,
    behaviors: Sequence[Behavior] = (),
) -> Scores:
    """Score the samples of a batch for `Selector.choose`; join batches with `Scores.concatenate`.

    The model runs in evaluation mode and is unchanged afterwards. Updates are those of plain
    gradient descent at learning rate 1, as there is no optimizer.

    Args:
        batch: a mapping with `labels`.
        needs: "norm", "proxy", "gram".
        directions: vectors over the trainable parameters, for `Scores.directional`.
        behaviors: for `Scores.harm`.

    Raises:
        ConfigError: see `gradient_norms`.
    """
    model = unwrap_model(model)
    refuse_unshifted(model)
    parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    vectors = {name: [-part for part in vector] for name, vector in (directions or {}).items()}
    for behavior in behaviors:
        gradient = evaluate(behavior, model, parameters).gradient
        if gradient is None:
            raise ConfigError(
                f"behavior {behavior.name!r} has no gradient in the trainable parameters"
            )
        vectors[behavior.name] = [-part for part in gradient]
    call = forward_args(batch)
    _require_callable(model, call)
    inputs = named_arguments(model, call)
    with torch.no_grad(), preserve_training_state(model, float32_logits=False):
        args, named = without_labels(call)
        output = model(*args, **named)
        rows = row_losses(output, inputs)
        proxy = error_norms(model, output, inputs)[1] if "proxy" in needs else None
    scores = Scores(rows.values.double().cpu().numpy(), rows.n_tokens.cpu().numpy())
    scores.proxy = None if proxy is None else proxy.double().cpu().numpy()
    if not vectors and not {"norm", "gram"} & set(needs):
        return scores
    result = compute_grad_samples(model, batch, None, "gram" in needs, list(vectors.values()))[1]
    scores.norm = torch.as_tensor(result.squared_norms).double().clamp(min=0).sqrt().cpu().numpy()
    products = torch.as_tensor(result.dot_products).double().cpu().numpy()
    directional = dict(zip(vectors, products, strict=True)) if vectors else {}
    names = {behavior.name for behavior in behaviors}
    scores.harm = {name: -values for name, values in directional.items() if name in names}
    scores.directional = {n: values for n, values in directional.items() if n not in names}
    if "gram" in needs:
        parts = [result.grad_samples(index) for index in sorted(result.factors)]
        flat = torch.cat([part.flatten(1) for part in parts if part is not None], 1).double()
        scores.gram = (flat @ flat.T).cpu().numpy()
    return scores
