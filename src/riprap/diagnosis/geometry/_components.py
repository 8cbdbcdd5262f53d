"""Heads and neurons: how much a behaviour rests on each, and which parameters are theirs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from riprap import evaluation as probing
from riprap.behaviors import Behavior
from riprap.diagnosis._base import Progress
from riprap.errors import BehaviorError, ConfigError

HEAD, NEURON = "head", "neuron"
OUTPUT_PROJECTIONS = {"o_proj": HEAD, "down_proj": NEURON}  # by the names of Llama and its many kin


@dataclass(frozen=True)
class Component:
    """An attention head, or a neuron of an MLP.

    Attributes:
        kind: `head` or `neuron`.
        index: its place in its layer.
        writer: name of the linear layer by which it writes into the residual stream.
        columns: its inputs to that layer, from and to.
    """

    kind: str
    index: int
    output_proj: str
    columns: tuple[int, int]


def find_components(model: nn.Module) -> list[Component]:
    """Every attention head and every neuron, layer by layer.

    Raises:
        BehaviorError: no layer named `o_proj` or `down_proj`, or heads that do not divide one.
    """
    heads = getattr(getattr(model, "config", None), "num_attention_heads", None)
    found = []
    for name, module in model.named_modules():
        kind = OUTPUT_PROJECTIONS.get(name.rpartition(".")[2])
        if kind is None or not isinstance(module, nn.Linear):
            continue
        width = module.in_features
        count = width if kind == NEURON else heads
        if not count or width % count:
            raise BehaviorError(f"{name!r} takes {width} inputs, not {heads} heads of one width")
        size = width // count
        found += [Component(kind, i, name, (i * size, (i + 1) * size)) for i in range(count)]
    if not found:
        raise BehaviorError("no heads or neurons found: the model has no `o_proj` or `down_proj`")
    return found


@contextmanager
def mean_ablation(model: nn.Module, removed: Sequence[Component]) -> Iterator[None]:
    """The model with what some units say replaced by their mean over the rows, place by place.

    The mean is that of the same pass: it takes two rows or more, all of one length.

    Raises:
        BehaviorError: inside, from a pass over a single row, which would be its own mean.
    """

    def averaged(columns: Tensor) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            values, *rest = inputs
            if len(values) < 2:
                raise BehaviorError("ablation by the mean over rows needs two rows or more a pass")
            where = columns.to(values.device)
            return (torch.where(where, values.mean(0, keepdim=True), values), *rest)

        return hook

    with ExitStack() as stack:
        for name in dict.fromkeys(unit.output_proj for unit in removed):
            module = model.get_submodule(name)
            columns = _columns(module, [unit for unit in removed if unit.output_proj == name])
            stack.callback(module.register_forward_pre_hook(averaged(columns)).remove)
        yield


def component_importance(
    model: nn.Module,
    behavior: Behavior,
    components: Sequence[Component],
    *,
    progress: Progress | None = None,
) -> NDArray[np.float64]:
    """By how much the mean margin falls when each unit alone is ablated, shape (len(of),).

    Source: mean ablation as in Wang et al., 2211.00593, section 2.1; here over the probes.

    Raises:
        BehaviorError: see `ablated`.
    """
    intact = probing.evaluate(behavior, model).margins.mean()
    fall = np.empty(len(components))
    for place, unit in enumerate(components):
        with mean_ablation(model, [unit]):
            fall[place] = intact - probing.evaluate(behavior, model).margins.mean()
        if progress is not None:
            progress(place + 1, len(components))
    return fall


def parameter_masks(model: nn.Module, components: Sequence[Component]) -> dict[str, Tensor]:
    """Which entries of which parameters are the units' own: masks by parameter name.

    A unit owns its columns of the writer and the rows that make its inputs, in the linear layers
    beside the writer (`q_proj`, `k_proj`, `v_proj`; `gate_proj`, `up_proj`), with their biases.
    Keys and values that several heads share are no head's own, and neither is the writer's bias.

    Returns:
        boolean tensors of the parameters' shapes, for those parameters in which any is set.

    Raises:
        ConfigError: a writer that the model has not.
    """
    own = dict(model.named_parameters())
    names = {id(part): name for name, part in own.items()}
    masks: dict[str, Tensor] = {}
    for name in dict.fromkeys(unit.output_proj for unit in components):
        try:
            writer = model.get_submodule(name)
        except AttributeError:
            raise ConfigError(f"the model has no layer {name!r}: are the units its own?") from None
        columns = _columns(writer, [unit for unit in components if unit.output_proj == name])
        block = model.get_submodule(name.rpartition(".")[0])
        for layer in block.children():
            if not isinstance(layer, nn.Linear):
                continue
            if layer is writer:
                masks[names[id(layer.weight)]] = columns.expand_as(layer.weight).clone()
            elif layer.out_features == len(columns):
                for part in layer.parameters():
                    rows = columns.view(-1, *[1] * (part.dim() - 1))
                    masks[names[id(part)]] = rows.expand_as(part).clone()
    return masks


def _columns(writer: nn.Module, some: Sequence[Component]) -> Tensor:
    """Which inputs of a writer are those of the units, shape (inputs,)."""
    assert isinstance(writer, nn.Linear)
    columns = torch.zeros(writer.in_features, dtype=torch.bool, device=writer.weight.device)
    for unit in some:
        columns[slice(*unit.columns)] = True
    return columns
