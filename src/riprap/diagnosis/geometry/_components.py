"""Heads and neurons: how much a behavior depends on each, and which parameters belong to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from riprap import evaluation
from riprap.behaviors import Behavior
from riprap.diagnosis._base import Progress
from riprap.errors import BehaviorError, ConfigError

HEAD, NEURON = "head", "neuron"
OUTPUT_PROJECTIONS = {"o_proj": HEAD, "down_proj": NEURON}  # names in Llama and similar models


@dataclass(frozen=True)
class Component:
    """An attention head, or a neuron of an MLP.

    Attributes:
        kind: `head` or `neuron`.
        index: position in its layer.
        output_proj: name of the linear layer that projects it into the residual stream.
        columns: its range of inputs of that layer, [start, end).
    """

    kind: str
    index: int
    output_proj: str
    columns: tuple[int, int]


def find_components(model: nn.Module) -> list[Component]:
    """Return all attention heads and neurons, layer by layer.

    Raises:
        BehaviorError: no layer named `o_proj` or `down_proj`, or heads that do not divide one.
    """
    heads = getattr(getattr(model, "config", None), "num_attention_heads", None)
    components = []
    for name, module in model.named_modules():
        kind = OUTPUT_PROJECTIONS.get(name.rpartition(".")[2])
        if kind is None or not isinstance(module, nn.Linear):
            continue
        width = module.in_features
        count = width if kind == NEURON else heads
        if not count or width % count:
            raise BehaviorError(
                f"{name!r} has {width} inputs, which do not divide into {heads} heads"
            )
        size = width // count
        components += [Component(kind, i, name, (i * size, (i + 1) * size)) for i in range(count)]
    if not components:
        raise BehaviorError("no heads or neurons found: the model has no `o_proj` or `down_proj`")
    return components


@contextmanager
def mean_ablation(model: nn.Module, removed: Sequence[Component]) -> Iterator[None]:
    """Replace the outputs of some components by their mean over rows, at each token position.

    The mean is that of the same pass, which needs two rows or more of one length.

    Raises:
        BehaviorError: inside, in a pass over a single row, which would be its own mean.
    """

    def replace_by_mean(columns: Tensor, _module: nn.Module, inputs: Any) -> tuple[Tensor, ...]:
        values, *rest = inputs
        if len(values) < 2:
            raise BehaviorError("mean ablation needs two rows or more in a pass")
        mask = columns.to(values.device)
        return (torch.where(mask, values.mean(0, keepdim=True), values), *rest)

    with ExitStack() as stack:
        for name in dict.fromkeys(component.output_proj for component in removed):
            module = model.get_submodule(name)
            columns = _columns(module, [c for c in removed if c.output_proj == name])
            hook = partial(replace_by_mean, columns)
            stack.callback(module.register_forward_pre_hook(hook).remove)
        yield


def component_importance(
    model: nn.Module,
    behavior: Behavior,
    components: Sequence[Component],
    *,
    progress: Progress | None = None,
) -> NDArray[np.float64]:
    """Compute the drop of the mean margin when each component alone is ablated.

    Returns:
        shape (len(components),), in the margin's unit.

    Source: mean ablation as in Wang et al., 2211.00593, section 2.1; here over the probes.

    Raises:
        BehaviorError: see `mean_ablation`.
    """
    intact = evaluation.evaluate(behavior, model).margins.mean()
    drops = np.empty(len(components))
    for at, component in enumerate(components):
        with mean_ablation(model, [component]):
            drops[at] = intact - evaluation.evaluate(behavior, model).margins.mean()
        if progress is not None:
            progress(at + 1, len(components))
    return drops


def parameter_masks(model: nn.Module, components: Sequence[Component]) -> dict[str, Tensor]:
    """Return masks of the parameter entries that belong to the components.

    A component owns its columns of the output projection, and the rows of the sibling linear layers
    that make its inputs (`q_proj`, `k_proj`, `v_proj`; `gate_proj`, `up_proj`), with their biases.
    Keys and values that several heads share belong to none of them, and neither does the bias of
    the output projection.

    Returns:
        boolean tensors by parameter name, for parameters with at least one entry set.

    Raises:
        ConfigError: an output projection that the model does not have.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    masks: dict[str, Tensor] = {}
    for name in dict.fromkeys(component.output_proj for component in components):
        try:
            output_proj = model.get_submodule(name)
        except AttributeError:
            raise ConfigError(
                f"the model has no layer {name!r}: are the components of another model?"
            ) from None
        columns = _columns(output_proj, [c for c in components if c.output_proj == name])
        block = model.get_submodule(name.rpartition(".")[0])
        for layer in block.children():
            if not isinstance(layer, nn.Linear):
                continue
            if layer is output_proj:
                masks[names[id(layer.weight)]] = columns.expand_as(layer.weight).clone()
            elif layer.out_features == len(columns):
                for parameter in layer.parameters():
                    rows = columns.view(-1, *[1] * (parameter.dim() - 1))
                    masks[names[id(parameter)]] = rows.expand_as(parameter).clone()
    return masks


def _columns(output_proj: nn.Module, components: Sequence[Component]) -> Tensor:
    """Mask of the components' inputs of an output projection, shape (inputs,)."""
    assert isinstance(output_proj, nn.Linear)
    device = output_proj.weight.device
    columns = torch.zeros(output_proj.in_features, dtype=torch.bool, device=device)
    for component in components:
        columns[slice(*component.columns)] = True
    return columns
