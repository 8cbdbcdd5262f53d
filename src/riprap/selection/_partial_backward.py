"""Linear layers whose backward pass leaves out the rows that cannot be selected.

Some strategies choose among rows that are known from the losses alone, before the backward pass
(`Strategy.candidates`). The gradients of the other rows are not needed, and no row's gradient
depends on another row. So the backward pass of a large linear layer computes the gradient in its
input for the candidates, and zeros for the others. The forward pass is the layer's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from riprap.selection._grad_samplers import first_input
from riprap.selection._optimizers import LiveHook

MIN_ELEMENTS = 2**16  # of a weight; a smaller product is not worth being split


class Candidates:
    """Rows of one pass whose gradients are needed.

    Attributes:
        shape: rows and positions of the batch, by which a layer's input is recognized.
        runs: ranges of consecutive rows; None: all rows.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape
        self.runs: list[tuple[int, int]] | None = None

    def set_rows(self, rows: list[int]) -> None:
        """Compute gradients of these rows only; ascending."""
        runs: list[tuple[int, int]] = []
        for row in rows:
            if runs and runs[-1][1] == row:
                runs[-1] = (runs[-1][0], row + 1)
            else:
                runs.append((row, row + 1))
        self.runs = runs


class _PartialLinear(torch.autograd.Function):
    """Attach a linear layer's output to the graph of its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, output: Tensor, weight: Tensor, wanted: Candidates) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.wanted = wanted
        ctx.mark_dirty(output)
        return output

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        runs = ctx.wanted.runs
        if runs is None:
            return grad @ weight, None, None, None
        result = grad.new_empty(*grad.shape[:-1], weight.shape[1])
        end = 0
        for start, stop in runs:
            result[end:start].zero_()
            part = grad[start:stop].reshape(-1, weight.shape[0])
            torch.mm(part, weight, out=result[start:stop].view(-1, weight.shape[1]))
            end = stop
        result[end:].zero_()
        return result, None, None, None


class PartialBackward:
    """Hooks on the linear layers of a model; added after those of `PerSampleGradHooks`."""

    def __init__(self, model: nn.Module) -> None:
        self.wanted: Candidates | None = None  # of the running pass
        self._handles: list[Any] = []
        self._inputs: list[list[Tensor]] = []  # one list a layer
        for module in model.modules():
            if type(module).forward is nn.Linear.forward:
                self._add_hooks(module)

    def recover(self) -> None:
        """Forget a pass that failed."""
        self.wanted = None
        for inputs in self._inputs:
            inputs.clear()

    def remove(self) -> None:
        """Remove every hook."""
        self.recover()
        for handle in self._handles:
            handle.remove()

    def _add_hooks(self, layer: Any) -> None:
        inputs: list[Tensor] = []
        self._inputs.append(inputs)

        def before_forward(_: nn.Module, args: Any, named: Any) -> Any:
            if self.wanted is None or not torch.is_grad_enabled():
                return None
            x = first_input((args, named))
            if not _can_split(layer, x, self.wanted):
                return None
            inputs.append(x)
            return ((x.detach(),), {}) if args else ((), {next(iter(named)): x.detach()})

        def after_forward(_: nn.Module, _args: Any, _named: Any, output: Any) -> Any:
            if not inputs:
                return None
            x = inputs.pop()
            if output is None or self.wanted is None:  # the layer failed
                return None
            owned = output.clone() if output._is_view() else output
            return _PartialLinear.apply(x, owned, layer.weight, self.wanted)

        self._handles += [
            layer.register_forward_pre_hook(LiveHook(before_forward), with_kwargs=True),
            layer.register_forward_hook(
                LiveHook(after_forward), with_kwargs=True, always_call=True, prepend=True
            ),
        ]


def _can_split(layer: Any, x: Tensor, wanted: Candidates) -> bool:
    """Return whether a layer runs as a plain linear layer on the rows and positions of the batch.

    The weight must be frozen, or hidden from autograd by `PerSampleGradHooks`.
    """
    weight, bias = layer.weight, layer.bias
    return (
        x.requires_grad
        and x.shape[:-1] == wanted.shape
        and type(weight) is nn.Parameter
        and weight.numel() >= MIN_ELEMENTS
        and x.dtype == weight.dtype
        and not torch.is_autocast_enabled(x.device.type)
        and not weight.requires_grad
        and (bias is None or not bias.requires_grad)
        and not layer._backward_hooks
        and not layer._backward_pre_hooks
    )
