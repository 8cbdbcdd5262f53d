"""Layers of a model, and capture of their outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from riprap.behaviors import end_aligned, in_prefix_pass, logits_of
from riprap.errors import BehaviorError


def find_layer(model: nn.Module, name: str | None = None) -> str | None:
    """Find the module whose output is read as the residual stream.

    Args:
        name: a module's name as in `model.named_modules()`, or a suffix that matches one module
            ("layers.7" also finds the layer of a wrapped model). None: the middle block of the
            longest outermost list of equal blocks, that is, of a transformer's layers.

    Returns:
        the full name; None where no name was given and the model has no such list.

    Raises:
        BehaviorError: no module, or more than one, has that name.
    """
    modules = dict(model.named_modules())
    if name is not None:
        if name in modules:
            return name
        matching = [full for full in modules if full.endswith("." + name)]
        if len(matching) != 1:
            raise BehaviorError(
                f"layer {name!r} matches {len(matching)} modules of the model; give one name from "
                "model.named_modules()"
            )
        return matching[0]
    stacks = layer_stacks(model)
    if not stacks:
        return None
    longest = max(stacks, key=lambda name: stacks[name])
    return f"{longest}.{stacks[longest] // 2}"


def layer_stacks(model: nn.Module) -> dict[str, int]:
    """Return the number of blocks of each outermost list of equal blocks, by name."""
    lists = {
        full: len(module)
        for full, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len({type(block) for block in module}) == 1
    }
    # A list inside a block of another list (experts, heads) is not a stack of layers.
    inner = {f for f in lists if any(f.startswith(f"{other}.") for other in lists)}
    return {full: count for full, count in lists.items() if full not in inner}


def layer_names(model: nn.Module, parameters: Sequence[Tensor]) -> list[str]:
    """Return the name of each parameter's layer.

    The block of a stack, such as "model.layers.3"; outside stacks the parameter's own module, such
    as "lm_head"; the parameter's name where it belongs to the model directly.
    """
    stacks = layer_stacks(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def layer(name: str) -> str:
        for stack in stacks:
            if name.startswith(f"{stack}."):
                return f"{stack}.{name.removeprefix(f'{stack}.').split('.')[0]}"
        return name.rpartition(".")[0] or name

    return [layer(names[id(parameter)]) for parameter in parameters]


def last_position(output: Any) -> Tensor | None:
    """Return a module's output at the last position, shape (rows, d); None for other outputs."""
    tensor = output[0] if isinstance(output, tuple) and output else output
    if not isinstance(tensor, Tensor) or tensor.dim() not in (2, 3):
        return None
    last = end_aligned(tensor)[:, -1] if tensor.dim() == 3 else tensor
    return last.detach().float().clone()


def last_rows(parts: list[Tensor], expected: int | None) -> Tensor | None:
    """Concatenate the outputs of several calls; None if they are not one row for each probe.

    Args:
        parts: shapes (rows of a call, d).
        expected: the number of rows; None where it is unknown.
    """
    if not parts or len({part.shape[1] for part in parts}) > 1:
        return None
    rows = torch.cat(parts)
    return rows if expected is None or len(rows) == expected else None


@contextmanager
def capture_outputs(
    model: nn.Module, layers: Sequence[str]
) -> Iterator[tuple[dict[str, list[Tensor]], list[Tensor]]]:
    """Collect the last-position outputs of `layers` and of the model while the context is open."""
    activations: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    outputs: list[Tensor] = []

    def store(rows: Tensor | None, where: list[Tensor]) -> None:
        if rows is not None and not in_prefix_pass():
            where.append(rows)

    def layer_hook(name: str) -> Any:
        return lambda _module, _inputs, output: store(last_position(output), activations[name])

    def model_hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        with suppress(BehaviorError):  # without logits: signals that need them are NOT_RUN
            store(last_position(logits_of(output)), outputs)

    handles = [model.get_submodule(name).register_forward_hook(layer_hook(name)) for name in layers]
    handles.append(model.register_forward_hook(model_hook))
    try:
        yield activations, outputs
    finally:
        for handle in handles:
            handle.remove()
