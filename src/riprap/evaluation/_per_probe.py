"""Gradients of single probes, one backward pass each, inside `preserve_training_state`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from riprap._distributed import has_sharded_parameters
from riprap.behaviors import Behavior
from riprap.errors import BehaviorError
from riprap.evaluation._chunks import Part, can_be_cut
from riprap.evaluation._gradients import gradient_of
from riprap.evaluation._isolation import preserve_training_state
from riprap.evaluation._probe_pass import compute_margins
from riprap.linalg import Vector, upcast_vector


def fisher_diagonal(
    behavior: Behavior, model: nn.Module, parameters: Sequence[Tensor], of: str = "loss"
) -> Vector | None:
    """Compute the diagonal empirical Fisher: mean over probes of the squared loss gradient.

    One backward pass for each probe; in at least float32. None for a behavior without losses.

    Args:
        of: "loss", or "margin": squared gradients of the margins, which do not vanish where the
            model is confident.

    Raises:
        BehaviorError: the model is sharded over ranks.
    """
    if of == "loss" and behavior.losses is None:
        return None
    _require_unsharded(model, "the Fisher diagonal")
    with torch.inference_mode(False), torch.enable_grad(), preserve_training_state(model):
        # In half precision the sum would stop growing after some hundreds of probes.
        total = [torch.zeros_like(part) for part in upcast_vector(parameters)]
        count = 0
        for single in _gradients(behavior, model, parameters, of):
            if single is None:
                return None
            single = upcast_vector(single)
            torch._foreach_addcmul_(total, single, single)
            count += 1
        torch._foreach_div_(total, count)
        return total


def margin_gradients(
    behavior: Behavior, model: nn.Module, parameters: Sequence[Tensor], max_probes: int
) -> list[Vector] | None:
    """Compute ∇m_i of some probes: rows of the Jacobian of the margins; see `probe_gradients`."""
    return probe_gradients(behavior, model, parameters, max_probes, "margin")


def probe_gradients(
    behavior: Behavior, model: nn.Module, parameters: Sequence[Tensor], max_probes: int, of: str
) -> list[Vector] | None:
    """Compute the gradients of some probes' margins or losses.

    Costs one backward pass and one copy of the parameters for each probe.

    Args:
        max_probes: maximum number of probes; of more, evenly spaced ones are chosen.
        of: "margin" or "loss".

    Returns:
        min(n_probes, max_probes) gradients; None where the behavior has no losses, or its margins
        or losses are detached from the graph or depend on no parameter.

    Raises:
        BehaviorError: the model is sharded over ranks, or the margins have a wrong shape.
    """
    if of == "loss" and behavior.losses is None:
        return None
    _require_unsharded(model, "the gradients of single probes")
    with torch.inference_mode(False), torch.enable_grad(), preserve_training_state(model):
        gradients = list(_gradients(behavior, model, parameters, of, max_probes))
    rows = [row for row in gradients if row is not None]
    return rows if len(rows) == len(gradients) else None


def _gradients(
    behavior: Behavior,
    model: nn.Module,
    parameters: Sequence[Tensor],
    of: str,
    max_probes: int | None = None,
) -> Iterator[Vector | None]:
    """Yield the gradients of single probes: from passes of their own, where probes can be cut.

    A backward pass then goes through one probe, not through all of them.
    """
    if can_be_cut(behavior):
        for index in _spaced(len(behavior.probes), max_probes):
            part = Part(behavior, (index,)).behavior()
            yield gradient_of(_values(part, model, of)[0], parameters)
        return
    values = _values(behavior, model, of)
    for index in _spaced(len(values), max_probes):
        yield gradient_of(values[index], parameters, keep_graph=True)


def _values(behavior: Behavior, model: nn.Module, of: str) -> Tensor:
    if of == "loss" and behavior.losses is not None:
        return behavior.losses(model, behavior.probes)
    return compute_margins(behavior, model).values


def _spaced(count: int, max_probes: int | None) -> list[int]:
    """Return evenly spaced indices."""
    chosen = count if max_probes is None else min(count, max_probes)
    return [int(index) for index in np.linspace(0, count - 1, chosen).round()]


def _require_unsharded(model: nn.Module, what: str) -> None:
    if has_sharded_parameters(model):
        raise BehaviorError(
            "gradients of single probes are not available for a model sharded over ranks; leave "
            f"out the signals that need {what}"
        )
