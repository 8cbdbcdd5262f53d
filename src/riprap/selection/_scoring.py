"""Gradients of the samples of one batch, outside of training."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from riprap import evaluation as probing
from riprap._distributed import unwrap_model
from riprap.behaviors import Behavior
from riprap.errors import ConfigError
from riprap.evaluation import no_trace
from riprap.linalg import Vector
from riprap.selection._batches import call_of, count, refuse_wrapped
from riprap.selection._grad_hooks import Catch, Taps
from riprap.selection._proxy_score import error_norms
from riprap.selection._row_losses import (
    named_arguments,
    refuse_unshifted,
    row_losses,
    without_labels,
)
from riprap.selection._scores import Scores

RowLoss = Callable[[nn.Module, Any], Tensor]


def gradient_norms(model: nn.Module, batch: Any, loss: RowLoss | None = None) -> Tensor:
    """Exact L2 norm of the gradient of each sample's own mean loss, over the trainable parameters.

    One forward and one backward pass without a loop over samples, in evaluation mode, leaving no
    trace on the model; per-sample gradients are never held together.

    Args:
        batch: what the model is called with: a mapping, a tuple, or a tensor.
        loss: loss(model, batch) -> each sample's loss, shape (batch,). None: the model's own, over
            each sample's response tokens; `labels` must be among the batch then.

    Returns:
        shape (batch,), in at least float32; 0 for a sample without response tokens.

    Raises:
        ConfigError: a trainable parameter's gradient cannot be taken sample by sample (it is
            named), the batch is packed, or the losses are not to be found.
    """
    squares = caught(model, batch, loss)[1].squares
    assert isinstance(squares, Tensor)
    return squares.clamp(min=0).sqrt()


def gradient_products(
    model: nn.Module, batch: Any, directions: Sequence[Vector], loss: RowLoss | None = None
) -> Tensor:
    """⟨∇L_i, direction⟩ for each sample and direction, as `gradient_norms` takes the gradients.

    Args:
        directions: vectors over the trainable parameters, in the order of `model.parameters()`.

    Returns:
        shape (len(directions), batch).
    """
    products = caught(model, batch, loss, directions=list(directions))[1].products
    assert isinstance(products, Tensor)
    return products


def caught(
    model: nn.Module,
    batch: Any,
    loss: RowLoss | None = None,
    dense: bool = False,
    directions: list[Vector] | None = None,
) -> tuple[Tensor, Catch]:
    """Each sample's loss, and what its gradients gave; see `gradient_norms`."""
    model = unwrap_model(model)
    refuse_wrapped(model)
    call = call_of(batch)
    rows = count(call)
    with torch.inference_mode(False), torch.enable_grad(), no_trace(model):
        taps = Taps(model)
        try:
            catch = taps.catch(rows, dense, directions)
            values = own_losses(model, batch) if loss is None else loss(model, batch)
            if values.shape != (rows,):
                raise ConfigError(
                    f"losses came in the shape {tuple(values.shape)}; one for each of the {rows} "
                    "rows is needed"
                )
            catch.counting = False
            values.sum().backward()  # type: ignore[no-untyped-call]
            catch.finish()
        finally:
            taps.remove()
    return values.detach(), catch


def own_losses(model: nn.Module, batch: Any) -> Tensor:
    """Each sample's mean loss over its own response tokens, shape (rows,)."""
    refuse_unshifted(model)
    call = call_of(batch)
    args, named = without_labels(call)
    return row_losses(model(*args, **named), named_arguments(model, call)).values


def score(
    model: nn.Module,
    batch: Any,
    needs: Collection[str] = ("norm",),
    directions: Mapping[str, Vector] | None = None,
    behaviors: Sequence[Behavior] = (),
) -> Scores:
    """Numbers of a batch's samples, for `Selector.choose`; those of several: `Scores.joined`.

    In evaluation mode, leaving no trace. Updates are those of plain gradient descent at rate 1, as
    there is no optimizer.

    Args:
        batch: a mapping with `labels`.
        needs: "norm", "proxy", "gram".
        directions: vectors over the trainable parameters, for `Scores.along`.
        behaviors: for `Scores.harm`.

    Raises:
        ConfigError: see `gradient_norms`.
    """
    model = unwrap_model(model)
    refuse_unshifted(model)
    parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    pulls = {name: [-part for part in vector] for name, vector in (directions or {}).items()}
    for behavior in behaviors:
        found = probing.look(behavior, model, parameters).gradient
        if found is None:
            raise ConfigError(f"behaviour {behavior.name!r} has no gradient in what is trained")
        pulls[behavior.name] = [-part for part in found]
    call = call_of(batch)
    given = named_arguments(model, call)
    with torch.no_grad(), no_trace(model):
        args, named = without_labels(call)
        output = model(*args, **named)
        rows, proxy = row_losses(output, given), None
        if "proxy" in needs:
            proxy = error_norms(model, output, given)[1].double().cpu().numpy()
    scores = Scores(rows.values.double().cpu().numpy(), rows.tokens.cpu().numpy(), proxy=proxy)
    if not pulls and not {"norm", "gram"} & set(needs):
        return scores
    catch = caught(model, batch, None, "gram" in needs, list(pulls.values()))[1]
    scores.norm = torch.as_tensor(catch.squares).double().clamp(min=0).sqrt().cpu().numpy()
    products = torch.as_tensor(catch.products).double().cpu().numpy()
    along = dict(zip(pulls, products, strict=True)) if pulls else {}
    names = {behavior.name for behavior in behaviors}
    scores.harm = {name: -row for name, row in along.items() if name in names}
    scores.along = {name: row for name, row in along.items() if name not in names}
    if "gram" in needs:
        flat = torch.cat([part.flatten(1) for part in catch.gradients.values()], 1).double()
        scores.gram = (flat @ flat.T).cpu().numpy()
    return scores
