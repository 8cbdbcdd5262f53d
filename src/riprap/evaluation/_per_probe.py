"""Gradients probe by probe: one backward pass each, inside `no_trace`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from riprap._distributed import sharded
from riprap.behaviors import Behavior
from riprap.errors import BehaviorError
from riprap.evaluation._isolation import no_trace
from riprap.evaluation._probe_pass import gradient_of, measure
from riprap.linalg import Vector, wide


def fisher_diagonal(
    behavior: Behavior, model: nn.Module, parameters: Sequence[Tensor], of: str = "loss"
) -> Vector | None:
    """Diagonal empirical Fisher: mean over probes of the squared gradient of each one's loss.

    One backward pass a probe; in at least float32. None for a behaviour without losses.

    Args:
        of: "loss", or "margin": the same of the margins, which are not flat where the model is
            sure of itself.

    Raises:
        BehaviorError: the model is sharded over ranks.
    """
    if of == "loss" and behavior.losses is None:
        return None
    _refuse_shards(model, "the Fisher diagonal")
    with torch.inference_mode(False), torch.enable_grad(), no_trace(model):
        losses = _values(behavior, model, of)
        if not losses.requires_grad:
            return None
        # In half precision a mean over many probes would stand still after some hundreds.
        total = [torch.zeros_like(part) for part in wide(parameters)]
        for loss in losses:
            single = gradient_of(loss, parameters, keep_graph=True)
            if single is None:
                return None
            single = wide(single)
            torch._foreach_addcmul_(total, single, single, value=1 / len(losses))
        return total


def _values(behavior: Behavior, model: nn.Module, of: str) -> Tensor:
    if of == "loss" and behavior.losses is not None:
        return behavior.losses(model, behavior.probes)
    return measure(behavior, model).values


def margin_gradients(
    behavior: Behavior, model: nn.Module, parameters: Sequence[Tensor], most: int
) -> list[Vector] | None:
    """∇m_i of some probes: rows of the Jacobian of the margins.

    One backward pass and one copy of the parameters a probe.

    Args:
        most: how many probes at most; of more, as many are taken evenly over all.

    Returns:
        min(n_probes, most) gradients; None where the margin is detached from the graph or reaches
        no parameter.

    Raises:
        BehaviorError: the model is sharded over ranks, or the margins are of a wrong shape.
    """
    _refuse_shards(model, "the margins' Jacobian")
    with torch.inference_mode(False), torch.enable_grad(), no_trace(model):
        margins = measure(behavior, model).values
        if not margins.requires_grad:
            return None
        chosen = np.linspace(0, len(margins) - 1, min(len(margins), most)).round().astype(int)
        found = [gradient_of(margins[i], parameters, keep_graph=True) for i in chosen.tolist()]
    rows = [row for row in found if row is not None]
    return rows if len(rows) == len(found) else None


def _refuse_shards(model: nn.Module, what: str) -> None:
    if sharded(model):
        raise BehaviorError(
            "a gradient for each probe cannot be taken of a model sharded over ranks: leave out "
            f"the signals that need {what}"
        )
