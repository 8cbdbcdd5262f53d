"""Layers: which module's output is the residual stream, and keeping what modules put out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from riprap.behaviors import logits_of, reading_ahead
from riprap.errors import BehaviorError


def find_layer(model: nn.Module, name: str | None = None) -> str | None:
    """The module whose output is read as the residual stream.

    Args:
        name: a module's name as in `model.named_modules()`; a suffix that fits one module will do
            (so "layers.7" also finds the layer of a wrapped model). None: the middle block of the
            longest outermost list of equal blocks, which is the stack of a transformer.

    Returns:
        the full name, or None where no name was given and no stack was found.

    Raises:
        BehaviorError: no module, or several, by that name.
    """
    modules = dict(model.named_modules())
    if name is not None:
        if name in modules:
            return name
        fitting = [full for full in modules if full.endswith("." + name)]
        if len(fitting) != 1:
            raise BehaviorError(
                f"layer {name!r} names {len(fitting)} modules of the model: give one name "
                "from model.named_modules()"
            )
        return fitting[0]
    found = stacks(model)
    if not found:
        return None
    full = max(found, key=lambda name: found[name])
    return f"{full}.{found[full] // 2}"


def stacks(model: nn.Module) -> dict[str, int]:
    """Outermost lists of equal blocks, and how many blocks each holds."""
    lists = {
        full: len(module)
        for full, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len({type(block) for block in module}) == 1
    }
    # A list inside a block of another list (experts, heads) is no stack of layers.
    inner = {f for f in lists if any(f.startswith(f"{other}.") for other in lists)}
    return {full: count for full, count in lists.items() if full not in inner}


def layer_names(model: nn.Module, parameters: Sequence[Tensor]) -> list[str]:
    """The layer that each parameter belongs to.

    The block of a stack, such as "model.layers.3"; outside of stacks the parameter's own module,
    such as "lm_head", or its own name where the model itself holds it.
    """
    found = stacks(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def layer(name: str) -> str:
        for stack in found:
            if name.startswith(f"{stack}."):
                return f"{stack}.{name.removeprefix(f'{stack}.').split('.')[0]}"
        return name.rpartition(".")[0] or name

    return [layer(names[id(parameter)]) for parameter in parameters]


def last_position(output: Any) -> Tensor | None:
    """A module's output at the last position, shape (rows, d); None for other kinds of output."""
    tensor = output[0] if isinstance(output, tuple) and output else output
    if not isinstance(tensor, Tensor) or tensor.dim() not in (2, 3):
        return None
    return (tensor[:, -1] if tensor.dim() == 3 else tensor).detach().float().clone()


def rows_of(parts: list[Tensor], expected: int | None) -> Tensor | None:
    """What several calls gave, one below the other; None where it is not a row for each probe.

    Args:
        parts: shapes (rows of a call, d).
        expected: how many rows there must be; None where that cannot be known.
    """
    if not parts or len({part.shape[1] for part in parts}) > 1:
        return None
    rows = torch.cat(parts)
    return rows if expected is None or len(rows) == expected else None


@contextmanager
def captured(
    model: nn.Module, layers: Sequence[str]
) -> Iterator[tuple[dict[str, list[Tensor]], list[Tensor]]]:
    """Collect what `layers` and the model itself put out while the context is open."""
    activations: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    outputs: list[Tensor] = []
    modules = dict(model.named_modules())

    def keep(rows: Tensor | None, where: list[Tensor]) -> None:
        if rows is not None and not reading_ahead():
            where.append(rows)

    def keep_layer(name: str) -> Any:
        return lambda _module, _inputs, output: keep(last_position(output), activations[name])

    def keep_output(_module: nn.Module, _inputs: Any, output: Any) -> None:
        with suppress(BehaviorError):  # a model of another kind: signals on logits say NOT_RUN
            keep(last_position(logits_of(output)), outputs)

    handles = [modules[name].register_forward_hook(keep_layer(name)) for name in layers]
    handles.append(model.register_forward_hook(keep_output))
    try:
        yield activations, outputs
    finally:
        for handle in handles:
            handle.remove()
